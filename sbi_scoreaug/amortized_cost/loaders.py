"""Loaders for fresh pairs: long epochs to train on, fixed rows to validate on.

An epoch has at least STEPS_PER_EPOCH steps, so that patience, which counts epochs, does
not end a training on few simulations early. Validation meets every row as often as it
takes to have VALIDATION_ROWS pairs of rows and targets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sbi_scoreaug.scores.loaders import fixed_order, long_epochs

VALIDATION_ROWS = 1000


def numbered_loaders(
    loaders: tuple[DataLoader, DataLoader],
    rows: tuple[Tensor, Tensor],
    num_simulations: int,
    batch_size: int,
    dataloader_kwargs: dict[str, Any] | None,
) -> tuple[DataLoader, DataLoader]:
    """Rebuild the host's loaders with a last column of row numbers.

    Args:
        loaders: The host's, to train and to validate.
        rows: Row numbers to train on `(num_train,)` and to validate on
            `(num_validation,)`.
        num_simulations: Rows of the data set.
        batch_size: Of training, at most.
        dataloader_kwargs: As in the host class.
    """
    further: dict[str, Any] = {
        "columns": (torch.arange(num_simulations),),
        "dataloader_kwargs": dataloader_kwargs,
    }
    train = long_epochs(loaders[0], rows[0], min(batch_size, len(rows[0])), **further)
    fixed = rows[1].tolist() * math.ceil(VALIDATION_ROWS / len(rows[1]))
    return train, fixed_order(loaders[1], fixed, VALIDATION_ROWS, **further)
