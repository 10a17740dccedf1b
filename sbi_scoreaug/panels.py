"""Axes for pictures: those that were given, or new ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbi_scoreaug.errors import InvalidInputError

PANEL = (3.6, 3.0)  # inches


def panels(
    ax: Any, num: int, size: tuple[float, float] = PANEL
) -> tuple[Any, np.ndarray]:
    """Return a matplotlib figure and `num` of its axes.

    Args:
        ax: The axes to be drawn on, one or an array; None for a new row of panels.
        num: The number of axes that are needed.
        size: Width and height of a new panel, in inches.

    Returns:
        The figure and the axes `(num,)`.

    Raises:
        InvalidInputError: Another number of axes.
    """
    from matplotlib import pyplot as plt

    if ax is None:
        figure, axes = plt.subplots(
            1,
            num,
            figsize=(size[0] * num, size[1]),
            layout="constrained",
            squeeze=False,
        )
        return figure, axes[0]
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != num:
        raise InvalidInputError(f"ax: expected {num} axes, got {len(axes)}.")
    return axes[0].figure, axes
