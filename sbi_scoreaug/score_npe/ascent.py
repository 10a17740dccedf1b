"""Ascent on the score of a set: its most probable parameters."""

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.schedule import T_LAST


def ascend(
    estimator: FactorizedScoreEstimator,
    x: Tensor,
    theta: Tensor,
    *,
    num_iter: int,
    learning_rate: float,
    show_progress_bars: bool = False,
) -> Tensor:
    """Follow the composed score at a small noise level plus grad log |dz/dtheta|.

    Args:
        estimator: The trained estimator.
        x: The set `(n, *shape_x)`.
        theta: Where to start `(num_starts, dim_theta)`.
        num_iter: Steps of Adam, with a rate that falls as a half cosine.
        learning_rate: Its rate at the start.
        show_progress_bars: Whether to show a progress bar.

    Returns:
        Ends of the ascents `(num_starts, dim_theta)`.
    """
    with torch.no_grad():
        score = ComposedScore(estimator.set_score, estimator.embed(estimator.group(x)))
    z = estimator.to_z(theta).detach().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iter)
    for _ in tqdm(range(num_iter), disable=not show_progress_bars):
        optimizer.zero_grad()
        log_det = estimator.coordinates.log_abs_det(estimator.from_z(z)).sum()
        if log_det.requires_grad:
            log_det.backward()
        gradient = 0.0 if z.grad is None else z.grad
        z.grad = -(gradient + score(z.detach(), T_LAST).to(z))
        optimizer.step()
        decay.step()
    return estimator.from_z(z.detach())
