r"""Simulate, and keep the score of every simulation beside it.

    theta_i ~ proposal,   x_i ~ p(x|theta_i),   s_i = grad_theta log p(x_i|theta_i)

The twin of sbi's `simulate_for_sbi`: the same arguments, order and defaults, and at
one seed the same theta. Where the score comes from, in this order of preference:

1. the simulator returns the pair (x, score). The only way for a *joint* score
   grad_theta log p(x, z|theta), whose latent z is known to the simulator alone;
2. it has a method `score(theta, x)`;
3. it has a method `log_prob(theta, x)`: the score follows by autodiff.

*One seed, one result.* Batch b runs under a seed of its own, (a + b g) mod 2^32 with
a drawn from the seeded generator and g odd: distinct for all batches of a call,
whichever worker takes them. So the result depends on the seed and on the batch size,
not on the number of workers, for simulators that draw from the global generators of
torch, numpy or random (one with a generator of its own keeps its own order). (sbi draws
them with replacement from 10^6 values, and by one continued stream if there is one
worker: its x differ from ours.)

A score is a number about one simulation, hence it is taken in the worker that ran
it. NaN in x passes, as in sbi; its score is NaN then, without a call to `score`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sbi.utils.sbiutils import seed_all_backends
from torch import Tensor
from tqdm.auto import tqdm

from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
    SimulationTimeoutError,
    require_positive,
    warn,
)
from sbi_scoreaug.scores.batch import Batch
from sbi_scoreaug.scores.workers import Failure, run_batches


def simulate_with_score(
    simulator: Callable[..., Any],
    proposal: Any,
    num_simulations: int,
    num_workers: int = 1,
    simulation_batch_size: int | None = 1,
    seed: int | None = None,
    show_progress_bar: bool = True,
    *,
    timeout: float | None = None,
    return_partial: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters, simulations and the scores of these simulations.

    All other arguments as in `sbi.inference.simulate_for_sbi`. Batches go through
    `joblib.Parallel` when `num_workers != 1`, so `joblib.parallel_config` chooses the
    backend (Dask, Ray, ...). Threads of one process take turns, since they share the
    generators that are seeded: use processes for speed.

    Args:
        simulator: Takes theta `(simulation_batch_size, dim_theta)` as a tensor, and
            returns x `(simulation_batch_size, *shape_x)` or the pair (x, score),
            tensors or arrays. With x alone it needs a method `score(theta, x)`
            `-> (batch, dim_theta)` or `log_prob(theta, x) -> (batch,)`. Do not wrap it
            with sbi's `process_simulator`, which hides both.
        proposal: As in sbi: anything with `sample((num_simulations,))`.
        num_simulations: As in sbi.
        num_workers: As in sbi. Does not change the result.
        simulation_batch_size: As in sbi.
        seed: As in sbi. None: drawn from torch's generator.
        show_progress_bar: As in sbi.
        timeout: Seconds without any finished batch after which the workers are
            stopped; None to wait for ever. Needs `num_workers` other than 1: nothing
            can stop a simulator in this process. (joblib's threads cannot be stopped
            either, and go on in the background.)
        return_partial: Whether to keep what is finished when simulations raise, time
            out or are interrupted from the keyboard. The others are left out, with a
            warning; fewer than `num_simulations` rows are returned. Backends of joblib
            that return lists only (multiprocessing, Ray) keep nothing on a timeout.

    Returns:
        theta `(num_simulations, dim_theta)`, x `(num_simulations, *shape_x)` and score
        `(num_simulations, dim_theta)`: float32, on the CPU. NaN marks an unknown
        component of the score.

    Raises:
        InvalidTypeError: If the simulator cannot be called, or has no score to give.
        InvalidInputError: If theta, x or the score has a wrong shape, or a number is
            out of range.
        SimulationTimeoutError: If no batch is finished for `timeout` seconds.
        InvalidStateError: If nothing is left to be returned with `return_partial`.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> def simulator(theta):
        ...     noise = torch.randn_like(theta)
        ...     return theta + noise, noise  # x ~ N(theta, I): score = x - theta
        >>> theta, x, score = simulate_with_score(
        ...     simulator, BoxUniform(-torch.ones(2), torch.ones(2)), 8, seed=0,
        ...     show_progress_bar=False)
        >>> torch.allclose(score, x - theta, atol=1e-6)
        True
    """
    _require_arguments(simulator, num_simulations, simulation_batch_size)
    _require_timeout(timeout, num_workers)
    if num_simulations == 0:
        return torch.zeros(0), torch.zeros(0), torch.zeros(0)
    seed_all_backends(seed)
    theta = proposal.sample((num_simulations,))
    if theta.ndim != 2:
        raise InvalidInputError(
            "proposal must sample theta of shape (num_simulations, dim_theta), got "
            f"{tuple(theta.shape)}. Give a scalar prior an event dimension, for "
            "example with sbi.utils.process_prior."
        )
    batches = torch.split(theta, simulation_batch_size or num_simulations)
    finished: dict[int, Batch | Failure] = {}
    stopped: BaseException | None = None
    with tqdm(total=num_simulations, disable=not show_progress_bar) as progress:
        try:
            for number, outcome in run_batches(
                simulator, batches, num_workers, timeout, return_partial
            ):
                finished[number] = outcome
                progress.update(len(batches[number]))
        except (SimulationTimeoutError, KeyboardInterrupt) as error:
            if not return_partial:
                raise
            stopped = error
    if return_partial:
        batches, finished = _keep_finished(batches, finished, stopped)
    x, score = _concatenate([finished[number] for number in range(len(batches))])
    _warn_unusable(x, score)
    theta = torch.cat(batches)
    return theta.detach().to("cpu", torch.float32), x, score


