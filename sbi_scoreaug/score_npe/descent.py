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

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.gauss import DiffusedScore, GaussScore, regression_slope
from sbi_scoreaug.score_npe.schedule import VPSchedule


def start(score: DiffusedScore, num_particles: int, dim: int) -> Tensor:
    """Draw particles `(num_particles, dim)` at t = 1; two evaluations."""
    theta = torch.randn(num_particles, dim, dtype=torch.float64)
    for _ in range(2):
        values = score(theta, 1.0).score
        slope = regression_slope(theta, values)
        w, basis = torch.linalg.eigh(-(slope + slope.mT) / 2)
        w = w.clamp(min=0.5)
        mean = theta.mean(0) @ basis + (values.mean(0) @ basis) / w
        theta = (mean + torch.randn_like(theta) / w.sqrt()) @ basis.mT
    return theta


def descend(
    score: DiffusedScore,
    schedule: VPSchedule,
    num_particles: int,
    dim: int,
    *,
    diagnostics: SamplerDiagnostics,
    num_steps: int = 20,
    t_last: float = 0.01,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Draw particles of the posterior, `(num_particles, dim)`, at t = 0.

    Args:
        score: Diffused posterior score of the set.
        schedule: The noise levels.
        num_particles: Particles; as many as ten a dimension for stable slopes.
        dim: Number of parameters.
        diagnostics: Takes the fraction of clipped covariances and of replaced
            particles.
        num_steps: Steps from t = 1 to `t_last`; one more leads to t = 0.
        t_last: The last level at which the score is evaluated.
        progress: Called after every evaluation.

    Returns:
        Particles in float64. Evaluations: `num_steps + 3`.
    """
    theta = start(score, num_particles, dim)
    levels = [*schedule.levels(num_steps, t_last), 0.0]
    clipped = 0.0
    for t1, t0 in zip(levels[:-1], levels[1:], strict=True):
        at = score(theta, t1)
        theta = _step(theta, at, schedule, t1, t0)
        theta = diagnostics.replace_non_finite(theta)
        clipped += at.clipped / (num_steps + 1)
        progress()
    diagnostics.clipped_fraction = clipped
    return theta


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
