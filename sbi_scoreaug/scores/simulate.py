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

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from warnings import warn

import numpy as np
import torch
from joblib import Parallel, delayed
from sbi.utils.sbiutils import seed_all_backends
from torch import Tensor
from tqdm.auto import tqdm

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError, ScoreWarning
from sbi_scoreaug.scores.autodiff import score_from_log_prob

Batch = tuple[np.ndarray, np.ndarray]

# The global generators belong to the process: threads must not seed them at once.
_GENERATORS = threading.RLock()


def simulate_with_score(
    simulator: Callable[..., Any],
    proposal: Any,
    num_simulations: int,
    num_workers: int = 1,
    simulation_batch_size: int | None = 1,
    seed: int | None = None,
    show_progress_bar: bool = True,
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

    Returns:
        theta `(num_simulations, dim_theta)`, x `(num_simulations, *shape_x)` and score
        `(num_simulations, dim_theta)`: float32, on the CPU. NaN marks an unknown
        component of the score.

    Raises:
        InvalidTypeError: If the simulator cannot be called, or has no score to give.
        InvalidInputError: If theta, x or the score has a wrong shape, or a number is
            out of range.

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
    outputs = _run(simulator, batches, _batch_seeds(len(batches)), num_workers)
    with tqdm(total=num_simulations, disable=not show_progress_bar) as progress:
        collected = []
        for output in outputs:
            collected.append(output)
            progress.update(len(output[0]))
    x, score = _concatenate(collected)
    _warn_unusable(x, score)
    return theta.detach().to("cpu", torch.float32), x, score


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


def _batch_seeds(num_batches: int) -> list[int]:
    """Distinct 32-bit seeds, from the global generator (just seeded)."""
    start = int(torch.randint(2**32, (1,)))
    return [(start + b * 0x9E3779B1) % 2**32 for b in range(num_batches)]


def _run(
    simulator: Callable[..., Any],
    batches: tuple[Tensor, ...],
    seeds: list[int],
    num_workers: int,
) -> Iterable[Batch]:
    """Run all batches, in order: here, or in joblib's workers."""
    if num_workers == 1:
        pairs = zip(batches, seeds, strict=True)
        return (_simulate_batch(simulator, batch, seed) for batch, seed in pairs)
    # Arrays travel faster than tensors between processes.
    calls = (
        delayed(_simulate_batch)(simulator, batch.detach().cpu().numpy(), seed)
        for batch, seed in zip(batches, seeds, strict=True)
    )
    try:
        parallel = Parallel(n_jobs=num_workers, return_as="generator")
    except ValueError:  # Some backends (Ray, multiprocessing) return lists only.
        parallel = Parallel(n_jobs=num_workers)
    return cast(Iterable[Batch], parallel(calls))


def _simulate_batch(
    simulator: Callable[..., Any], theta: Tensor | np.ndarray, seed: int
) -> Batch:
    """Simulate one batch under its own seed, with its score."""
    theta = torch.as_tensor(theta)
    with _seeded(seed):
        output = simulator(theta)
        x, score = output if _is_pair(output) else (output, None)
        x = torch.as_tensor(x)
        if x.ndim < 1 or len(x) != len(theta):
            raise InvalidInputError(
                f"simulator must return x of shape (batch, *shape_x) with batch = "
                f"{len(theta)} as in theta {tuple(theta.shape)}, got x of shape "
                f"{tuple(x.shape)}. Keep the batch dimension, also for a batch of one."
            )
        if score is None:
            score = _score_of(simulator, theta, x)
    score = torch.as_tensor(score)
    _require_score_shape(score, theta)
    return _to_array(x), _to_array(score)


def _is_pair(output: Any) -> bool:
    """Whether the simulator returned (x, score); raise if another sequence of both."""
    arrays = isinstance(output, list) and any(np.ndim(row) for row in output)
    if not isinstance(output, tuple) and not arrays:
        return False
    if arrays or len(output) != 2:
        raise InvalidInputError(
            "simulator must return x, one tensor or array, or the pair (x, score), got "
            f"a {type(output).__name__} of {len(output)}. Stack rows of x with "
            "torch.stack; return x and score as a tuple of two."
        )
    return True


def _score_of(simulator: Any, theta: Tensor, x: Tensor) -> Tensor:
    """The score by the simulator's own methods; NaN where x is not finite."""
    if callable(getattr(simulator, "score", None)):
        score_function = simulator.score
    elif callable(getattr(simulator, "log_prob", None)):
        score_function = score_from_log_prob(simulator.log_prob)
    else:
        raise InvalidTypeError(
            "simulator must (a) return the pair (x, score), or (b) have a method "
            "score(theta, x) that returns (batch, dim_theta), or (c) have a method "
            "log_prob(theta, x) that returns (batch,), written in torch. Got x alone "
            f"from {getattr(simulator, '__name__', type(simulator).__name__)}, which "
            "has neither method. Without scores, use sbi's simulate_for_sbi."
        )
    # A failed simulation has no likelihood, and log_prob may raise on NaN.
    valid = x.reshape(len(x), -1).isfinite().all(1)
    if valid.all():
        return score_function(theta, x)
    score = theta.new_full(theta.shape, torch.nan)
    if valid.any():
        part = torch.as_tensor(score_function(theta[valid], x[valid]))
        _require_score_shape(part, theta[valid])
        score[valid] = part.to(score)
    return score


def _require_score_shape(score: Tensor, theta: Tensor) -> None:
    if score.shape != theta.shape:
        raise InvalidInputError(
            "score must have the shape of theta, (batch, dim_theta) = "
            f"{tuple(theta.shape)}, got {tuple(score.shape)}. Return one derivative "
            "for every parameter of every row, NaN where it is unknown."
        )


def _to_array(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).numpy()


def _concatenate(outputs: list[Batch]) -> tuple[Tensor, Tensor]:
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
            "the likelihood is flat or vanishes.",
            ScoreWarning,
            stacklevel=3,
        )
    if score.isnan().all():
        warn(
            "Every component of every score is NaN: there is nothing to learn from "
            "the scores. Check the simulator's score.",
            ScoreWarning,
            stacklevel=3,
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch; put their states back afterwards."""
    # Asking CUDA for its state would start it in every worker.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with _GENERATORS, torch.random.fork_rng(devices=devices):
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            seed_all_backends(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
