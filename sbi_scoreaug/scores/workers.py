"""Runs batches here or in joblib's workers, and says what became of each.

Results come as they are finished, with the batch's number. Where failures are to be
survived, a batch that raises comes back as a `Failure`, and one that hangs ends the
run: the workers are stopped and the batches that have not come are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError as JoblibTimeoutError
from typing import Any, NamedTuple, cast

import torch
from joblib import Parallel, delayed
from torch import Tensor

from sbi_scoreaug.errors import SimulationTimeoutError
from sbi_scoreaug.scores.batch import Batch, simulate_batch


class Failure(NamedTuple):
    """What a simulator raised, as text: not every exception can be sent."""

    message: str


Outcome = tuple[int, "Batch | Failure"]


def batch_seeds(num_batches: int) -> list[int]:
    """Distinct 32-bit seeds, from the global generator (just seeded)."""
    start = int(torch.randint(2**32, (1,)))
    return [(start + b * 0x9E3779B1) % 2**32 for b in range(num_batches)]


def run_batches(
    simulator: Callable[..., Any],
    batches: tuple[Tensor, ...],
    num_workers: int,
    timeout: float | None = None,
    keep_failures: bool = False,
) -> Iterator[Outcome]:
    """Yield the number and the outcome of every batch, as they are finished.

    Args:
        simulator: As in `simulate_with_score`.
        batches: Parameters `(batch, dim_theta)` each.
        num_workers: As in `simulate_with_score`.
        timeout: Seconds without any finished batch after which workers are stopped.
        keep_failures: Whether a batch that raises comes as a `Failure`.

    Raises:
        SimulationTimeoutError: No batch was finished for `timeout` seconds.
    """
    seeds = batch_seeds(len(batches))
    one = attempt_batch if keep_failures else numbered_batch
    if num_workers == 1:
        numbered = enumerate(zip(batches, seeds, strict=True))
        yield from (one(b, simulator, theta, seed) for b, (theta, seed) in numbered)
        return
    # Arrays travel faster than tensors between processes.
    calls = (
        delayed(one)(b, simulator, batch.detach().cpu().numpy(), seed)
        for b, (batch, seed) in enumerate(zip(batches, seeds, strict=True))
    )
    # Batches that joblib binds together would be lost together.
    bound = "auto" if timeout is None and not keep_failures else 1
    options: dict[str, Any] = {"timeout": timeout, "batch_size": bound}
    if timeout is not None:  # it is not for the start of the workers
        Parallel(num_workers)(delayed(wake)(seed) for seed in seeds[:32])
    try:
        parallel = Parallel(num_workers, return_as="generator_unordered", **options)
    except ValueError:  # Some backends (Ray, multiprocessing) return lists only.
        parallel = Parallel(num_workers, **options)
    try:
        yield from cast(Iterable[Outcome], parallel(calls))
    except JoblibTimeoutError as error:
        raise SimulationTimeoutError(
            f"timeout: expected a batch of simulations within {timeout:g} seconds, got "
            "none: a simulator hangs, or needs longer. Raise `timeout`, lower "
            "`simulation_batch_size`, or keep what is finished with "
            "return_partial=True."
        ) from error


def wake(seed: int) -> int:
    """Do nothing, in a worker that has imported this package by then."""
    return seed


def numbered_batch(number: int, *batch: Any) -> Outcome:
    """Return the number and the result of one batch."""
    return number, simulate_batch(*batch)


def attempt_batch(number: int, *batch: Any) -> Outcome:
    """Return the number and the result of one batch, or what it raised."""
    try:
        return numbered_batch(number, *batch)
    except Exception as error:  # A simulator is foreign code: whatever it raises.
        return number, Failure(f"{type(error).__name__}: {error}")
