r"""Samplers on corrected scores: the default, and GAUSS with pilot runs.

*auto* is the descent of `descent` on `gauss.MeanGauss`. Polish (`polish`) and jumps
(`jumps`) are for scores that can be trusted: networks trained by denoising alone have
large relative errors at small noise, and Metropolis steps then sample the error.

*gauss* is the same descent on `gauss.ObservationGauss`, whose covariances come from a
pilot descent for each observation.
"""

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.composition import ComposedScore, require_count
from sbi_scoreaug.score_npe.descent import descend
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.gauss import MeanGauss, ObservationGauss
from sbi_scoreaug.score_npe.jumps import jump as independence_jumps
from sbi_scoreaug.score_npe.polish import Polish
from sbi_scoreaug.score_npe.task import SamplingTask


def auto(
    task: SamplingTask,
    *,
    polish: bool = False,
    jump: bool = False,
    num_steps: int = 20,
    t_last: float = 0.01,
    polish_steps: tuple[int, int] = (8, 4),
) -> Tensor:
    """Sample by mean-GAUSS descent and, if asked, a Metropolis polish.

    Args:
        task: The set, and what to draw; at least max(300, 10 dim) particles are run.
        polish: Whether the score can be trusted at `t_last`: then 61 evaluations are
            made in place of 23.
        jump: Whether the score can be trusted between modes too: then 3 jumps of each
            particle take the place of the rescue, and 97 evaluations are made.
        num_steps: Steps of the descent.
        t_last: The last noise level; (s/m)^2 there should be at most .01 of the
            smallest variance given one observation.
        polish_steps: Metropolis steps before and after the rescue of outliers.

    Returns:
        Samples `(num_samples, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If a number is out of range, or jumps are asked for without
            polish.
    """
    if jump and not polish:
        raise InvalidInputError(
            "jump: expected polish=True with it, since jumps are part of the polish."
        )
    num_run = max(task.num_samples, 300, 10 * task.dim)
    theta = descend(
        task,
        MeanGauss(task.score, task.schedule),
        num_particles=num_run,
        num_steps=num_steps,
        t_last=t_last,
    )
    if polish:
        theta = _polished(task, theta, t_last, polish_steps, jump)
    return theta[torch.randperm(num_run, device=theta.device)[: task.num_samples]]


def _polished(
    task: SamplingTask,
    theta: Tensor,
    t_last: float,
    polish_steps: tuple[int, int],
    jump: bool,
) -> Tensor:
    m, diagnostics = task.schedule.mean(t_last), task.diagnostics
    chains = Polish(lambda at: task.score(at, t_last), m * theta, diagnostics)
    first, second = polish_steps
    chains.metropolis(first)
    if jump:
        diagnostics.jump_acceptance = independence_jumps(chains)
    else:
        chains.rescue()
    chains.metropolis(second)
    if (diagnostics.acceptance or 0.0) < 0.2:
        diagnostics.warn(
            f"polish: only {diagnostics.acceptance:.0%} of the last proposals were "
            "accepted, so the score is not the gradient of a density near these "
            "samples. Sample with polish=False, or raise t_last."
        )
    return diagnostics.replace_non_finite(chains.theta) / m


def gauss(
    task: SamplingTask,
    *,
    covariances: Tensor | None = None,
    num_steps: int = 50,
    t_last: float = 0.01,
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
    return descend(
        task,
        ObservationGauss(task.score, task.schedule, covariances),
        num_particles=task.num_samples,
        num_steps=num_steps,
        t_last=t_last,
    )


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
