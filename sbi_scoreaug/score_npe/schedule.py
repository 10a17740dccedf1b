r"""The variance-preserving diffusion, and its levels in closed form.

    theta_t = m(t) theta + s(t) e,   e ~ N(0, I),   m^2 + s^2 = 1,   0 <= t <= 1
    log m(t)^2 = -(beta_min t + (beta_max - beta_min) t^2 / 2)

Where the prior of theta is N(0, I), that of theta_t is N(0, I) too, so the diffused
prior score is -theta_t at all levels. `noise_to_signal` is (s/m)^2; steps that are
equal in its logarithm spend the same effort on every scale of the posterior.

Reference: Song et al. (2021), arXiv 2011.13456, appendix B (VP SDE).
"""

import math
from dataclasses import dataclass

from sbi_scoreaug.errors import InvalidInputError

T_LAST = 0.01  # the last level at which scores are evaluated, unless another is asked


@dataclass(frozen=True)
class VPSchedule:
    """Noise levels of a variance-preserving diffusion with a linear rate.

    Attributes:
        beta_min: Rate at t = 0.
        beta_max: Rate at t = 1.

    Example:
        >>> schedule = VPSchedule()
        >>> round(schedule.time(schedule.noise_to_signal(0.3)), 6)
        0.3
    """

    beta_min: float = 0.01
    beta_max: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise InvalidInputError(
                "beta_min, beta_max: expected 0 < beta_min < beta_max, got "
                f"{self.beta_min} and {self.beta_max}."
            )

    def noise_to_signal(self, t: float) -> float:
        """Return (s/m)^2 at time t."""
        return math.expm1(
            self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2
        )

    def mean(self, t: float) -> float:
        """Return m at time t."""
        return (1 + self.noise_to_signal(t)) ** -0.5

    def std(self, t: float) -> float:
        """Return s at time t."""
        ratio = self.noise_to_signal(t)
        return (ratio / (1 + ratio)) ** 0.5

    def time(self, noise_to_signal: float) -> float:
        """Return the time at which (s/m)^2 has this value."""
        exponent, slope = math.log1p(noise_to_signal), self.beta_max - self.beta_min
        root = math.sqrt(self.beta_min**2 + 2 * slope * exponent)
        return 2 * exponent / (self.beta_min + root)

    def levels(self, num_steps: int, t_last: float) -> list[float]:
        """Return `num_steps + 1` times from 1 to `t_last`, equal in log (s/m)^2."""
        first = math.log(self.noise_to_signal(1.0))
        last = math.log(self.noise_to_signal(t_last))
        inner = [
            self.time(math.exp(first + (last - first) * k / num_steps))
            for k in range(1, num_steps)
        ]
        return [1.0, *inner, t_last]
