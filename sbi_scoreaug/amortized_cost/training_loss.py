r"""The training loss: squared errors of the cost on fresh pairs.

    loss_i = mean_t (d(x_i, x_t) - f(theta_i, x_t))^2 / scale^2

over the targets x_t that simulation i meets in this batch. The labels d(x_i, x_t) are
computed as pairs are drawn and never stored. A network that regresses on moments needs
none. Failed simulations have no distance: something valid stands in for them, and the
network that knows of failures ignores it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.distance_checks import is_valid
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.pairs import TargetPool
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.errors import InvalidInputError


@dataclass
class TrainingLoss:
    """Losses of batches, from pairs that it draws and labels.

    Args:
        pool: Where targets come from.
        distance: The distance, fitted.
        num_targets: Targets T that a simulation meets in a batch.
    """

    pool: TargetPool
    distance: Distance
    num_targets: int

    def __call__(
        self,
        cost_net: CostEstimator | PenalizedCost,
        theta: Tensor,
        x: Tensor,
        index: Tensor,
        generator: torch.Generator | None = None,
        score: Tensor | None = None,
    ) -> Tensor:
        """Return losses `(batch,)`.

        Args:
            cost_net: The network.
            theta: Parameters `(batch, dim_theta)`.
            x: Their simulations `(batch, *shape_x)`.
            index: Their row numbers in the data set, `(batch,)`.
            generator: Source of the pairs; by default torch's global one.
            score: Their scores `(batch, dim_theta)`, 0 where unknown, if any.
        """
        options: dict[str, Tensor | None] = {"score": score}
        if isinstance(cost_net, PenalizedCost):
            failed = ~is_valid(self.distance, x)
            options["failed"] = failed
            stand_in = self.pool.x[:1].to(x)
            x = torch.where(failed.reshape(-1, *(1,) * (x.ndim - 1)), stand_in, x)
        targets, distances = x[:, None], x.new_zeros(len(x), 1)
        if cost_net.needs_pairs:
            targets, distances = self.label(x, index, generator)
        return cost_net.loss(targets, theta, x=x, distances=distances, **options)

    def label(
        self, x: Tensor, index: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return targets `(batch, T, *shape_x)` and their distances `(batch, T)`.

        Raises:
            InvalidInputError: The distance is NaN or infinite for a pair.
        """
        targets = self.pool.draw(index.cpu(), self.num_targets, generator).to(x)
        with torch.no_grad():
            repeated = x.repeat_interleave(self.num_targets, dim=0)
            distances = self.distance(repeated, targets.flatten(0, 1))
        if not distances.isfinite().all():
            raise InvalidInputError(
                "distance: expected finite values, got NaN or infinity for "
                f"{int((~distances.isfinite()).sum())} of {len(distances)} pairs of a "
                "simulation and a target. Bound it, or train with widened_fraction=0 "
                "if it cannot compare widened targets."
            )
        return targets, distances.unflatten(0, (len(x), self.num_targets))
