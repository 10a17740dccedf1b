r"""How far a sampler's path is from that of the composed densities.

The densities pi_t(theta) = p_t(theta)^(1-n) prod_j p_t(theta|x_j), with the composed
score U, lead from the prior to the posterior, but no diffusion has them as marginals.
Particles that follow the reverse diffusion with drift G, at noise rate beta(t), are
samples of pi_t when weighted with exp(log w),

    d log w = beta dt { (|U|^2 - sum_j |s_j|^2 - (1 - n)|theta|^2) / 2
                        + U . (G - U) + div(G - U) }

(Feynman-Kac: the time derivative of log pi_t along a path, less what drift and noise
do). With r_j = s_j + theta the first bracket is sum_{j != k} r_j . r_k: only pairs of
observations count, and all weights are equal at n = 1. The divergence is the same for
all particles where single posteriors are Gaussian, and is left out. In beta dt =
s^2 d log (s/m)^2 the integral is taken by the trapezoid rule. At the start the log
ratio of pi_1 and the Gaussian with score G is added.

The effective sample size (sum w)^2 / sum w^2 compares *paths*: near the number of
particles, the sampler walked through the composed densities themselves. It falls fast
with n and dim for samplers that walk elsewhere and still arrive, as GAUSS does: a small
value is no proof of wrong samples. It compares samplers, and schedules.

References: Del Moral (2004), Feynman-Kac Formulae; Skreta et al. (2025),
arXiv 2503.02819, for products of diffusion models.
"""

import math

from torch import Tensor

from sbi_scoreaug.score_npe.schedule import VPSchedule


class PathWeights:
    """Log-weights of particles, collected along their path.

    Args:
        schedule: The noise levels.
    """

    def __init__(self, schedule: VPSchedule) -> None:
        self.schedule = schedule
        self.log_weights: Tensor | None = None
        self._last: tuple[float, Tensor] | None = None
        self._known = True

    def add(
        self,
        theta: Tensor,
        t: float,
        drift: Tensor,
        value: Tensor,
        cross: Tensor | None,
    ) -> None:
        """Add the increment up to a level; the first level gives the start's ratio.

        Args:
            theta: Particles `(num_particles, dim)` at the level.
            t: Its time.
            drift: G there; at the first level the score of the start's Gaussian.
            value: U there.
            cross: sum_{j != k} r_j . r_k `(num_particles,)`; None where it is unknown,
                which leaves the weights unknown.
        """
        if cross is None:
            self._known = False
            return
        level = math.log(self.schedule.noise_to_signal(t))
        rate = cross / 2 + (value * (drift - value)).sum(1)
        rate = self.schedule.std(t) ** 2 * rate
        if self._last is None or self.log_weights is None:
            slope = (value - drift) + (value - drift).mean(0)
            self.log_weights = ((theta - theta.mean(0)) * slope).sum(1) / 2
        else:
            width = self._last[0] - level
            self.log_weights = self.log_weights + width * (self._last[1] + rate) / 2
        self._last = level, rate

    def finish(self) -> Tensor | None:
        """Return the log-weights at t = 0 `(num_particles,)`; None if unknown.

        Below the last level the rate is constant in t, its integral s^2 rate.
        """
        if not self._known or self.log_weights is None or self._last is None:
            return None
        return self.log_weights + self._last[1]


def effective_sample_size(log_weights: Tensor | None) -> float | None:
    """Return (sum w)^2 / sum w^2; particles without a finite weight have none."""
    if log_weights is None:
        return None
    finite = log_weights[log_weights.isfinite()]
    if len(finite) == 0:
        return 0.0
    weights = (finite - finite.max()).exp()
    return float(weights.sum() ** 2 / weights.square().sum())
