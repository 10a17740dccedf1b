"""One batch of simulations under a seed of its own, with its score.

What a worker runs: nothing here knows of the other batches.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sbi.utils.sbiutils import seed_all_backends
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.scores.autodiff import score_from_log_prob

Batch = tuple[np.ndarray, np.ndarray]

# The global generators belong to the process: threads must not seed them at once.
_GENERATORS = threading.RLock()


def simulate_batch(
    simulator: Callable[..., Any], theta: Tensor | np.ndarray, seed: int
) -> Batch:
    """Simulate one batch under its own seed, with its score."""
    theta = torch.as_tensor(theta)
    with _seeded(seed):
        output = simulator(theta.clone())  # it may change what it is given
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
        return score_function(theta.clone(), x.clone())
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
