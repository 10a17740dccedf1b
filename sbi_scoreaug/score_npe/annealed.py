r"""The paper's two samplers: annealed Langevin (Algorithm 1) and composed steps (2).

Both use T levels t_i = i/T with alpha_i = (m_i / m_{i-1})^2 and bridging densities

    p_i(theta) proportional to p(theta)^((1-n) w_i) prod_j p_{t_i}(theta|x_j)

with the undiffused prior and w_i = (T - i)/T: the posterior at i = 0, and N(0, I/n) at
i = T where noise has taken over. Where the prior is N(0, I) their score is
U_i = (n - 1) w_i theta + sum_j s_j. `prior_score="diffused"` takes w_i = 1, the
diffused prior, which is less biased at large n (Algorithm 2 then starts from N(0, I)).

*Algorithm 1* starts from N(0, I/n), and makes L steps a level,

    theta <- theta + (delta_i / 2) U_i + sqrt(delta_i) xi
    delta_i = step (1 - alpha_i) / sqrt(alpha_i)

Unadjusted: the spread is exact only for small steps, and a step diverges once
delta_i k > 4, k the curvature of log p_i. `shrink_steps` bounds it by 2 / k, with k at
least n, and the largest slope of U_i over the particles where there are enough of them.
T = 400, L = 50 and step .05 are the defaults; T = 400, L = 5 with step .3 or .5 is also
in use.

*Algorithm 2* multiplies the n denoising kernels N(mu_j, beta_i) with the power
(1 - n) w_i of the prior's, N(mu_0, beta_i), to first order in beta_i = 1 - alpha_i:

    theta <- (theta + beta_i U_i) / sqrt(alpha_i) + sqrt(beta_i) xi,   no noise at i = 1

It is unstable where beta_i U doubles theta: `num_levels` is raised to 4 n, with a
warning. That is enough where the noise of an observation has a tenth of the prior's
variance or more; with 2 n it diverges at a quarter. For a hundredth take 10 n and more.

*Known limit of Algorithm 2.* It is exact at n = 1 only. For large n the levels change
slowly compared with the contraction of U, and a step moves by beta U with noise of
variance beta, half of the 2 beta that would leave exp(int U) invariant: the spread
tends to 1/sqrt(2) of the truth, with exact scores and any T.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, Algorithms 1 and 2.
"""

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, require_positive
from sbi_scoreaug.score_npe.composition import Excess, require_count
from sbi_scoreaug.score_npe.feynman_kac import PathWeights, effective_sample_size
from sbi_scoreaug.score_npe.gauss import regression_slope
from sbi_scoreaug.score_npe.schedule import VPSchedule
from sbi_scoreaug.score_npe.task import SamplingTask

PRIOR_SCORES = ("bridge", "diffused")
LEVELS_EACH = 4  # observation; fewer diverge


def langevin(
    task: SamplingTask,
    *,
    num_levels: int = 400,
    steps_per_level: int = 50,
    step: float = 0.05,
    shrink_steps: bool = True,
    prior_score: str = "bridge",
) -> Tensor:
    """Sample by Algorithm 1; `num_levels * steps_per_level` evaluations.

    Args:
        task: The set, and what to draw.
        num_levels: T.
        steps_per_level: L.
        step: Factor of all step sizes.
        shrink_steps: Whether to warn of and shrink steps that would diverge.
        prior_score: "bridge" as in the paper, or "diffused".

    Returns:
        Samples `(num_samples, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If T, L or the step is out of range.
    """
    require_count("num_levels", num_levels)
    require_count("steps_per_level", steps_per_level)
    require_positive("step", step)
    _require_prior_score(prior_score)
    alphas = _alphas(task.schedule, num_levels)
    theta = task.normal(task.num_samples) / task.score.num_observations**0.5
    for i in range(num_levels, 0, -1):
        delta = step * (1 - alphas[i - 1]) / alphas[i - 1] ** 0.5
        for k in range(steps_per_level):
            value = _bridge(task, theta, i / num_levels, prior_score)[0]
            if k == 0 and shrink_steps:
                delta = _bounded_step(task, delta, _curvature(task, theta, value))
            theta = theta + delta / 2 * value + delta**0.5 * torch.randn_like(theta)
            theta = task.diagnostics.replace_non_finite(theta)
        task.step_done(theta)
    return theta


