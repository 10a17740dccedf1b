"""Typed errors: what was expected, what came, and what to do.

Every error is a `ScoreaugError` and also the built-in that fits, so that
`except ValueError` keeps working in code that does not know this package.
"""

import warnings
from inspect import currentframe


class ScoreaugError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInputError(ScoreaugError, ValueError):
    """An argument has the right type and a wrong value (shape, range, name)."""


class InvalidTypeError(ScoreaugError, TypeError):
    """An argument has a type that cannot be used."""


class InvalidStateError(ScoreaugError, RuntimeError):
    """The call is right, but not now: something has to happen before it."""


class SimulationTimeoutError(ScoreaugError, TimeoutError):
    """A simulator did not answer in the time that it was given."""


class ScoreWarning(UserWarning):
    """The scores look wrong, or part of them cannot be used."""


def warn(message: str, category: type[Warning] = ScoreWarning) -> None:
    """Warn in the name of the first caller outside sbi and this package."""
    frame, level = currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(
        ("sbi.", "sbi_scoreaug")
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def require_positive(name: str, value: object, integer: bool = False) -> None:
    """Raise a typed error unless `value` is a positive number, or integer."""
    kinds = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InvalidTypeError(
            f"{name}: expected a positive {'integer' if integer else 'number'}, got "
            f"{value!r}."
        )
    if not 0 < value < float("inf"):
        raise InvalidInputError(f"{name}: expected a positive number, got {value!r}.")
