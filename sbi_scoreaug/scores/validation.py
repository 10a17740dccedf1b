"""What simulations and scores have to be, before any of them is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError


def validate_score(score: Any, theta: Tensor, name: str = "score") -> Tensor:
    """Return a float32 copy of `score` after checking its type, shape and content.

    Args:
        score: What the user gave, `(num_simulations, dim_theta)`; NaN where unknown.
        theta: Parameters `(num_simulations, dim_theta)`.
        name: The argument's name in messages.

    Raises:
        InvalidTypeError: `score` is no floating tensor.
        InvalidInputError: Its shape is not theta's, it is NaN throughout, or infinite.
    """
    if not isinstance(score, Tensor) or not score.is_floating_point():
        got = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise InvalidTypeError(
            f"{name}: expected a floating torch.Tensor of shape {tuple(theta.shape)}, "
            f"got {got}. Convert it with torch.as_tensor(..., dtype=torch.float32)."
        )
    if score.shape != theta.shape:
        raise InvalidInputError(
            f"{name}: expected the shape of theta {tuple(theta.shape)} (one row a "
            f"simulation, one column a parameter), got {tuple(score.shape)}."
        )
    # A copy, as the host makes of theta and x: users may fill a buffer again.
    score = score.detach().to(torch.float32, copy=True)
    if score.isinf().any():
        raise InvalidInputError(
            f"{name}: expected finite numbers in float32, got "
            f"{int(score.isinf().sum())} infinite components. Set components that are "
            "unknown to NaN: they are left out."
        )
    if score.isnan().all():
        raise InvalidInputError(
            f"{name}: expected at least one known component, got NaN throughout. "
            "Leave `score` out to train without scores."
        )
    return score


def as_column(values: Any) -> Any:
    """Return flat values `(batch,)` as a column `(batch, 1)`, others as they are."""
    flat = isinstance(values, Tensor) and values.ndim == 1
    return values.unsqueeze(1) if flat else values


def validate_dim_theta(theta: Any, prior: Any) -> None:
    """Raise unless theta has as many columns as the prior has parameters.

    Nothing is drawn from the prior: one that does not say its `event_shape`, and theta
    that is no matrix, are left to the host.

    Args:
        theta: Parameters `(num_simulations, dim_theta)`.
        prior: The trainer's prior, or None.

    Raises:
        InvalidInputError: Another number of columns.
    """
    shape = getattr(prior, "event_shape", ())
    if len(shape) != 1 or not isinstance(theta, Tensor) or theta.ndim != 2:
        return
    if theta.shape[1] != shape[0]:
        raise InvalidInputError(
            f"theta: expected a column for each of the prior's {shape[0]} parameters, "
            f"got {tuple(theta.shape)}. Give the parameters that were drawn from it."
        )
