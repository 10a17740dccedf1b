"""Axes for pictures, those that were given or new ones; and files for pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path
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


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a matplotlib figure to a file, as a whole or not at all.

    Args:
        figure: The figure.
        path: The file; its suffix says the format.
        dpi: Dots an inch.

    Raises:
        OSError: The file cannot be written; a picture that was there is kept.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=dpi)
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_bytes(content.getvalue())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}).") from error
