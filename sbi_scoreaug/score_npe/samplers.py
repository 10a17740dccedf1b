r"""Sampling a set's posterior from the scores of its single observations.

Which sampler when, with n the number of observations:

auto      (default) the descent of `descent` on `gauss.MeanGauss`: 23 evaluations of the
          composed score at any n. With `polish=True`, for scores that can be trusted at
          small noise, 12 Metropolis steps (`polish`) follow: 61 in all. With
          `jump=True`, for scores that can be trusted between modes too, modes get
          their right masses: 97 in all.
gauss     the same descent in 50 steps, with one pilot covariance for each observation:
          n pilot runs. For few observations of very different precision.
langevin  the paper's Algorithm 1, 20,000 evaluations: slow, faithful to the paper.
composed  the paper's Algorithm 2, 400 evaluations: too narrow beyond n = 1.

Polish only what can be trusted: networks trained by denoising alone have large relative
errors at small noise, and Metropolis steps then sample the error.

All work where the prior is N(0, I), in float64, and return at t = 0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError, warn
from sbi_scoreaug.score_npe.annealed import composed, langevin
from sbi_scoreaug.score_npe.composition import ComposedScore, require_count
from sbi_scoreaug.score_npe.descent import descend
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.gauss import MeanGauss, ObservationGauss
from sbi_scoreaug.score_npe.jumps import jump as independence_jumps
from sbi_scoreaug.score_npe.polish import Polish
from sbi_scoreaug.score_npe.schedule import VPSchedule

Progress = Callable[[], object]


def auto(
    score: ComposedScore,
    schedule: VPSchedule,
    num_particles: int,
    dim: int,
    *,
    diagnostics: SamplerDiagnostics,
    polish: bool = False,
    jump: bool = False,
    num_steps: int = 20,
    t_last: float = 0.01,
    polish_steps: tuple[int, int] = (8, 4),
    progress: Progress = lambda: None,
) -> Tensor:
    """Sample by mean-GAUSS descent and, if asked, a Metropolis polish.

    Args:
        score: The composed score.
        schedule: The noise levels.
        num_particles: Number of samples; at least max(300, 10 dim) are run.
        dim: Number of parameters.
        diagnostics: Takes acceptance, step, rescued and clipped counts.
        polish: Whether the score can be trusted at `t_last`.
        jump: Whether the score can be trusted between modes too: then 3 jumps of each
            particle take the place of the rescue, and 97 evaluations are made.
        num_steps: Steps of the descent.
        t_last: The last noise level; (s/m)^2 there should be at most .01 of the
            smallest variance given one observation.
        polish_steps: Metropolis steps before and after the rescue of outliers.
        progress: Called after every evaluation or so.

    Returns:
        Samples `(num_particles, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If a number is out of range.
    """
    require_count("num_steps", num_steps)
    if not 0 < t_last < 1:
        raise InvalidInputError(f"t_last: expected a time in (0, 1), got {t_last}.")
    num_run = max(num_particles, 300, 10 * dim)
    theta = descend(
        MeanGauss(score, schedule),
        schedule,
        num_run,
        dim,
        diagnostics=diagnostics,
        num_steps=num_steps,
        t_last=t_last,
        progress=progress,
    )
    if polish:
        m = schedule.mean(t_last)
        chains = Polish(lambda at: score(at, t_last), m * theta, diagnostics)
        first, second = polish_steps
        chains.metropolis(first)
        if jump:
            diagnostics.jump_acceptance = independence_jumps(chains)
        else:
            chains.rescue()
        chains.metropolis(second)
        theta = diagnostics.replace_non_finite(chains.theta) / m
        _warn_low_acceptance(diagnostics)
    return theta[torch.randperm(num_run)[:num_particles]]


def gauss(
    score: ComposedScore,
    schedule: VPSchedule,
    num_particles: int,
    dim: int,
    *,
    diagnostics: SamplerDiagnostics,
    covariances: Tensor | None = None,
    num_steps: int = 50,
    t_last: float = 0.01,
    num_pilot: int = 300,
    progress: Progress = lambda: None,
) -> Tensor:
    """Sample by GAUSS with centred covariances, clipped to valid ones.

    Args:
        score: The composed score.
        schedule: The noise levels.
        num_particles: Number of samples.
        dim: Number of parameters.
        diagnostics: Takes the fraction of clipped eigenvalues.
        covariances: Cov(theta|x_j) where the prior is N(0, I), `(n, dim, dim)`; None:
            from `num_pilot` samples for each observation.
        num_steps: Steps of the descent.
        t_last: The last noise level.
        num_pilot: Pilot samples.
        progress: Called after every evaluation or so.

    Returns:
        Samples `(num_particles, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If a number is out of range.
    """
    require_count("num_steps", num_steps)
    require_count("num_pilot", num_pilot)
    num_pilot = max(num_pilot, 10 * dim)
    if covariances is None:
        pilots = []
        for j in range(score.num_observations):
            single = ComposedScore(
                score.posterior_score,
                score.x[j : j + 1],
                rows_at_once=score.rows_at_once,
            )
            cloud = descend(
                MeanGauss(single, schedule),
                schedule,
                num_pilot,
                dim,
                diagnostics=diagnostics,
                t_last=t_last,
            )
            # A pilot evaluates one of the n terms of a composed score.
            score.evaluations += -(-single.evaluations // score.num_observations)
            pilots.append(torch.cov(cloud.mT).reshape(dim, dim))
            progress()
        covariances = torch.stack(pilots)
    target = ObservationGauss(score, schedule, covariances)
    return descend(
        target,
        schedule,
        num_particles,
        dim,
        diagnostics=diagnostics,
        num_steps=num_steps,
        t_last=t_last,
        progress=progress,
    )


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "auto": auto,
    "gauss": gauss,
    "langevin": langevin,
    "composed": composed,
}


def sample_set(
    score: ComposedScore,
    schedule: VPSchedule,
    num_samples: int,
    dim: int,
    *,
    sampler: str = "auto",
    show_progress_bar: bool = False,
    **options: Any,
) -> tuple[Tensor, SamplerDiagnostics]:
    """Sample p(theta|x_1..x_n) where the prior is N(0, I).

    Args:
        score: The composed score.
        schedule: The noise levels.
        num_samples: Number of samples.
        dim: Number of parameters.
        sampler: "auto", "gauss", "langevin" or "composed".
        show_progress_bar: Whether to show a progress bar.
        options: Options of the sampler, by name.

    Returns:
        Samples `(num_samples, dim)`, float64, all finite; and what the sampler did.

    Raises:
        InvalidInputError: If the sampler is not known, or a number is out of range.
        InvalidTypeError: If the sampler does not know an option.
        InvalidStateError: If the particles diverge.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.tensor([[0.5], [1.5], [1.0]])
        >>> single = lambda theta, t, x: -theta[:, None] + 0 * x  # says nothing
        >>> score = ComposedScore(single, x)
        >>> samples, diagnostics = sample_set(score, VPSchedule(), 500, 1)
        >>> samples.shape, diagnostics.evaluations
        (torch.Size([500, 1]), 23)
    """
    function = resolve_sampler(sampler)
    require_count("num_samples", num_samples)
    require_count("dim", dim)
    unknown = set(options) - sampler_options(sampler)
    if unknown:
        raise InvalidTypeError(
            f"{sorted(unknown)[0]}: expected an option of the sampler {sampler!r}, one "
            f"of {sorted(sampler_options(sampler))}."
        )
    diagnostics = SamplerDiagnostics(sampler, score.num_observations)
    before = score.evaluations
    with (
        torch.no_grad(),
        tqdm(disable=not show_progress_bar, desc=f"Sampling ({sampler})") as bar,
    ):
        theta = function(
            score,
            schedule,
            num_samples,
            dim,
            diagnostics=diagnostics,
            progress=bar.update,
            **options,
        )
    diagnostics.evaluations = score.evaluations - before
    return theta, diagnostics


def resolve_sampler(sampler: str) -> Callable[..., Tensor]:
    """Return the sampler of this name; the error lists the known ones."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise InvalidInputError(
            f"sampler: expected one of {tuple(SAMPLERS)}, got {sampler!r}."
        )
    return SAMPLERS[sampler]


def sampler_options(sampler: str) -> set[str]:
    """Return the names of the options that a sampler takes."""
    defaults = resolve_sampler(sampler).__kwdefaults__ or {}
    return set(defaults) - {"progress"}


def _warn_low_acceptance(diagnostics: SamplerDiagnostics) -> None:
    if (diagnostics.acceptance or 0.0) < 0.2:
        message = (
            f"polish: only {diagnostics.acceptance:.0%} of the last proposals were "
            "accepted, so the score is not the gradient of a density near these "
            "samples. Sample with polish=False, or raise t_last."
        )
        warn(message)
        diagnostics.messages.append(message)
