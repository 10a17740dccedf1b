r"""Supervision beyond the simulated pairs, where the exact score is a function.

grad_theta log p(x|theta) is valid at any (theta, x), so that one simulation x_i can
supervise a neighbourhood of theta_i:

- "local": theta' = theta_i + W' xi, xi ~ N(0, I), with W the loss's whitening matrix,
  so that W'W is the inverse of the mean Fisher information: jitter of the
  posterior's scale.
- "both": as many marginal pairs (theta_j, x_i) besides. Their scores can be larger than
  those of joint pairs by orders of magnitude; for most problems they do harm.

The scores are computed once, at `NUM_PAIRS` parameters a simulation, before training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug._host import within_support
from sbi_scoreaug.errors import InvalidInputError

SCORE_PAIRS = ("joint", "local", "both")
NUM_PAIRS = 8


class PairTable(NamedTuple):
    """Parameters and scores `(num_simulations, num_pairs, dim_theta)`, and the mask."""

    theta: Tensor
    score: Tensor
    mask: Tensor

    def draw(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return one random pair for each simulation in `rows`, each `(batch, d)`."""
        rows = rows.to(self.theta.device)
        column = torch.randint(self.theta.shape[1], rows.shape, device=rows.device)
        theta, score, mask = (part[rows, column] for part in self)
        return theta, score, mask


def supervised_pairs(
    kind: str,
    score_fn: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    x: Tensor,
    whitening: Tensor,
    prior: Distribution | None,
    device: torch.device | str = "cpu",
) -> PairTable:
    """Return parameters around (and, for "both", away from) each simulation.

    Args:
        kind: "local" or "both".
        score_fn: `(theta, x) -> score`, all `(batch, ...)`.
        theta: `(num_simulations, dim_theta)`.
        x: `(num_simulations, *shape_x)`.
        whitening: W `(dim_theta, dim_theta)`.
        prior: Parameters outside its support are replaced by the simulation's own.
        device: That of the prior.

    Raises:
        InvalidInputError: `score_fn` returns another shape than theta's.
    """
    parameters, scores = [], []
    for pair in range(NUM_PAIRS):
        if kind == "both" and pair % 2:
            shifted = theta[torch.randperm(len(theta))]
        else:
            shifted = theta + torch.randn_like(theta) @ whitening.to(theta.device)
            if prior is not None:
                inside = within_support(prior, shifted.to(device)).to(theta.device)
                shifted = torch.where(inside.unsqueeze(1), shifted, theta)
        score = score_fn(shifted.clone(), x.clone()).detach().to(theta.dtype)
        if score.shape != theta.shape:
            raise InvalidInputError(
                f"score_fn(theta, x): expected shape {tuple(theta.shape)}, got "
                f"{tuple(score.shape)}."
            )
        parameters.append(shifted)
        scores.append(score)
    score = torch.stack(scores, 1)
    mask = score.isfinite()
    return PairTable(
        torch.stack(parameters, 1), score.nan_to_num(0.0, 0.0, 0.0) * mask, mask
    )
