r"""The paper's two samplers: annealed Langevin (Algorithm 1) and composed steps (2).

Both use T levels t_i = i/T with alpha_i = (m_i / m_{i-1})^2, the first also densities

    p_i(theta) proportional to p(theta)^((1-n)(T-i)/T) prod_j p_{t_i}(theta|x_j)

whose score is U_i = (n - 1)(1 - i/T) theta + sum_j s_j where the prior is N(0, I).

*Algorithm 1* starts from N(0, I/n), and makes L steps a level,

    theta <- theta + (delta_i / 2) U_i + sqrt(delta_i) xi

with delta_i = step (1 - alpha_i) / sqrt(alpha_i). Unadjusted: the spread is exact only
for small steps, and a step diverges once delta_i n > 4. `shrink_steps` bounds it by
2 / n.

*Algorithm 2* starts from N(0, I), and multiplies the n denoising kernels
N(mu_j, beta_i) with the power 1 - n of the prior's, N(mu_0, beta_i):

    mu_j = (theta + beta_i s_j) / sqrt(alpha_i),   mu_0 = (theta - beta_i theta) / same
    beta_i = 1 - alpha_i
    theta <- sum_j mu_j + (1 - n) mu_0 + sqrt(beta_i) xi,   no noise at i = 1

which is one step along U. It is unstable where beta_i U doubles theta: `num_levels` is
raised to 2 n, with a warning.

*Known limit of Algorithm 2.* It is exact at n = 1 only. For large n the levels change
slowly compared with the contraction of U, and a step moves by beta U with noise of
variance beta, half of the 2 beta that would leave exp(int U) invariant: the spread
tends to 1/sqrt(2) of the truth, with exact scores and any T.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, Algorithms 1 and 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, warn
from sbi_scoreaug.score_npe.composition import ComposedScore, require_count
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.schedule import VPSchedule


def langevin(
    score: ComposedScore,
    schedule: VPSchedule,
    num_particles: int,
    dim: int,
    *,
    diagnostics: SamplerDiagnostics,
    num_levels: int = 400,
    steps_per_level: int = 50,
    step: float = 0.05,
    shrink_steps: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Sample by Algorithm 1; `num_levels * steps_per_level` evaluations.

    Args:
        score: The composed score.
        schedule: The noise levels.
        num_particles: Number of samples.
        dim: Number of parameters.
        diagnostics: Takes the number of replaced particles.
        num_levels: T.
        steps_per_level: L.
        step: Factor of all step sizes.
        shrink_steps: Whether to warn of and shrink steps that diverge at this n.
        progress: Called after every level.

    Returns:
        Samples `(num_particles, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If T, L or the step is out of range.
    """
    require_count("num_levels", num_levels)
    require_count("steps_per_level", steps_per_level)
    if not 0 < step < float("inf"):
        raise InvalidInputError(f"step: expected a positive number, got {step}.")
    n = score.num_observations
    alphas = _alphas(schedule, num_levels)
    deltas = [step * (1 - alpha) / alpha**0.5 for alpha in alphas]
    if shrink_steps and max(deltas) > 2 / n:
        message = (
            f"step: {step} is too large for {n} observations and {num_levels} levels, "
            f"Langevin steps of {max(deltas):.2g} would diverge or blur. They are "
            f"shrunk to {2 / n:.2g}. Give more levels or a smaller step."
        )
        warn(message)
        diagnostics.messages.append(message)
        deltas = [min(delta, 2 / n) for delta in deltas]
    theta = torch.randn(num_particles, dim, dtype=torch.float64) / n**0.5
    for i in range(num_levels, 0, -1):
        delta = deltas[i - 1]
        for _ in range(steps_per_level):
            value = _bridge_score(score, theta, i, num_levels)
            theta = theta + delta / 2 * value + delta**0.5 * torch.randn_like(theta)
            theta = diagnostics.replace_non_finite(theta)
        progress()
    return theta


def composed(
    score: ComposedScore,
    schedule: VPSchedule,
    num_particles: int,
    dim: int,
    *,
    diagnostics: SamplerDiagnostics,
    num_levels: int = 400,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Sample by Algorithm 2, too narrow beyond n = 1; `num_levels` evaluations.

    Args:
        score: The composed score.
        schedule: The noise levels.
        num_particles: Number of samples.
        dim: Number of parameters.
        diagnostics: Takes the number of replaced particles.
        num_levels: T; at least 2 n are used.
        progress: Called after every level.

    Returns:
        Samples `(num_particles, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If T is below 1.
    """
    require_count("num_levels", num_levels)
    n = score.num_observations
    if num_levels < 2 * n:
        message = (
            f"num_levels: {num_levels} are too few for {n} observations, the steps "
            f"would diverge. {2 * n} are used."
        )
        warn(message)
        diagnostics.messages.append(message)
        num_levels = 2 * n
    alphas = _alphas(schedule, num_levels)
    theta = torch.randn(num_particles, dim, dtype=torch.float64)
    for i in range(num_levels, 0, -1):
        alpha, beta = alphas[i - 1], 1 - alphas[i - 1]
        theta = (theta + beta * score(theta, i / num_levels)) / alpha**0.5
        if i > 1:
            theta = theta + beta**0.5 * torch.randn_like(theta)
        theta = diagnostics.replace_non_finite(theta)
        progress()
    return theta


def _bridge_score(score: ComposedScore, theta: Tensor, i: int, num: int) -> Tensor:
    n, t = score.num_observations, i / num
    size = score.effective_size(t)
    total = size * (score.mean_excess(theta, t) - theta)
    return total + (n - 1) * (1 - t) * theta


def _alphas(schedule: VPSchedule, num_levels: int) -> list[float]:
    means = [schedule.mean(i / num_levels) for i in range(num_levels + 1)]
    return [(m1 / m0) ** 2 for m0, m1 in zip(means[:-1], means[1:], strict=True)]
