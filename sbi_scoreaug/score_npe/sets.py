"""What a set of observations is: shapes, masks, and what is refused."""

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.composition import require_set


def as_set(x: Tensor, shape: torch.Size) -> Tensor:
    """Return a finite set `(n, *shape)` for a set or one observation.

    Args:
        x: `(n, *shape)` or `shape`.
        shape: Shape of one observation.

    Raises:
        InvalidTypeError: If x is no tensor.
        InvalidInputError: If it has another shape, no or non-finite observations.
    """
    if not isinstance(x, Tensor):
        raise InvalidTypeError(
            f"x: expected a tensor (n, {_list(shape)}), got {type(x).__name__}."
        )
    if x.ndim == len(shape):
        x = x.unsqueeze(0)
    if x.shape[1:] != shape:
        raise InvalidInputError(
            f"x: expected a set (n, {_list(shape)}) or one observation, got shape "
            f"{tuple(x.shape)}. Use sample_batched for several sets."
        )
    require_set(x)
    return x


def as_sets(x: Tensor, mask: Tensor | None, shape: torch.Size) -> list[Tensor]:
    """Return finite sets `(n_b, *shape)`, one for each row.

    Args:
        x: Observations `(B, *shape)`, or sets `(B, n, *shape)`.
        mask: For sets, True where `x` holds an observation, `(B, n)`, or None.
        shape: Shape of one observation.

    Raises:
        InvalidTypeError: If x is no tensor, or the mask is not one of booleans or of
            zeros and ones.
        InvalidInputError: If a shape does not fit, or a set has no or non-finite
            observations.
    """
    if not isinstance(x, Tensor):
        given = type(x).__name__
        unequal = " Pad sets of unequal sizes, and give a mask." * isinstance(
            x, (list, tuple)
        )
        raise InvalidTypeError(f"x: expected a tensor, got {given}.{unequal}")
    lead = x.shape[: x.ndim - len(shape)]
    if x.shape[len(lead) :] != shape or len(lead) not in (1, 2) or len(x) == 0:
        raise InvalidInputError(
            f"x: expected observations (B, {_list(shape)}) or sets "
            f"(B, n, {_list(shape)}), got shape {tuple(x.shape)}."
        )
    if mask is None:
        sets = list(x if len(lead) == 2 else x[:, None])
    else:
        mask = _checked_mask(mask, lead).to(x.device)
        sets = [one[keep] for one, keep in zip(x, mask, strict=True)]
    return [as_set(one.float(), shape) for one in sets]


def _checked_mask(mask: Tensor, lead: torch.Size) -> Tensor:
    if not isinstance(mask, Tensor):
        raise InvalidTypeError(
            f"mask: expected a tensor of booleans, got {type(mask).__name__}."
        )
    if mask.shape != lead or len(lead) != 2:
        raise InvalidInputError(
            f"mask: expected the shape (B, n) of sets x, {tuple(lead)}, got "
            f"{tuple(mask.shape)}."
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise InvalidTypeError("mask: expected booleans, got other numbers.")
    empty = (~mask.bool().any(1)).nonzero().flatten().tolist()
    if empty:
        raise InvalidInputError(
            f"mask: expected at least one observation in each set, got none in sets "
            f"{empty[:10]}. Leave these sets out."
        )
    return mask.bool()


def _list(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))
