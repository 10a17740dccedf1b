r"""Samplers on corrected scores: the default, and GAUSS with pilot runs.

*auto* is the descent of `descent` on `gauss.MeanGauss` and, for scores that can be
trusted, Metropolis steps (`polish`) and jumps between modes (`jumps`). Networks trained
by denoising alone have large relative errors at small noise, and Metropolis steps may
sample the error. Of a score that comes without a word, its `circulation` decides; of a
network it is known how it was trained (`posterior`): with scores and not between walls,
or if a mixture has most of the score, it is polished; else its `circulation` decides.
Jumps are off, but for a mixture that has nearly all of the score.

*gauss* is the same descent on `gauss.ObservationGauss`, whose covariances come from a
pilot descent for each observation.
"""

import math

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.circulation import (
    LARGEST_EXACT,
    LARGEST_TRUSTED,
    circulation,
)
from sbi_scoreaug.score_npe.composition import ComposedScore, require_count
from sbi_scoreaug.score_npe.descent import descend
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.gauss import MeanGauss, ObservationGauss
from sbi_scoreaug.score_npe.jumps import jump as independence_jumps
from sbi_scoreaug.score_npe.polish import Polish, SetScore
from sbi_scoreaug.score_npe.schedule import T_LAST
from sbi_scoreaug.score_npe.task import SamplingTask

SMALLEST_ACCEPTANCE = 0.2
LARGEST_EXCESS = 2.0  # of the variance


def auto(
    task: SamplingTask,
    *,
    polish: bool | None = None,
    jump: bool | None = None,
    num_steps: int | None = None,
    t_last: float = T_LAST,
    polish_steps: tuple[int, int] = (8, 4),
) -> Tensor:
    """Sample by mean-GAUSS descent and, where the score allows, a Metropolis polish.

    Evaluations: 63 for one observation, else 23 without polish, 48 with, 97 with jumps;
    two more to decide.

    Args:
        task: The set, and what to draw; at least max(300, 10 dim) particles are run.
        polish: Whether the score can be trusted at `t_last`. None: if there are several
            observations and parameters, and the score is the gradient of a density as
            far as `circulation` can tell.
        jump: Whether the score can be trusted between modes too: then each particle
            makes 3 jumps. None: if it is a gradient to 1e-4 nats.
        num_steps: Steps of the descent. None: 20, and 60 for one observation, whose
            samples are not corrected afterwards.
        t_last: The last noise level; (s/m)^2 there should be at most .01 of the
            smallest variance given one observation.
        polish_steps: Metropolis steps before and after the jumps.

    Returns:
        Samples `(num_samples, dim)` where the prior is N(0, I). Those of the descent,
        with a warning, if fewer than a fifth of the last proposals were accepted.

    Raises:
        InvalidInputError: If a number is out of range, or jumps are asked for without
            polish.
        InvalidTypeError: If `polish` or `jump` is not a boolean or None.
    """
    for name, value in (("polish", polish), ("jump", jump)):
        if value is not None and not isinstance(value, bool):
            raise InvalidTypeError(
                f"{name}: expected True, False or None, got {value!r}. None lets the "
                "score decide."
            )
    if jump and polish is False:
        raise InvalidInputError(
            "jump: expected polish=True with it, since jumps are part of the polish."
        )
    if num_steps is None:
        num_steps = 60 if task.score.num_observations == 1 else 20
    num_run = max(task.num_samples, 300, 10 * task.dim)
    theta = descend(
        task,
        MeanGauss(task.score, task.schedule),
        num_particles=num_run,
        num_steps=num_steps,
        t_last=t_last,
    )
    m = task.schedule.mean(t_last)

    def score(at: Tensor) -> Tensor:
        return task.score(at, t_last)

    if polish is None:
        around = 0.0 if jump else _circulation(task, score, m * theta)
        polish = around <= LARGEST_TRUSTED
        jump = around <= LARGEST_EXACT if jump is None else jump
    if polish:
        chains = Polish(score, m * theta, task.diagnostics)
        polish = _polish(chains, polish_steps, bool(jump))
    if polish:
        theta = task.diagnostics.replace_non_finite(chains.theta) / m
        task.diagnostics.keep_trace(theta)
    else:
        _warn_of_spread(task.diagnostics)
    return theta[torch.randperm(num_run, device=theta.device)[: task.num_samples]]