def _require_timeout(timeout: float | None, num_workers: int) -> None:
    if timeout is None:
        return
    require_positive("timeout", timeout)
    if num_workers == 1:
        raise InvalidInputError(
            "timeout: expected num_workers other than 1, got 1: a simulator in this "
            "process cannot be stopped. Use num_workers=2, or leave timeout out."
        )


def _keep_finished(
    batches: tuple[Tensor, ...],
    finished: dict[int, Batch | Failure],
    stopped: BaseException | None,
) -> tuple[tuple[Tensor, ...], dict[int, Batch | Failure]]:
    """Return the batches that were simulated, numbered anew; warn of the others."""
    good = [b for b in sorted(finished) if not isinstance(finished[b], Failure)]
    if len(good) == len(batches):
        return batches, finished
    reasons = [o.message for o in finished.values() if isinstance(o, Failure)]
    if stopped is not None:
        reasons.append(f"{type(stopped).__name__}: {stopped}")
    wanted, got = sum(map(len, batches)), sum(len(batches[b]) for b in good)
    message = (
        f"{wanted - got} of {wanted} simulations failed or were not finished and are "
        f"left out. The first reason: {reasons[0]}"
    )
    if not good:
        raise InvalidStateError(f"{message} Nothing is left to be returned.")
    warn(message, UserWarning)
    kept = {number: finished[b] for number, b in enumerate(good)}
    return tuple(batches[b] for b in good), kept


def _require_arguments(
    simulator: Any, num_simulations: int, simulation_batch_size: int | None
) -> None:
    if not callable(simulator):
        raise InvalidTypeError(
            "simulator must be a function of theta or an object with __call__, got "
            f"{type(simulator).__name__}. Pass the simulator itself."
        )
    if num_simulations < 0:
        raise InvalidInputError(
            f"num_simulations must be 0 or more, got {num_simulations}."
        )
    if simulation_batch_size is not None and simulation_batch_size < 1:
        raise InvalidInputError(
            "simulation_batch_size must be 1 or more, or None for one batch of all "
            f"simulations, got {simulation_batch_size}."
        )


def _concatenate(outputs: list[Any]) -> tuple[Tensor, Tensor]:
    """Join the batches; raise where their shapes of x differ."""
    shapes = {x.shape[1:] for x, _ in outputs}
    if len(shapes) > 1:
        raise InvalidInputError(
            "simulator must return one shape of x for all theta, got "
            f"{sorted(shapes)}. Pad x to one shape, with NaN for what is missing."
        )
    xs, scores = zip(*outputs, strict=True)
    return torch.from_numpy(np.concatenate(xs)), torch.from_numpy(
        np.concatenate(scores)
    )


def _warn_unusable(x: Tensor, score: Tensor) -> None:
    """Warn of scores that say nothing though their simulation is finite."""
    finite_x = x.reshape(len(x), -1).isfinite().all(1)
    num_infinite = int(score[finite_x].isinf().any(1).sum())
    if num_infinite:
        score[score.isinf()] = torch.nan
        warn(
            f"{num_infinite} of {len(x)} scores have infinite components, although x "
            "is finite. They are set to NaN, which masks them. Check the score where "
            "the likelihood is flat or vanishes."
        )
    if score.isnan().all():
        warn(
            "Every component of every score is NaN: there is nothing to learn from "
            "the scores. Check the simulator's score."
        )
