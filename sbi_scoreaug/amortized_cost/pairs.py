r"""Fresh pairs of a simulation and a target, drawn anew in every batch.

With N simulations there are N (N - 1) pairs; none of them is stored. For every row i of
a batch T targets are drawn from

    other simulations     x_j, j uniform over the pool without i itself: d(x_i, x_i) = 0
                          is no draw of the distance between independent simulations
    appended targets      a quarter of the draws, where there are any

and a fraction of them is widened: x_t + widened_scale * s * e, with s the prior
predictive standard deviations and e standard normal (for sets one e for all trials).
Widened targets teach the network about places that simulations do not reach, where
observations of a wrong model lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError

APPENDED_FRACTION = 0.25


@dataclass
class TargetPool:
    """Draws targets for simulations.

    Args:
        x: Valid training simulations `(num_pool, *shape_x)`.
        rows: Their row numbers in the data set, `(num_pool,)`, increasing.
        appended: Appended targets `(num_appended, *shape_x)`, possibly none.
        widened_fraction: Fraction of targets that is widened.
        widened_scale: By how many standard deviations.
        on_sets: Whether an event is a set of trials `(num_trials, dim)`.

    Example:
        >>> x = torch.arange(5.0).unsqueeze(1)
        >>> pool = TargetPool(x, torch.arange(5), x[:0], 0.0, 2.0)
        >>> pool.draw(torch.tensor([3, 3]), 50).eq(3).any()
        tensor(False)
    """

    x: Tensor
    rows: Tensor
    appended: Tensor
    widened_fraction: float
    widened_scale: float
    on_sets: bool = False

    def __post_init__(self) -> None:
        values = self.x.flatten(0, 1) if self.on_sets else self.x
        values = values[values.flatten(1).isfinite().all(dim=1)]
        self.std = values.std(dim=0)

    def draw(
        self,
        index: Tensor,
        num_targets: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw targets for the rows `index` of the data set.

        Args:
            index: Row numbers `(batch,)`.
            num_targets: Targets T for each row.
            generator: Source of randomness; by default torch's global one.

        Returns:
            Targets `(batch, T, *shape_x)`.
        """
        shape = (len(index), num_targets)
        position = torch.searchsorted(self.rows, index).clamp(max=len(self.rows) - 1)
        in_pool = (self.rows[position] == index).unsqueeze(1)
        uniform = torch.rand(shape, generator=generator)
        others = len(self.rows) - in_pool.long()
        chosen = (uniform * others).long().minimum(others - 1)
        chosen = chosen + (in_pool & (chosen >= position.unsqueeze(1))).long()
        targets = self.x[chosen]
        if len(self.appended):
            uniform = torch.rand(shape, generator=generator)
            own = torch.randint(len(self.appended), shape, generator=generator)
            use = _trailing(uniform < APPENDED_FRACTION, targets)
            targets = torch.where(use, self.appended[own], targets)
        if self.widened_fraction == 0:
            return targets
        widen = torch.rand(shape, generator=generator) < self.widened_fraction
        event = (1, *self.std.shape) if self.on_sets else self.std.shape
        noise = torch.randn(*shape, *event, generator=generator) * self.std
        noise = self.widened_scale * noise.to(targets)
        return targets + noise * _trailing(widen, targets)


def _trailing(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(*rows.shape, *(1,) * (like.ndim - rows.ndim))


def check_pair_options(
    targets_per_simulation: int, widened_fraction: float, widened_scale: float
) -> None:
    """Raise `InvalidInputError` unless pairs can be drawn with these options."""
    if targets_per_simulation < 1 or int(targets_per_simulation) != (
        targets_per_simulation
    ):
        raise InvalidInputError(
            "targets_per_simulation: expected a positive whole number, got "
            f"{targets_per_simulation}."
        )
    if not 0 <= widened_fraction <= 1 or not 0 <= widened_scale < math.inf:
        raise InvalidInputError(
            "widened_fraction, widened_scale: expected a fraction from 0 to 1 "
            f"and a finite scale, got {widened_fraction} and {widened_scale}."
        )
