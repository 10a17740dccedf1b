r"""Weights w_k of the score terms in L = L_host + sum_k w_k ell_k.

Residuals are whitened (see `loss`), so w_k of order one is a sensible start everywhere.
Four rules and a hook:

- `FixedWeights`: a number or a tensor `(dim_theta,)`.
- `GradientNormWeights`: w_k = |grad_phi L_host| / |grad_phi ell_k| over the network's
  parameters phi, the adaptive rule of score-augmented ratio estimation: both terms
  pull with equal strength. The ratio is smoothed over time and bounded.
- `UncertaintyWeights`: w_k = 1 / (2 sigma_k^2) with sigma_k^2 = ell_k, smoothed: the
  minimiser over sigma of ell_k / (2 sigma_k^2) + log sigma_k. A noisy joint score
  keeps ell_k near one and gets a small weight; an exact score that is fitted well gets
  a large one, up to the bound. The default for both kinds: on fields and epidemics it
  was as good as or better than the gradient norms, and costs nothing.
- "pooled_uncertainty", `UncertaintyWeights(pooled=True)`: one w = 1 / (2 mean_k ell_k)
  for all. The default of flows. A flow that cannot follow the posterior in every
  parameter (an edge, a funnel) otherwise buys the easy components, whose weights grow,
  at the price of the hard ones, and of the likelihood.

Anything with `weights(host_loss, score_losses, parameters) -> (dim_theta,)` can be used
instead. The result is detached and multiplied by `score_gain` by the trainer.

References: Shen & Kuusela 2026 (arXiv 2605.12118); Kendall, Gal & Cipolla 2018
(arXiv 1705.07115).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError


@runtime_checkable
class ScoreWeighting(Protocol):
    """What an object must offer to be used as `score_weighting`.

    A protocol: no base class is needed.

    Example:
        >>> class Proportional:
        ...     def weights(self, host_loss, score_losses, parameters):
        ...         return host_loss.detach() / score_losses.detach()
        >>> isinstance(Proportional(), ScoreWeighting)
        True
    """

    def weights(
        self, host_loss: Tensor, score_losses: Tensor, parameters: Sequence[Tensor]
    ) -> Tensor:
        """Return w `(dim_theta,)`, called at every step with score terms.

        Args:
            host_loss: Scalar, with its graph.
            score_losses: ell `(dim_theta,)`, with its graph; retain it if you
                differentiate.
            parameters: Parameters of the network that require gradients.
        """
        ...


class FixedWeights:
    """The same weights at every step.

    Args:
        value: A number or a tensor `(dim_theta,)`, finite and not negative.

    Raises:
        InvalidInputError: Weights that are negative or not finite.

    Example:
        >>> FixedWeights(2.0).weights(torch.tensor(0.7), torch.ones(3), [])
        tensor([2., 2., 2.])
    """

    def __init__(self, value: float | Tensor) -> None:
        self.value = torch.as_tensor(value, dtype=torch.float32)
        if not self.value.isfinite().all() or (self.value < 0).any():
            raise InvalidInputError(
                "score_weighting: expected finite weights >= 0, got "
                f"{self.value.tolist()}. Use 0 to switch a term off."
            )

    def weights(
        self, host_loss: Tensor, score_losses: Tensor, parameters: Sequence[Tensor]
    ) -> Tensor:
        """Return the fixed weights `(dim_theta,)`."""
        return self.value.to(score_losses.device).expand_as(score_losses)


class _Smoothed:
    """Exponential moving average in log space, bounded."""

    def __init__(self, decay: float, bounds: tuple[float, float]) -> None:
        self._decay = decay
        self._bounds = bounds
        self._log: Tensor | None = None

    def _update(self, value: Tensor, known: Tensor) -> Tensor:
        """Take in `value` where `known`: a batch may lack a component altogether."""
        log = value.detach().clamp(*self._bounds).log()
        if self._log is None:
            self._log = torch.full_like(log, torch.nan)
        old = torch.where(self._log.isnan(), log, self._log.to(log.device))
        new = self._decay * old + (1 - self._decay) * log
        self._log = torch.where(known, new, self._log.to(log.device))
        return self._log.exp().nan_to_num(1.0)


class GradientNormWeights(_Smoothed):
    """Balance the gradient norms of the host's loss and of each score term.

    Args:
        every: Measure the norms at every such call; in between the weights are kept.
        decay: Of the moving average over measurements.
        bounds: Smallest and largest weight.

    Example:
        >>> phi = torch.ones(1, requires_grad=True)
        >>> host_loss, score_losses = 4 * phi.sum(), torch.cat([2 * phi, 8 * phi])
        >>> GradientNormWeights().weights(host_loss, score_losses, [phi])
        tensor([2.0000, 0.5000])
    """

    def __init__(
        self,
        every: int = 10,
        decay: float = 0.9,
        bounds: tuple[float, float] = (1e-2, 1e2),
    ) -> None:
        super().__init__(decay, bounds)
        self._every = every
        self._calls = 0

    def weights(
        self, host_loss: Tensor, score_losses: Tensor, parameters: Sequence[Tensor]
    ) -> Tensor:
        """Return w_k = |grad L_host| / |grad ell_k| `(dim_theta,)`, smoothed."""
        due = self._calls % self._every == 0
        self._calls += 1
        if not due and self._log is not None:
            return self._log.exp().nan_to_num(1.0)
        host_norm = _gradient_norm(host_loss, parameters)
        norms = torch.stack([_gradient_norm(ell, parameters) for ell in score_losses])
        return self._update(host_norm / norms.clamp_min(1e-12), norms > 0)


class UncertaintyWeights(_Smoothed):
    """Weight every score term by the inverse of twice its own size.

    Args:
        decay: Of the moving average over steps.
        bounds: Smallest and largest weight.
        pooled: Whether all components share one weight, that of their mean size.

    Example:
        >>> score_losses = torch.tensor([1.0, 0.25])  # (dim_theta,)
        >>> UncertaintyWeights().weights(torch.tensor(0.7), score_losses, [])
        tensor([0.5000, 2.0000])
    """

    def __init__(
        self,
        decay: float = 0.99,
        bounds: tuple[float, float] = (1e-2, 1e1),
        pooled: bool = False,
    ) -> None:
        super().__init__(decay, bounds)
        self._pooled = pooled

    def weights(
        self, host_loss: Tensor, score_losses: Tensor, parameters: Sequence[Tensor]
    ) -> Tensor:
        """Return w_k = 1 / (2 ell_k) `(dim_theta,)`, smoothed."""
        losses = score_losses.detach()
        known = losses > 0
        if self._pooled and known.any():
            losses = losses[known].mean().expand_as(losses)
        return self._update(0.5 / losses.clamp_min(1e-12), known)


def _gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(
        loss, list(parameters), retain_graph=True, allow_unused=True
    )
    squares = [g.square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(())


def resolve_weighting(
    score_weighting: str | float | Tensor | ScoreWeighting | None,
    dim_theta: int,
) -> ScoreWeighting:
    """Return the weighting object that `train(score_weighting=...)` names.

    Args:
        score_weighting: None for the default, "uncertainty"; "gradient_norm",
            "pooled_uncertainty", a number, a tensor `(dim_theta,)`, or a
            `ScoreWeighting`.
        dim_theta: Number of parameters.

    Raises:
        InvalidInputError: An unknown name, or weights that are negative, not finite or
            of the wrong length.
        InvalidTypeError: Something else.
    """
    named = {
        "gradient_norm": GradientNormWeights,
        "uncertainty": UncertaintyWeights,
        "pooled_uncertainty": partial(UncertaintyWeights, pooled=True),
    }
    if score_weighting is None:
        score_weighting = "uncertainty"
    if isinstance(score_weighting, str):
        if score_weighting not in named:
            raise InvalidInputError(
                f"score_weighting: expected one of {tuple(named)}, a number, a tensor "
                f"({dim_theta},) or an object with `weights`, got {score_weighting!r}."
            )
        return named[score_weighting]()
    if isinstance(score_weighting, (int, float, Tensor)):
        value = torch.as_tensor(score_weighting, dtype=torch.float32)
        if value.ndim > 1 or (value.ndim == 1 and len(value) != dim_theta):
            raise InvalidInputError(
                f"score_weighting: expected a number or shape ({dim_theta},), one "
                f"weight a parameter, got shape {tuple(value.shape)}."
            )
        return FixedWeights(value)
    if not isinstance(score_weighting, ScoreWeighting):
        raise InvalidTypeError(
            "score_weighting: expected None, a name, a number, a tensor or an object "
            "with weights(host_loss, score_losses, parameters), got "
            f"{type(score_weighting).__name__}."
        )
    return score_weighting


def require_weights(weights: object, ell: Tensor) -> None:
    """Raise InvalidInputError unless `weights` has the shape of `ell (dim_theta,)`."""
    if not isinstance(weights, Tensor) or weights.shape != ell.shape:
        found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights)
        raise InvalidInputError(
            "score_weighting: expected its method `weights` to return a tensor "
            f"{tuple(ell.shape)}, one weight a parameter, got {found}."
        )
