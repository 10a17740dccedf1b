r"""What NLE and NPE share: the score term on a conditional density estimator.

The surrogate is f(theta, x) = log q(x|theta) in NLE and log q(theta|x) in NPE. In both
the host's loss of a row is -f (NPE: in single-round training), so that grad_theta f is
had from the host's own forward pass: theta enters the loss as a leaf of the graph, and
the term costs one double backward and no second evaluation of the flow.

*Kinks.* The term trains d grad_theta f / d phi, so f should be twice differentiable in
theta. sbi's "maf" (tanh, affine) is, and is the default. Spline flows ("nsf",
"maf_rqs", "zuko_nsf") are once differentiable: f is continuous with kinks where a knot
is passed, and grad_theta f jumps there. Flows of zuko and "nsf", "mdn", "made" compute
their parameters by ReLU networks: theta passes through these (in "mdn" for NLE only),
and grad_theta f jumps where a unit switches. The term trains what lies between the
jumps: the score error of such flows is larger, and falls only at small learning rates
(1e-3 and less; at 5e-3 that of "nsf" grew).
A step of "nsf" takes about four times as long as one of "maf" (2-D Gaussian, batches
of 200).
Piecewise-linear estimators without any second derivative are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sbi_scoreaug._host import (
    DEFAULT_DENSITY,
    DENSITY_ESTIMATORS,
    loss_is_negative_log_prob,
)
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_augmented.trainer import ScoreTerm


class ScoreAugmentedDensityTerm(ScoreTerm):
    """Mixin of the score term for sbi's density estimators; see `nle` and `npe`."""

    _weighting_rule = "pooled_uncertainty"
    _flow_by_name: Callable[[str], Callable[..., nn.Module]]  # the host's factory

    def __init__(
        self,
        prior: Any = None,
        density_estimator: Any = DEFAULT_DENSITY,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if (
            isinstance(density_estimator, str)
            and density_estimator not in DENSITY_ESTIMATORS
        ):
            raise InvalidInputError(
                f"density_estimator: expected one of {DENSITY_ESTIMATORS} or a "
                "function (theta, x) -> ConditionalDensityEstimator, got "
                f"{density_estimator!r}."
            )
        if isinstance(density_estimator, str):  # sbi's main branch warns of names
            density_estimator = self._flow_by_name(density_estimator)
        super().__init__(prior, density_estimator, *args, **kwargs)

    # --- before training -----------------------------------------------------------

    def _modules_after_theta(self, estimator: Any) -> Iterator[nn.Module]:
        """Hook: the modules that theta passes through."""
        return estimator.modules()

    def _build_trial(self, theta: Tensor, x: Tensor) -> Any:
        """Build a network on a trial and refuse one that mixes the rows of a batch."""
        estimator = super()._build_trial(theta, x)
        for module in self._modules_after_theta(estimator):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise InvalidInputError(
                    "score: expected a network that treats every pair by itself, got "
                    f"{type(module).__name__} on the way of theta, which mixes the "
                    "rows of a batch. Use layer normalisation or none "
                    "(use_batch_norm=False); in an embedding net of x batch "
                    "normalisation does no harm."
                )
        return estimator

    # --- during training -----------------------------------------------------------

    def _loss_is_minus_f(self, x: Tensor, **loss_args: Any) -> bool:
        """Hook: whether the host's loss of each row is -f(theta, x)."""
        return True

    def _loss(self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the host's losses; where they are -f, keep their graph on theta."""
        shared = (
            self._steady
            and torch.is_grad_enabled()
            and loss_is_negative_log_prob(self._neural_net)
            and self._loss_is_minus_f(x, **kwargs)
        )
        if not shared:
            return super()._loss(theta, x, *args, **kwargs)
        leaf = theta.detach().clone().requires_grad_()
        losses = super()._loss(leaf, x, *args, **kwargs)
        self._joint = (leaf, -losses)
        return losses
