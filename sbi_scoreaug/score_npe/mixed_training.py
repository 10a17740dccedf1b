"""The mixin that gives exact scores to the training of a score network.

Scores travel as in every trainer of this package (`ScoreCarrier`); here they are turned
into posterior scores in the network's coordinates, once before training, and handed to
the estimator's loss batch by batch. What is made of them is in `mixed_target`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.coordinates import NormalCoordinates
from sbi_scoreaug.score_npe.mixed_target import (
    MixedTarget,
    least_signal,
    posterior_score,
)
from sbi_scoreaug.scores.carrier import ScoreCarrier

MAX_ANCHORS = 10_000
MIN_ANCHORS = 20  # for each coefficient of the regression; fewer mislead


class MixedTargetTraining(ScoreCarrier):
    """Mixin of the mixed target; put it in front of `NPSE`."""

    _coordinates: NormalCoordinates
    _max_set_size: int = 1
    _mixed_target: MixedTarget | None = None
    # theta, x and g of up to MAX_ANCHORS training rows that have all of them, if enough
    _scored: tuple[Tensor, Tensor, Tensor] | None = None

    # g `(num_validation, dim)` of the validation rows, and whether it is known
    _validation_scores: tuple[Tensor, Tensor] | None = None

    def _validate_before_storing(self, theta: Tensor, x: Tensor) -> None:
        """Refuse scores of sets, and where the prior has no gradient."""
        if self._max_set_size > 1:
            raise InvalidInputError(
                f"score: expected none with max_set_size={self._max_set_size}, got "
                "one: the network learns from subsets, whose scores are unknown. Train "
                "on single observations, max_set_size=1."
            )
        if theta.ndim == 2:
            g = torch.zeros_like(theta[:2])
            posterior_score(g, theta[:2], self._coordinates, self._prior)

    def _columns(self, starting_round: int) -> tuple[Tensor, ...]:
        """Return posterior scores g in the network's coordinates, and rows with one."""
        self._scored, self._validation_scores = None, None
        columns = super()._columns(starting_round)
        if not columns:
            return ()
        score, mask = columns
        theta, x, _ = self.get_simulations(starting_round)
        g = posterior_score(score, theta, self._coordinates, self._prior)
        known = mask.all(1) & g.isfinite().all(1)
        g = g.nan_to_num(0.0)
        rows = self.train_indices[known[self.train_indices].cpu()]
        if not len(rows):
            return ()
        least = None
        if "joint" in self._score_kinds:
            least = least_signal(self._coordinates.to_normal(theta[rows]), x[rows])
        target = MixedTarget.fit(g[rows], known[rows], least)
        self._mixed_target = target.to(self._device)
        held_out = self.val_indices
        self._validation_scores = g[held_out], known[held_out]
        if len(rows) >= MIN_ANCHORS * (1 + theta.shape[1]):
            rows = rows[:MAX_ANCHORS]
            self._scored = theta[rows], x[rows], g[rows]
        return g, known

    def _get_losses(self, batch: Sequence[Tensor], loss_args: Any) -> Tensor:
        """Return the host's losses; with scores their target is mixed."""
        if len(batch) <= 3:
            return super()._get_losses(batch, loss_args)
        net: Any = self._neural_net
        # The host repeats a validation batch for each of its times.
        repeats = 1 if loss_args.times is None else len(loss_args.times)
        g = batch[3].to(self._device).repeat(repeats, 1)
        known = batch[4].to(self._device).repeat(repeats)
        net.batch_scores = self._mixed_target, g, known
        net.trained_with_scores.fill_(self._scored is not None)
        try:
            return super()._get_losses(batch[:3], loss_args)
        finally:
            net.batch_scores = None
