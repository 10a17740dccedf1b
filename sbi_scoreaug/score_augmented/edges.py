r"""What posterior estimation needs to know of the prior: its gradient and its edges."""

from __future__ import annotations

from typing import Any

import torch
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.check_prior import log_prior_gradient, prior_support

EDGE = 0.1  # of the support's width: where residuals fade out


class Support:
    """The box in which the prior lives, and how far from its edges.

    Args:
        prior: A prior over `(dim_theta,)`. If its edges are unknown, it has none.
        theta: Simulated parameters `(num_simulations, dim_theta)`: their spread is the
            width of a parameter that is bounded on one side.

    Example:
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(torch.zeros(1), torch.ones(1))
        >>> support = Support(prior, torch.rand(10, 1))
        >>> support.fade(torch.tensor([[0.5], [0.95], [0.0], [-1.0]])).flatten()
        tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """

    def __init__(self, prior: Any, theta: Tensor) -> None:
        dim_theta = theta.shape[1]
        try:
            lower, upper = prior_support(prior, dim_theta)
        except Exception:  # A prior is foreign code: whatever it raises.
            upper = torch.full((dim_theta,), torch.inf)
            lower = -upper
        spread = theta.detach().double().cpu().std(0)
        width = torch.where((upper - lower).isfinite(), upper - lower, 4 * spread)
        self._edges = torch.stack([lower, upper]).to(theta)
        self._depth = (EDGE * width).clamp_min(1e-30).to(theta)

    def contains(self, theta: Tensor) -> Tensor:
        """Whether rows of `theta (batch, dim_theta)` lie strictly inside."""
        lower, upper = self._edges.to(theta)
        return ((theta > lower) & (theta < upper)).all(1)

    def fade(self, theta: Tensor) -> Tensor:
        """Return t `(batch, dim_theta)`: 1 inside, 0 at the edges and beyond."""
        lower, upper = self._edges.to(theta)
        depth = self._depth.to(theta)
        below = ((theta - lower) / depth).clamp(0.0, 1.0)
        above = ((upper - theta) / depth).clamp(0.0, 1.0)
        return below * above


def prior_gradient(prior: Any, theta: Tensor, inside: Tensor) -> Tensor:
    """Return grad log p(theta) `(batch, dim_theta)`; zero where p is constant or zero.

    Args:
        prior: A prior with `log_prob`.
        theta: `(batch, dim_theta)`.
        inside: `(batch,)`, whether a row lies in the support. The prior is evaluated at
            these rows only: others may be errors to it.
    """
    gradient = torch.zeros_like(theta)
    if not inside.any():
        return gradient
    with torch.enable_grad():
        leaf = theta[inside].detach().clone().requires_grad_()
        log_prob = prior.log_prob(leaf)
        if log_prob.requires_grad:
            (known,) = torch.autograd.grad(log_prob.sum(), leaf)
            gradient[inside] = known.nan_to_num(0.0, 0.0, 0.0)
    return gradient


def require_prior_gradient(prior: Any, theta: Tensor) -> None:
    """Raise InvalidInputError unless grad log p(theta) is known at `theta (n, d)`."""
    remedy = (
        "Posterior estimation matches grad log q(theta|x) to score + grad log prior: "
        "give a prior whose log_prob is written in torch, or leave `score` out. "
        "ScoreAugmentedNLE and ScoreAugmentedNRE need no gradient of the prior."
    )
    if prior is None or isinstance(prior, ImproperEmpirical):
        raise InvalidInputError(
            f"score: expected a prior beside it, got none. {remedy}"
        )
    rows = theta[theta.isfinite().all(1)]
    rows = rows[Support(prior, rows).contains(rows)] if len(rows) > 1 else rows
    if len(rows) < 2:
        return
    try:
        log_prior_gradient(prior, rows)
    except Exception as error:  # A prior is foreign code: whatever it raises.
        raise InvalidInputError(
            "prior: expected a log_prob that has a gradient in theta, or is constant, "
            f"got {type(prior).__name__} ({type(error).__name__}: {error}). {remedy}"
        ) from error
