r"""The score term: how far the surrogate's theta-gradient is from the score.

Symbols: f(theta, x) the surrogate, log r(x|theta) in ratio estimation;
s = grad_theta log p(x|theta) the likelihood score; m its mask (1 where known).

At the optimum of the host's loss f(theta, x) = log p(x|theta) + (terms without theta),
whatever the proposal of theta, so that grad_theta f = s for *every* pair. The augmented
loss adds, over joint pairs (theta_i, x_i),

    L = L_host + sum_k w_k ell_k,     ell_k = sum_i m_ik rho(r_ik) / sum_i m_ik,
    r_i = W (grad_theta f(theta_i, x_i) - s_i),     W' W = (mean_i s_i s_i')^(-1).

W is computed once from the training rows; of all such roots `whitening_matrix` takes
one that does not depend on the units of the parameters. It makes r dimensionless: for a
surrogate that ignores theta r = -W s, and ell_k = 1 on average; and r does not change
when a parameter is rescaled. So w_k of order one serves every problem. With
rho(r) = r^2 a *joint* score t = grad_theta log p(x, z|theta) has the same minimiser,
since s = E[t | theta, x]; a robust rho does not, and is for exact scores only.

References: Shen & Kuusela 2026 (arXiv 2605.12118); Brehmer et al. 2020 (PNAS 117,
arXiv 1805.12244) for joint scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sbi_scoreaug.errors import InvalidInputError


def square(residual: Tensor) -> Tensor:
    """Return r^2, the default: valid for exact and joint scores."""
    return residual.square()


def huber(residual: Tensor) -> Tensor:
    """Return the Huber loss of r, 2 |r| - 1 beyond one: for exact scores only."""
    return 2.0 * F.huber_loss(residual, torch.zeros_like(residual), reduction="none")


SCORE_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"square": square, "huber": huber}


def resolve_score_loss(
    score_loss: str | Callable[[Tensor], Tensor], score_kinds: Sequence[str]
) -> Callable[[Tensor], Tensor]:
    """Return the function rho that `train(score_loss=...)` names.

    Args:
        score_loss: "square", "huber", or a function that keeps its input's shape.
        score_kinds: The kinds of scores appended so far.

    Raises:
        InvalidInputError: An unknown name, a function that changes the shape, or a
            robust loss for joint scores.
    """
    if isinstance(score_loss, str) and score_loss in SCORE_LOSSES:
        if score_loss != "square" and "joint" in score_kinds:
            raise InvalidInputError(
                f"score_loss: expected 'square' for joint scores, got {score_loss!r}: "
                "only the squared loss has the exact score as its minimiser there."
            )
        return SCORE_LOSSES[score_loss]
    if callable(score_loss):
        probe = torch.zeros(3, 2)
        if getattr(score_loss(probe), "shape", None) != probe.shape:
            raise InvalidInputError(
                "score_loss: expected a function that keeps the shape (batch, "
                "dim_theta) of its residuals; it changed the shape of a (3, 2) input."
            )
        return score_loss
    raise InvalidInputError(
        f"score_loss: expected one of {tuple(SCORE_LOSSES)} or a function of the "
        f"residuals, got {score_loss!r}."
    )


def whitening_matrix(
    score: Tensor,
    mask: Tensor,
    theta: Tensor,
    floor: float = 1e-3,
    diagonal: bool = False,
) -> Tensor:
    """Return W with W' W = (mean of s s')^(-1).

    Of all such roots, W = R^(-1/2) S^(-1) with S the root mean squares of the
    components and R their correlation: component k of W s stays the one nearest to
    parameter k, whatever the units. Where a row knows some components only, W is
    diagonal; a component whose score is always zero is measured in standard
    deviations of its parameter instead.

    Args:
        score: Training scores `(num_simulations, dim_theta)`, zero where unknown.
        mask: `(num_simulations, dim_theta)`, true where known.
        theta: Parameters `(num_simulations, dim_theta)`.
        floor: Smallest eigenvalue of the scores' correlation matrix, relative to the
            largest, that is inverted.
        diagonal: Whether to ignore correlations, for rows that are partly known here or
            elsewhere in the data.

    Returns:
        `(dim_theta, dim_theta)`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> score = torch.randn(5000, 2) @ torch.tensor([[3.0, 0.0], [1.0, 0.1]])
        >>> W = whitening_matrix(score, torch.ones_like(score).bool(), score)
        >>> z = score @ W.T
        >>> torch.allclose(z.T @ z / 5000, torch.eye(2), atol=1e-3)
        True
    """
    score, mask = score.double(), mask.double()
    mean_square = (mask * score.square()).sum(0) / mask.sum(0).clamp_min(1.0)
    spread = theta.double().var(0, correction=0).clamp_min(1e-30)
    scale = torch.where(mean_square > 0, mean_square, 1 / spread).sqrt()
    complete = mask.bool().all(1)
    partial = mask.bool().any(1) & ~complete
    if diagonal or partial.any() or complete.sum() < 2 * score.shape[1]:
        return torch.diag(1 / scale).float()
    z = score[complete] / scale
    correlation = z.T @ z / len(z)
    correlation.diagonal().copy_(torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(correlation)
    root = values.clamp_min(floor * values.max()).rsqrt()
    return (vectors @ torch.diag(root) @ vectors.T @ torch.diag(1 / scale)).float()


def residuals(
    gradient: Tensor, score: Tensor, mask: Tensor, whitening: Tensor
) -> Tensor:
    """Return r = W (grad f - s), `(batch, dim_theta)`, zero where the score is unknown.

    Args:
        gradient: grad_theta f(theta_i, x_i), `(batch, dim_theta)`.
        score: `(batch, dim_theta)`.
        mask: `(batch, dim_theta)`.
        whitening: W `(dim_theta, dim_theta)`, diagonal where a row is partly known.
    """
    return ((gradient - score) * mask) @ whitening.T


def score_losses(
    gradient: Tensor,
    score: Tensor,
    mask: Tensor,
    whitening: Tensor,
    rho: Callable[[Tensor], Tensor] = square,
) -> Tensor:
    """Return ell `(dim_theta,)`, the mean of rho(r_ik) over known components.

    Arguments as in `residuals`; `rho` maps `(batch, dim_theta)` to the same shape.

    Example:
        >>> s, seen = torch.tensor([[2.0], [4.0]]), torch.tensor([[True], [True]])
        >>> W = torch.tensor([[0.5]])
        >>> score_losses(torch.zeros(2, 1), s, seen, W)
        tensor([2.5000])
    """
    loss = rho(residuals(gradient, score, mask, whitening)) * mask
    return loss.sum(0) / mask.sum(0).clamp_min(1)


def standardised_error(gradient: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Return `(2, dim_theta)`: sums of squared errors and of squared known scores.

    Their ratio, after summing over batches, is the standardised score error of each
    parameter: 0 for a perfect fit, 1 for a surrogate that ignores theta. For joint
    scores it tends to 1 - (signal fraction).
    """
    error = ((gradient - score) * mask).square().sum(0)
    return torch.stack([error, (score * mask).square().sum(0)])
