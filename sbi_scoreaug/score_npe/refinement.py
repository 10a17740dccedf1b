"""What a trained network is given before it is used: a mixture beside it, a centre.

Both need simulations and take no steps of the optimiser. The mixture's share is decided
on the rows of validation (`mixture`); the centre is taken off in sets (`centring`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.mixed_training import MixedTargetTraining
from sbi_scoreaug.score_npe.network import PosteriorScoreNet

# That the mixture is fitted to and that scores are centred on: the same rows, since the
# errors of both then cancel. A centre on a third of 30,000 simulations had up to ten
# times the squared MMD, more than none.
MAX_ROWS = 100_000
NUM_LOSSES = 20_000  # that decide its share


class Refinement(MixedTargetTraining):
    """Mixin that finishes networks after training; put it in front of `NPSE`."""

    _rows_were_dropped: bool = False

    def _unrefine(self) -> None:
        """Let training start or go on with the network alone."""
        estimator = self._neural_net
        if estimator is not None:
            estimator.empty()
            if isinstance(estimator.net, PosteriorScoreNet):
                estimator.net.mixture.empty()

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
        mixture, embed = estimator.eval().net.mixture, estimator.net.embed
        theta, x = self._rows(self.train_indices[:MAX_ROWS])
        features = torch.cat([estimator.net.features(rows) for rows in x.split(1000)])
        if not mixture.fit(estimator.to_z(theta), features):
            return
        theta, x = self._rows(self.val_indices)
        z, embedded = estimator.to_z(theta), torch.cat(list(map(embed, x.split(1000))))
        products = torch.zeros(2, dtype=torch.float64)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            rows = torch.arange(len(z)).repeat(max(1, NUM_LOSSES // len(z)))
            for part in rows.split(1000):
                products += self._products(estimator, z, embedded, part)
        mixture.share.fill_(float(products[0] / products[1]))
        mixture.share.nan_to_num_(0.0).clamp_(0.0, 1.0)
        if not mixture.share:
            mixture.empty()

    def _products(
        self, estimator: Any, z: Tensor, embedded: Tensor, rows: Tensor
    ) -> Tensor:
        """Sums of w d (target - network) and w d^2, with d = mixture - network.

        The loss w (network + share d - target)^2 is least at their ratio.
        """
        if self._validation_scores is not None:
            g, known = (part[rows].to(z.device) for part in self._validation_scores)
            estimator.batch_scores = self._mixed_target, g, known
        times = estimator.train_schedule(len(rows))
        noise = torch.randn(len(rows), z.shape[1], device=z.device).to(z)
        z_t, target, weight = estimator.denoising(z[rows], times, noise)
        estimator.batch_scores = None
        m, s = estimator.mean_t_fn(times), estimator.std_fn(times)
        scores = []
        for share in (0.0, 1.0):
            estimator.net.mixture.share.fill_(share)
            scores.append(estimator.net.pairs(z_t, embedded[rows], m, s) - z_t)
        network, gap = scores[0], scores[1] - scores[0]
        products = weight * gap * (target - network), weight * gap**2
        return torch.stack([p.double().sum().cpu() for p in products])

    def _set_anchors(self, estimator: Any) -> None:
        """Centre with scores; without them, only on all that the prior gave."""
        if self._scored is not None and self._mixed_target is not None:
            theta, x, g = (part.to(self._device) for part in self._scored)
            estimator.set_anchors(theta, x, (self._mixed_target, g))
            return
        theta, x = self._rows(self.train_indices[:MAX_ROWS])
        unbiased = not self._rows_were_dropped and _look_normal(estimator.to_z(theta))
        estimator.set_anchors(theta if unbiased else None, x)


def _look_normal(z: Tensor) -> bool:
    """Whether means and variances of `z (batch, dim)` are those of N(0, I)."""
    root = len(z) ** 0.5
    mean, variance = z.mean(0).abs() * root, (z.var(0) - 1).abs() * root / 2**0.5
    return bool((mean < 5).all() and (variance < 7).all())
