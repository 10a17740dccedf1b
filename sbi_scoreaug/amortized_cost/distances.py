"""The names of the built-in distances, and what may stand in their place.

`distance` says what a distance is, `point_distances` and `set_distances` hold the
formulas, `distance_checks` what is asked of a distance and of the data.
"""

from __future__ import annotations

from typing import Any

from sbi_scoreaug.amortized_cost.distance import CallableDistance, Distance
from sbi_scoreaug.amortized_cost.point_distances import (
    AbsoluteDistance,
    EuclideanDistance,
    HuberDistance,
    MahalanobisDistance,
    QuadraticDistance,
)
from sbi_scoreaug.amortized_cost.set_distances import EnergyDistance, MMDDistance
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

DISTANCES: dict[str, type[Distance]] = {
    "mse": QuadraticDistance,
    "mae": AbsoluteDistance,
    "huber": HuberDistance,
    "euclidean": EuclideanDistance,
    "mahalanobis": MahalanobisDistance,
    "energy": EnergyDistance,
    "mmd": MMDDistance,
}


def resolve_distance(distance: Any) -> Distance:
    """Return the distance of that name, or the function or object that was given.

    Raises:
        InvalidInputError: An unknown name.
        InvalidTypeError: Neither a name nor callable.

    Example:
        >>> resolve_distance("mmd").on_sets
        True
    """
    if isinstance(distance, Distance):
        return distance
    if isinstance(distance, str):
        if distance not in DISTANCES:
            raise InvalidInputError(
                f"distance: expected one of {tuple(DISTANCES)} or a function "
                f"(x, x_t) -> (batch,), got {distance!r}."
            )
        return DISTANCES[distance]()
    if callable(distance) and not isinstance(distance, type):
        return CallableDistance(distance)  # type: ignore[arg-type]
    raise InvalidTypeError(
        f"distance: expected one of {tuple(DISTANCES)}, a Distance or a function "
        f"(x, x_t) -> (batch,), got {distance!r}."
    )