def composed(
    task: SamplingTask, *, num_levels: int = 400, prior_score: str = "bridge"
) -> Tensor:
    """Sample by Algorithm 2, too narrow beyond n = 1; `num_levels` evaluations.

    With the diffused prior its path is that of `feynman_kac`, whose weights would undo
    the bias: their effective sample size is reported.

    Args:
        task: The set, and what to draw.
        num_levels: T; at least 4 n are used (with 2 n the steps diverged).
        prior_score: "bridge" as in the paper, or "diffused".

    Returns:
        Samples `(num_samples, dim)` where the prior is N(0, I).

    Raises:
        InvalidInputError: If T is below 1.
    """
    require_count("num_levels", num_levels)
    _require_prior_score(prior_score)
    theta, weights = run_composed(task, num_levels, prior_score)
    if prior_score == "diffused":
        size = effective_sample_size(weights.finish())
        task.diagnostics.effective_sample_size = size
    return theta


def run_composed(
    task: SamplingTask, num_levels: int, prior_score: str
) -> tuple[Tensor, PathWeights]:
    """Run Algorithm 2; return its samples, and their weights (diffused prior only)."""
    n, diagnostics = task.score.num_observations, task.diagnostics
    if num_levels < LEVELS_EACH * n:
        diagnostics.warn(
            f"num_levels: {num_levels} are too few for {n} observations, the steps "
            f"would diverge. {LEVELS_EACH * n} are used."
        )
        num_levels = LEVELS_EACH * n
    alphas, weights = _alphas(task.schedule, num_levels), PathWeights(task.schedule)
    theta, largest = task.normal(task.num_samples), 0.0
    if prior_score == "bridge":
        theta = theta / n**0.5
    for i in range(num_levels, 0, -1):
        alpha, beta, t = alphas[i - 1], 1 - alphas[i - 1], i / num_levels
        value, excess = _bridge(task, theta, t, prior_score)
        if t < 0.25:  # overshooting at larger noise is forgotten on the way
            largest = max(largest, beta * _curvature(task, theta, value))
        drift = -theta if i == num_levels else value
        weights.add(theta, t, drift, value, excess.cross)
        theta = (theta + beta * value) / alpha**0.5
        if i > 1:
            theta = theta + beta**0.5 * torch.randn_like(theta)
        theta = diagnostics.replace_non_finite(theta)
        task.step_done(theta)
    if largest > 2:
        diagnostics.warn(
            f"num_levels: {num_levels} are too few, some steps overshoot {largest:.1f} "
            "times. Give more levels, or take another sampler."
        )
    return theta, weights


def _bridge(
    task: SamplingTask, theta: Tensor, t: float, prior_score: str
) -> tuple[Tensor, Excess]:
    size, excess = task.score.effective_size(t), task.score.excess(theta, t)
    weight = 1 - t if prior_score == "bridge" else 1.0
    value = size * (excess.mean - theta) + (size - 1) * weight * theta
    return value, excess


def _curvature(task: SamplingTask, theta: Tensor, value: Tensor) -> float:
    """Largest curvature, at least n; from the particles if there are enough."""
    known = float(task.score.num_observations)
    finite = value.isfinite().all(1)
    if finite.sum() < 10 * task.dim:
        return known
    slope = regression_slope(theta[finite], value[finite])
    return max(known, torch.linalg.eigvalsh(-(slope + slope.mT) / 2)[-1].item())


def _bounded_step(task: SamplingTask, delta: float, curvature: float) -> float:
    limit = 2 / curvature
    if delta <= limit:
        return delta
    if not task.diagnostics.messages:
        task.diagnostics.warn(
            f"step: Langevin steps of {delta:.2g} would diverge or blur, since the "
            f"{task.score.num_observations} observations give a curvature of "
            f"{curvature:.2g}. Such steps are shrunk, here to {limit:.2g}. Give more "
            "levels or a smaller step."
        )
    return limit


def _alphas(schedule: VPSchedule, num_levels: int) -> list[float]:
    means = [schedule.mean(i / num_levels) for i in range(num_levels + 1)]
    return [(m1 / m0) ** 2 for m0, m1 in zip(means[:-1], means[1:], strict=True)]


def _require_prior_score(prior_score: str) -> None:
    if prior_score not in PRIOR_SCORES:
        raise InvalidInputError(
            f"prior_score: expected one of {PRIOR_SCORES}, got {prior_score!r}."
        )
