r"""Smooth classifiers: twins of sbi's, with a usable second derivative.

The score term differentiates grad_theta f once more, by the network's parameters. For a
piecewise-linear network grad_theta f is piecewise constant in theta, so the term sees
only jumps. `smooth_classifier_nn` is sbi's `classifier_nn` with SiLU in place of ReLU
in the network that joins theta and x. Embedding nets of x stay as they are: nothing is
differentiated by x, so a ReLU there does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from sbi_scoreaug._host import splits_into_embedding_and_head
from sbi_scoreaug.errors import InvalidInputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
_PIECEWISE_LINEAR_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
)
_PIECEWISE_LINEAR_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.hardtanh)


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
        if getattr(module, "activation", None) in _PIECEWISE_LINEAR_FUNCTIONS:
            module.activation = activation()
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())


def _differentiated_modules(estimator: Any) -> Iterator[nn.Module]:
    """Yield the modules that theta passes through, where that is known."""
    if splits_into_embedding_and_head(estimator):
        yield from estimator.embedding_net_theta.modules()
        yield from estimator.net.modules()


@contextmanager
def buffers_put_back() -> Iterator[None]:
    """Undo what forward passes do to buffers, such as running means.

    A builder passes rows through the user's own embedding net to learn its size.
    """
    before: dict[nn.Module, dict[str, Tensor]] = {}

    def note(module: nn.Module, _: Any) -> None:
        if module not in before:
            buffers = module.named_buffers(recurse=False)
            before[module] = {name: value.clone() for name, value in buffers}

    hook = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()
        for module, buffers in before.items():
            for name, value in buffers.items():
                getattr(module, name).copy_(value)


def batch_norm_part(estimator: nn.Module) -> str | None:
    """Return the name of a batch normalisation that theta passes through, if any.

    It couples the rows of a batch: the gradient of one row's f is then no longer the
    row's own, and joint and marginal pairs would be normalised apart.
    """
    for module in _differentiated_modules(estimator):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return type(module).__name__
    return None


def piecewise_linear_part(
    estimator: nn.Module, log_density: Callable[[Tensor], Tensor], theta: Tensor
) -> str | None:
    """Return what makes `estimator` piecewise linear in theta, or None if it is not.

    Args:
        estimator: The network; its modules are searched for activations.
        log_density: The function theta `(batch, dim_theta)` -> f `(batch,)` that is
            differentiated. It is probed for a second derivative that vanishes.
        theta: Parameters `(batch, dim_theta)` to probe at.
    """
    for module in _differentiated_modules(estimator):
        if isinstance(module, _PIECEWISE_LINEAR_MODULES):
            return type(module).__name__
        if getattr(module, "activation", None) in _PIECEWISE_LINEAR_FUNCTIONS:
            return f"{type(module).__name__} with {module.activation.__name__}"
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        gradient = torch.autograd.grad(
            log_density(leaf).sum(), leaf, create_graph=True
        )[0]
        if gradient.requires_grad:
            (second,) = torch.autograd.grad(
                gradient.square().sum(), leaf, allow_unused=True
            )
            if second is not None and second.abs().max() > 0:
                return None
    return f"{type(estimator).__name__} without a second derivative in theta"
