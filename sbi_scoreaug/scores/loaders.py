"""Data loaders with more columns, fetched a batch at a time.

sbi's loaders hold `(theta, x, prior_mask)` and collate row by row, which takes about a
fifth of an epoch of a small network. Here the same samplers index whole batches
(`__getitems__`), further columns ride along at the end, and a sampler may pass over
the data several times an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sbi_scoreaug.errors import InvalidInputError

STEPS_PER_EPOCH = 50


class BatchDataset(TensorDataset):
    """A `TensorDataset` that hands out a whole batch by one indexing.

    Example:
        >>> dataset = BatchDataset(torch.arange(4.0), torch.zeros(4, 2))
        >>> [column.shape for column in dataset.__getitems__([2, 0, 3])]
        [torch.Size([3]), torch.Size([3, 2])]
    """

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Return every column at `indices`, each `(len(indices), ...)`."""
        rows = torch.as_tensor(indices)
        return tuple(column[rows] for column in self.tensors)


class RepeatSampler(Sampler[int]):
    """Passes over `indices` `num_passes` times an epoch, each time newly shuffled.

    A pass ends with its last whole batch: a batch across two passes could hold a row
    twice, and a row would meet its own theta as a contrasting one.

    Example:
        >>> sorted(RepeatSampler([3, 5], num_passes=2))
        [3, 3, 5, 5]
        >>> len(RepeatSampler([3, 5, 7], num_passes=2, batch_size=2))
        4
    """

    def __init__(
        self, indices: Sequence[int], num_passes: int, batch_size: int = 1
    ) -> None:
        self._indices = torch.as_tensor(indices)
        self._num_passes = num_passes
        self._rows_a_pass = len(self._indices) // batch_size * batch_size

    def __len__(self) -> int:
        """Return the number of rows an epoch."""
        return self._rows_a_pass * self._num_passes

    def __iter__(self) -> Iterator[int]:
        """Yield the row numbers of one epoch."""
        for _ in range(self._num_passes):
            order = torch.randperm(len(self._indices))[: self._rows_a_pass]
            yield from self._indices[order].tolist()


class CollateHostColumns:
    """Applies a user's `collate_fn` to sbi's three columns and stacks the others.

    Written as a class, not a closure, so that loader workers can unpickle it.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, rows: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the user's batch followed by the further columns."""
        host_batch = self._collate_fn([row[:3] for row in rows])
        found = [len(column) for column in host_batch]
        if found != [len(rows)] * 3:
            raise InvalidInputError(
                "collate_fn: expected (theta, x, prior_mask) with the rows that it was "
                f"given, {len(rows)} each, got columns of {found} rows. Scores travel "
                "beside these rows: return three columns and keep their order."
            )
        others = zip(*(row[3:] for row in rows), strict=True)
        return (*host_batch, *(torch.stack(column) for column in others))


def _as_fetched(batch: Any) -> Any:
    return batch


def rebuild_loader(
    loader: DataLoader,
    columns: tuple[Tensor, ...] = (),
    dataloader_kwargs: dict[str, Any] | None = None,
    **changes: Any,
) -> DataLoader:
    """Return `loader` with `columns` appended, `changes` made, and batches indexed.

    Args:
        loader: A loader of sbi's trainers.
        columns: Further tensors, each with as many rows as the data set.
        dataloader_kwargs: What the user gave to `train`; it wins over `changes`.
        changes: Further arguments of `DataLoader`, e.g. `sampler`.
    """
    dataset = cast(TensorDataset, loader.dataset)
    tensors = (*dataset.tensors, *columns)
    user = dict(dataloader_kwargs or {})
    changes = {
        "sampler": loader.sampler,
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        **changes,
        **user,
    }
    if "collate_fn" in user:
        changes["collate_fn"] = CollateHostColumns(user["collate_fn"])
        return DataLoader(TensorDataset(*tensors), **changes)
    return DataLoader(BatchDataset(*tensors), collate_fn=_as_fetched, **changes)


def long_epochs(
    loader: DataLoader,
    rows: Tensor,
    batch_size: int,
    columns: tuple[Tensor, ...] = (),
    dataloader_kwargs: dict[str, Any] | None = None,
) -> DataLoader:
    """Return a training loader whose epochs have at least STEPS_PER_EPOCH steps.

    sbi's patience counts epochs; with few simulations these are a few steps each.

    Args:
        loader: As in `rebuild_loader`.
        rows: Row numbers to train on `(num_train,)`.
        batch_size: Of training.
        columns: As in `rebuild_loader`.
        dataloader_kwargs: As in `rebuild_loader`; its sampler wins.
    """
    passes = math.ceil(STEPS_PER_EPOCH / max(1, len(rows) // batch_size))
    sampler = RepeatSampler(rows.tolist(), passes, batch_size)
    return rebuild_loader(
        loader, columns, dataloader_kwargs, sampler=sampler, batch_size=batch_size
    )


def fixed_order(
    loader: DataLoader,
    rows: Sequence[int],
    batch_size: int,
    columns: tuple[Tensor, ...] = (),
    dataloader_kwargs: dict[str, Any] | None = None,
) -> DataLoader:
    """Return a validation loader with the same batches, of equal size, every epoch.

    So the epochs that are compared differ by the network alone.

    Args:
        loader: As in `rebuild_loader`.
        rows: Row numbers to validate on, in this order.
        batch_size: The largest.
        columns: As in `rebuild_loader`.
        dataloader_kwargs: As in `rebuild_loader`; its sampler wins.
    """
    equal = len(rows) // math.ceil(len(rows) / batch_size)
    return rebuild_loader(
        loader, columns, dataloader_kwargs, sampler=rows, batch_size=equal
    )
