r"""Smooth classifiers: twins of sbi's, with a usable second derivative.

The score term differentiates grad_theta f once more, by the network's parameters. For a
piecewise-linear network grad_theta f is piecewise constant in theta, so the term sees
only jumps. `smooth_classifier_nn` is sbi's `classifier_nn` with SiLU in place of ReLU
in the network that joins theta and x. Embedding nets of x stay as they are: nothing is
differentiated by x, so a ReLU there does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_augmented.smoothness import PIECEWISE_LINEAR_FUNCTIONS

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def smooth_classifier_nn(
    model: str = "resnet", activation: str = "silu", **kwargs: Any
) -> Callable[[Tensor, Tensor], RatioEstimator]:
    """Return a builder of a smooth classifier, the twin of sbi's `classifier_nn`.

    All other arguments as in `sbi.neural_nets.classifier_nn`: `z_score_theta`,
    `z_score_x`, `hidden_features`, `embedding_net_theta`, `embedding_net_x`,
    `num_blocks`, `dropout_probability`, `use_batch_norm`.

    Args:
        model: "resnet" or "mlp".
        activation: "silu", "gelu", "softplus" or "tanh".
        kwargs: As in the host's function.

    Returns:
        A function `(theta, x) -> RatioEstimator`, to be passed as `classifier`.

    Raises:
        InvalidInputError: An unknown model or activation.

    Example:
        >>> import torch
        >>> build = smooth_classifier_nn("mlp", hidden_features=30)
        >>> classifier = build(torch.randn(100, 2), torch.randn(100, 3))
        >>> classifier(torch.randn(10, 2), torch.randn(10, 3)).shape
        torch.Size([10])
    """
    if model not in ("resnet", "mlp"):
        raise InvalidInputError(
            f"model: expected 'resnet' or 'mlp', got {model!r}. For another network "
            "pass your own function (theta, x) -> RatioEstimator as `classifier`."
        )
    if activation not in ACTIVATIONS:
        raise InvalidInputError(
            f"activation: expected one of {tuple(ACTIVATIONS)}, got {activation!r}."
        )
    return SmoothClassifierBuilder(model, activation, kwargs)


class SmoothClassifierBuilder:
    """What `smooth_classifier_nn` returns; a class, so that it can be pickled."""

    def __init__(self, model: str, activation: str, kwargs: dict[str, Any]) -> None:
        self._model, self._activation, self._kwargs = model, activation, kwargs

    def __call__(self, theta: Tensor, x: Tensor) -> RatioEstimator:
        """Build the host's classifier on `theta` and `x`, then smooth its joint net."""
        estimator = classifier_nn(self._model, **self._kwargs)(theta, x)
        _replace_relu(estimator.net, ACTIVATIONS[self._activation])
        return estimator


def _replace_relu(net: nn.Module, activation: type[nn.Module]) -> None:
    for module in net.modules():
        if getattr(module, "activation", None) in PIECEWISE_LINEAR_FUNCTIONS:
            module.activation = activation()
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
