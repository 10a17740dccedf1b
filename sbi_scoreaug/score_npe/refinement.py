"""What a trained network is given before it is used: a mixture beside it, a centre.

Both need simulations and take no steps of the optimiser. The mixture's share is decided
on the rows of validation (`mixture`); the centre is taken off in sets (`centring`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.mixed_training import MAX_ANCHORS, MixedTargetTraining
from sbi_scoreaug.score_npe.network import PosteriorScoreNet

MAX_ROWS = 20_000  # that the mixture is fitted to
NUM_LOSSES = 20_000  # that decide its share


class Refinement(MixedTargetTraining):
    """Mixin that finishes networks after training; put it in front of `NPSE`."""

    _rows_were_dropped: bool = False

    def _unrefine(self) -> None:
        """Let training start or go on with the network alone."""
        estimator = self._neural_net
        if estimator is not None:
            estimator.clear_anchors()
            if isinstance(estimator.net, PosteriorScoreNet):
                estimator.net.mixture.clear()

    def _refine(self, estimator: Any, mixture: bool) -> Any:
        """Finish the trainer's network, which is returned."""
        own = isinstance(estimator.net, PosteriorScoreNet)
        if mixture and own and self._max_set_size == 1:
            self._blend_mixture(estimator)
        self._set_anchors(estimator)
        return estimator

    def _rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        theta, x, _ = self.get_simulations()
        return theta[rows].to(self._device), x[rows].to(self._device)

    @torch.no_grad()
    def _blend_mixture(self, estimator: Any) -> None:
        """Give the mixture the share that has the least loss in validation."""
        net = estimator.eval().net
        theta, x = self._rows(self.train_indices[:MAX_ROWS])
        features = torch.cat([net.features(rows) for rows in x.split(1000)])
        if not net.mixture.fit(estimator.to_z(theta), features):
            return
        num, losses = len(self.val_indices), torch.zeros(3, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # In an order that is never the same, since noise follows the order.
            order = torch.randperm(num * max(1, NUM_LOSSES // num)) % num
            for rows in order.split(1000):
                losses += self._losses_of_shares(estimator, rows)
        net.mixture.share.fill_(least_loss(*losses.tolist()))
        if not net.mixture.share:
            net.mixture.clear()

    def _losses_of_shares(self, estimator: Any, rows: Tensor) -> Tensor:
        """Sums of losses at shares of 0, 1/2 and 1, over rows of validation."""
        theta, x = self._rows(self.val_indices[rows])
        times, losses = estimator.train_schedule(len(rows)), []
        if self._validation_scores is not None:
            g, known = (part[rows].to(theta.device) for part in self._validation_scores)
            estimator.batch_scores = self._mixed_target, g, known
        for share in (0.0, 0.5, 1.0):
            estimator.net.mixture.share.fill_(share)
            losses.append(estimator.loss(theta, x, times).double().sum().cpu())
        estimator.batch_scores = None
        return torch.stack(losses)

    def _set_anchors(self, estimator: Any) -> None:
        """Centre with scores; without them, only on all that the prior gave."""
        if self._scored is not None and self._mixed_target is not None:
            theta, x, g = (part.to(self._device) for part in self._scored)
            estimator.set_anchors(theta, x, (self._mixed_target, g))
            return
        theta, x = self._rows(self.train_indices[:MAX_ANCHORS])
        unbiased = not self._rows_were_dropped and _look_normal(estimator.to_z(theta))
        estimator.set_anchors(theta if unbiased else None, x)


def least_loss(at_0: float, middle: float, at_1: float) -> float:
    """Where in [0, 1] the parabola through its values at 0, 1/2 and 1 is least.

    Example:
        >>> least_loss(4.0, 1.0, 2.0)  # 8 (share - .625)^2 + .875
        0.625
        >>> least_loss(1.0, 2.0, 4.0), least_loss(2.0, 1.0, 0.5)
        (0.0, 1.0)
    """
    curvature = 2 * (at_0 - 2 * middle + at_1)
    if curvature <= 0:
        return float(at_1 < at_0)
    return min(max(0.5 - (at_1 - at_0) / (2 * curvature), 0.0), 1.0)


def _look_normal(z: Tensor) -> bool:
    """Whether means and variances of `z (batch, dim)` are those of N(0, I)."""
    root = len(z) ** 0.5
    mean, variance = z.mean(0).abs() * root, (z.var(0) - 1).abs() * root / 2**0.5
    return bool((mean < 5).all() and (variance < 7).all())