def _warn_of_spread(diagnostics: SamplerDiagnostics) -> None:
    excess = diagnostics.excess_spread or 0.0
    if diagnostics.num_observations > 1 and excess > LARGEST_EXCESS:
        diagnostics.warn(
            f"auto: the samples are spread {excess**0.5:.1f} times as wide as their "
            "score says, as where single observations have very unequal precision, or "
            "the network is poor. Compare sample_with='gauss'."
        )


def _circulation(task: SamplingTask, score: SetScore, theta: Tensor) -> float:
    """The circulation of a sum of several scores; infinite where it says nothing."""
    if task.score.num_observations == 1 or task.dim == 1:
        return math.inf
    task.diagnostics.circulation = circulation(score, theta)
    return task.diagnostics.circulation


def _polish(chains: Polish, steps: tuple[int, int], jump: bool) -> bool:
    """Move the particles; return whether they are better than they were."""
    diagnostics = chains.diagnostics
    chains.metropolis(steps[0])
    if jump:
        diagnostics.jump_acceptance = independence_jumps(chains)
    chains.metropolis(steps[1])
    accepted = diagnostics.acceptance
    if accepted is None or accepted >= SMALLEST_ACCEPTANCE:
        return True
    diagnostics.warn(
        f"polish: only {accepted:.0%} of the last proposals were accepted, so the "
        "score is not the gradient of a density near these samples. Returned are "
        "those of the descent alone. Say so with polish=False, or raise t_last."
    )
    return False


def gauss(
    task: SamplingTask,
    *,
    covariances: Tensor | None = None,
    num_steps: int = 50,
    t_last: float = T_LAST,
    num_pilot: int = 300,
) -> Tensor:
    """Sample by GAUSS with centred covariances, clipped to valid ones.

    Args:
        task: The set, and what to draw.
        covariances: Cov(theta|x_j) where the prior is N(0, I), `(n, dim, dim)`; None:
            from `num_pilot` samples for each observation.
        num_steps: Steps of the descent.
        t_last: The last noise level.
        num_pilot: Pilot samples.

    Returns:
        Samples `(num_samples, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If a number is out of range, or minibatches or damping are
            asked for, which have no covariances of their own.
    """
    require_count("num_pilot", num_pilot)
    if task.score.minibatch is not None or task.score.damping is not None:
        raise InvalidInputError(
            "minibatch, damping: expected None for the sampler 'gauss', which needs "
            "every observation. Take 'auto'."
        )
    if covariances is None:
        covariances = _pilot_covariances(task, max(num_pilot, 10 * task.dim))
    num_run = max(task.num_samples, 300, 10 * task.dim)
    theta = descend(
        task,
        ObservationGauss(task.score, task.schedule, covariances),
        num_particles=num_run,
        num_steps=num_steps,
        t_last=t_last,
    )
    return theta[: task.num_samples]


def _pilot_covariances(task: SamplingTask, num_pilot: int) -> Tensor:
    score, pilots = task.score, []
    for j in range(score.num_observations):
        single = ComposedScore(
            score.posterior_score, score.x[j : j + 1], rows_at_once=score.rows_at_once
        )
        counts = SamplerDiagnostics("gauss", 1)
        pilot = SamplingTask(single, task.schedule, num_pilot, task.dim, counts)
        cloud = descend(
            pilot, MeanGauss(single, task.schedule), num_particles=num_pilot
        )
        # A pilot evaluates one of the n terms of a composed score.
        score.evaluations += -(-single.evaluations // score.num_observations)
        task.diagnostics.num_replaced += counts.num_replaced
        pilots.append(torch.cov(cloud.mT).reshape(task.dim, task.dim))
        task.progress()
    return torch.stack(pilots)
