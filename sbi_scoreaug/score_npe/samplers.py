r"""Sampling a set's posterior from the scores of its single observations, by name.

The package's docstring says which sampler when. All work where the prior is N(0, I), in
float64, and return at t = 0.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.annealed import composed, langevin
from sbi_scoreaug.score_npe.composition import ComposedScore, require_count
from sbi_scoreaug.score_npe.corrected import auto, gauss
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.schedule import VPSchedule
from sbi_scoreaug.score_npe.task import SamplingTask

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "auto": auto,
    "gauss": gauss,
    "langevin": langevin,
    "composed": composed,
}
HOST_SAMPLERS = ("sde", "ode")
FAR = 30.0  # prior standard deviations that no posterior should be away


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
        task = SamplingTask(score, schedule, num_samples, dim, diagnostics, bar.update)
        theta = diagnostics.replace_non_finite(function(task, **options))
    diagnostics.evaluations = score.evaluations - before
    if float(theta.abs().max()) > FAR:
        # The same words for every set, so that Python shows them once in a batch.
        diagnostics.warn(
            f"samples lie more than {FAR:.0f} prior standard deviations away, in the "
            "coordinates where the prior is N(0, I): the network's error may have "
            "added up over the observations, or they contradict the prior. Take "
            "fewer of them, or train with scores or longer."
        )
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
    return set(defaults)


def require_sampler(sample_with: str) -> None:
    """Raise unless the sampler is known; the message lists the known ones."""
    known = (*SAMPLERS, *HOST_SAMPLERS)
    if not isinstance(sample_with, str) or sample_with not in known:
        raise InvalidInputError(
            f"sample_with: expected one of {known}, got {sample_with!r}."
        )
