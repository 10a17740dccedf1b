r"""From the prior to the posterior of a set in about twenty steps.

*Start.* At t = 1 the diffused posterior is close to N(0, I), but not close enough for
large n. Twice, the score is regressed on theta over the cloud, and the cloud redrawn
from the Gaussian with that score: slope -A and value g at the mean give
N(mean + A^-1 g, A^-1).

*Steps.* From level (m1, s1) to (m0, s0), with alpha = (m1/m0)^2 and the denoised
estimate x0 = (theta + s1^2 G) / m1, the posterior of theta_0 given theta_1 is
N(x0, Lambda^-1) with the Lambda of `gauss`. One ancestral step with theta_0 integrated
out, not replaced by its mean, is

    theta <- sqrt(alpha) (s0/s1)^2 theta + b (x0 + Lambda^-1/2 xi') + sqrt(v) xi
    b = m0 (1 - alpha) / s1^2,    v = (s0/s1)^2 (1 - alpha)

exact for Gaussian posteriors at any step size. That makes 20 steps, equal in log
(s/m)^2, enough. The last step goes to s0 = 0, where it is theta = x0 + Lambda^-1/2 xi'.

References: Ho et al. (2020), arXiv 2006.11239, for the ancestral step; Bao et al.
(2022), arXiv 2201.06503, for its covariance.
"""

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.composition import require_count
from sbi_scoreaug.score_npe.feynman_kac import PathWeights, effective_sample_size
from sbi_scoreaug.score_npe.gauss import DiffusedScore, GaussScore, regression_slope
from sbi_scoreaug.score_npe.schedule import T_LAST, VPSchedule
from sbi_scoreaug.score_npe.task import SamplingTask


def start(task: SamplingTask, score: DiffusedScore, num_particles: int) -> Tensor:
    """Draw particles `(num_particles, dim)` at t = 1; two evaluations."""
    theta = task.normal(num_particles)
    for _ in range(2):
        values = score(theta, 1.0).score
        slope = regression_slope(theta, values)
        w, basis = torch.linalg.eigh(-(slope + slope.mT) / 2)
        w = w.clamp(min=0.5)
        mean = theta.mean(0) @ basis + (values.mean(0) @ basis) / w
        theta = (mean + torch.randn_like(theta) / w.sqrt()) @ basis.mT
        theta = task.diagnostics.replace_non_finite(theta)
    return theta


def descend(
    task: SamplingTask,
    score: DiffusedScore,
    *,
    num_particles: int,
    num_steps: int = 20,
    t_last: float = T_LAST,
) -> Tensor:
    """Draw particles of the posterior at t = 0.

    Args:
        task: The set. Its diagnostics take the fraction of clipped covariances, of
            replaced particles, the effective sample size of `feynman_kac`, and the
            excess of the spread.
        score: Diffused posterior score of the set.
        num_particles: Particles; as many as ten a dimension for stable slopes.
        num_steps: Steps from t = 1 to `t_last`; one more leads to t = 0.
        t_last: The last level at which the score is evaluated.

    Returns:
        Particles `(num_particles, dim)`, float64. Evaluations: `num_steps + 3`.

    Raises:
        InvalidInputError: If a number is out of range.
    """
    require_count("num_steps", num_steps)
    if not 0 < t_last < 1:
        raise InvalidInputError(f"t_last: expected a time in (0, 1), got {t_last}.")
    theta = start(task, score, num_particles)
    levels = [*task.schedule.levels(num_steps, t_last), 0.0]
    clipped, excess_spread, weights = 0.0, 0.0, PathWeights(task.schedule)
    for t1, t0 in zip(levels[:-1], levels[1:], strict=True):
        at = score(theta, t1)
        weights.add(theta, t1, at.score, at.composed, at.cross)
        excess_spread = _excess_spread(theta, at.score)
        theta = _step(theta, at, task.schedule, t1, t0)
        theta = task.diagnostics.replace_non_finite(theta)
        clipped += at.clipped / (num_steps + 1)
        task.step_done(theta)
    task.diagnostics.clipped_fraction = clipped
    task.diagnostics.excess_spread = excess_spread
    size = effective_sample_size(weights.finish())
    if size is not None:
        size = size * task.num_samples / num_particles
    task.diagnostics.effective_sample_size = size
    return theta


def _excess_spread(theta: Tensor, score: Tensor) -> float:
    """Return the largest diagonal entry of -Cov(theta, score): 1 if they agree (Stein).

    For a Gaussian of precision P it is that of Cov(theta) P.
    """
    centred = theta - theta.mean(0)
    return float(-(centred * score).mean(0).min())


def _step(
    theta: Tensor, at: GaussScore, schedule: VPSchedule, t1: float, t0: float
) -> Tensor:
    m1, s1 = schedule.mean(t1), schedule.std(t1)
    m0, s0 = (schedule.mean(t0), schedule.std(t0)) if t0 > 0 else (1.0, 0.0)
    alpha, ratio = (m1 / m0) ** 2, (s0 / s1) ** 2
    denoised = (theta + s1**2 * at.score) / m1
    spread = (torch.randn_like(theta) / at.precision.sqrt()) @ at.basis.mT
    step = m0 * (1 - alpha) / s1**2 * (denoised + spread)
    noise = (ratio * (1 - alpha)) ** 0.5 * torch.randn_like(theta)
    return alpha**0.5 * ratio * theta + step + noise
