"""What is asked of a distance and of the simulations that it compares.

A user's distance must give a finite value for each row of a batch, at least its
declared bound and independent of the other rows: averages over the batch are the usual
mistake. A simulation is valid if the distance can compare it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.set_distances import present_trials
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

CHECKED_ROWS = 6


def check_event_shape(distance: Distance, x: Tensor) -> None:
    """Raise if events of `x (batch, *shape_x)` are not what the distance compares.

    Raises:
        InvalidInputError: Points for a distance on sets, or sets for one on points.
    """
    shape = tuple(x.shape[1:])
    name = type(distance).__name__
    if distance.on_sets and len(shape) != 2:
        raise InvalidInputError(
            f"x: expected sets of trials (batch, num_trials, dim) for {name}, got "
            f"events of shape {shape}. Stack the trials along the second axis, or use "
            "a distance on points such as 'mse'."
        )
    if not distance.on_sets and len(shape) == 2 and has_missing_trials(x).any():
        raise InvalidInputError(
            f"x: expected points for {name}, got sets of trials with missing ones "
            "(rows of NaN). Use a distance on sets such as 'mmd' or 'energy'."
        )


@torch.no_grad()
def check_distance(distance: Distance, x: Tensor) -> None:
    """Call the distance on a few valid simulations and check what it returns.

    Args:
        distance: The distance, fitted.
        x: Valid simulations `(num_simulations, *shape_x)`.

    Raises:
        InvalidTypeError: It does not return a floating tensor.
        InvalidInputError: A wrong shape, NaN or infinity, values below the declared
            bound, or a row's value that depends on the other rows of the batch.
    """
    x = x[:CHECKED_ROWS]
    x_t = x.roll(1, dims=0)
    values = distance(x, x_t)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise InvalidTypeError(
            "distance: expected a floating tensor (batch,), got "
            f"{values.dtype if isinstance(values, Tensor) else type(values).__name__}."
        )
    if values.shape != (len(x),):
        raise InvalidInputError(
            f"distance: expected shape (batch,) = ({len(x)},), got "
            f"{tuple(values.shape)}. Average over the components of each row."
        )
    if not values.isfinite().all():
        raise InvalidInputError(
            "distance: expected finite values, got NaN or infinity between two valid "
            "simulations."
        )
    if (values < distance.lower_bound - 1e-5).any():
        raise InvalidInputError(
            f"distance: expected at least its lower bound {distance.lower_bound}, got "
            f"{values.min().item():.3g}."
        )
    alone = torch.cat([distance(x[i : i + 1], x_t[i : i + 1]) for i in range(len(x))])
    if not torch.allclose(values, alone, rtol=1e-3, atol=1e-5 * _spread(values)):
        raise InvalidInputError(
            "distance: expected each row's value to depend on that row alone, got "
            "other values when rows come one by one. Reduce over the components of a "
            "row, never over the batch."
        )


def has_missing_trials(x: Tensor) -> Tensor:
    """Whether sets `x (batch, num_trials, dim)` have missing trials but not only."""
    present = present_trials(x)
    return present.any(dim=1) & ~present.all(dim=1)


def is_valid(distance: Distance, x: Tensor) -> Tensor:
    """Return which simulations `(batch, *shape_x)` are usable, `(batch,)`.

    A point needs all components finite. A set needs two trials, and each trial either
    finite throughout or missing (NaN) throughout.
    """
    if not distance.on_sets or x.ndim != 3:
        return x.flatten(1).isfinite().all(dim=1)
    present, missing = x.isfinite().all(dim=2), x.isnan().all(dim=2)
    return (present | missing).all(dim=1) & (present.sum(dim=1) >= 2)


def _spread(values: Tensor) -> float:
    return max(1e-12, values.abs().max().item())
