r"""One posterior score from many: the score of a set of observations.

    p(theta|x_1..x_n)  proportional to  p(theta)^(1-n) prod_j p(theta|x_j)

In coordinates where the prior is N(0, I) and s_j = grad log p_t(theta|x_j), the score
composed at noise level t with the diffused prior is

    U(theta, t) = (n - 1) theta + sum_j s_j = -theta + sum_j (s_j + theta)

The second form adds n differences that are small where an observation says little. It
is accumulated in float64 over chunks of particles and of observations, so memory does
not grow with n. U is the exact posterior score at t = 0 only: at t > 0 diffusing does
not commute with multiplying, which is what `samplers` have to deal with.

Two options for large n. *Minibatch*: with r_j = s_j + theta, the sum over n is replaced
by that over b random observations B, anew at every call, and at a centre c of the
particles (one for each half of them) by that over all,

    sum_j r_j(theta)  ~  n/b sum_{j in B} [r_j(theta) - r_j(c)]  +  sum_j r_j(c)

a control variate: unbiased, and with little noise where the particles agree (Baker et
al. 2019). *Damping* d(t): the sum is multiplied by d(t), as if there were n d(t)
observations; d(0) = 1 leaves the target as it is, d < 1 at large t keeps the error of
many network scores from adding up there.

References: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, section 4. Damping:
Arruda et al. (2025), arXiv 2505.14429. Control variates: Baker, Fearnhead, Fox &
Nemeth (2019), Statistics and Computing 29, 599-615.
"""

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

PosteriorScore = Callable[[Tensor, float, Tensor], Tensor]


class Excess(NamedTuple):
    """What observations add to the prior's score, r_j = s_j + theta.

    Attributes:
        mean: Mean over observations `(batch, dim)`.
        cross: sum_{j != k} r_j . r_k `(batch,)`, for `feynman_kac`; None where it
            cannot be had (one of several observations at a time, or damping).
    """

    mean: Tensor
    cross: Tensor | None


class ComposedScore:
    """The score of p(theta|x_1..x_n) at any noise level, in bounded memory.

    Args:
        posterior_score: `(theta (batch, dim), t, x (m, *shape)) -> (batch, m, dim)`,
            the scores of single observations where the prior is N(0, I).
        x: The set `(n, *shape)`; embedded observations, if `posterior_score` takes
            such.
        rows_at_once: Pairs of a particle and an observation that are worked on
            together; bounds the memory.
        minibatch: Number of observations drawn at each call; None for all. What they
            say of two centres of the particles is set right by all observations, at
            two more pairs for each: without that, 100 of 1000 move the samples of a
            call together, by two posterior sd and more (exact scores).
        damping: Function of t with values in (0, 1], 1 at t = 0; None for 1.

    Attributes:
        num_observations: n.
        evaluations: How often the composed score has been computed.

    Raises:
        InvalidInputError: If the set is empty or not finite, or a number is out of
            range.
        InvalidTypeError: If `posterior_score` or `damping` cannot be called.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> single = lambda theta, t, x: -2 * (theta[:, None] - x / 2)  # N(x/2, 1/2)
        >>> score = ComposedScore(single, x)
        >>> score(torch.zeros(1, 1), 0.0)
        tensor([[1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        posterior_score: PosteriorScore,
        x: Tensor,
        *,
        rows_at_once: int = 16384,
        minibatch: int | None = None,
        damping: Callable[[float], float] | None = None,
    ) -> None:
        if not callable(posterior_score):
            raise InvalidTypeError(
                "posterior_score: expected a function (theta, t, x), got "
                f"{type(posterior_score).__name__}."
            )
        require_set(x)
        require_count("rows_at_once", rows_at_once)
        if minibatch is not None:
            require_count("minibatch", minibatch)
        if damping is not None:
            _require_damping(damping)
        self.posterior_score, self.x = posterior_score, x
        self.num_observations = len(x)
        self.rows_at_once, self.minibatch = rows_at_once, minibatch
        self.damping = damping
        self.evaluations = 0

    def effective_size(self, t: float) -> float:
        """Return n d(t), the number of observations that count at time t."""
        if self.damping is None:
            return float(self.num_observations)
        factor = float(self.damping(t))
        if not 0 < factor <= 1:
            raise InvalidInputError(
                f"damping: expected values in (0, 1], got {factor} at t = {t}."
            )
        return self.num_observations * factor

    def __call__(self, theta: Tensor, t: float) -> Tensor:
        """Return U `(batch, dim)`, float64, at `theta (batch, dim)` and time `t`."""
        return self.effective_size(t) * self.mean_excess(theta, t) - theta

    def mean_excess(self, theta: Tensor, t: float) -> Tensor:
        """Return the mean over observations of s_j + theta, `(batch, dim)`."""
        return self.excess(theta, t).mean

    @torch.no_grad()
    def excess(self, theta: Tensor, t: float) -> Excess:
        """Return the moments of r_j = s_j + theta over observations; one evaluation."""
        self.evaluations += 1
        n = len(self.x)
        if self.minibatch is None or self.minibatch >= n:
            return self._excess(theta, t, self.x)
        drawn = self.x[torch.randperm(n, device=self.x.device)[: self.minibatch]]
        side, centres = _halves(theta)
        excess, at = self._excess(theta, t, drawn), self._excess(centres, t, drawn)
        error = at.mean - self._excess(centres, t, self.x).mean
        return Excess(excess.mean - error[side], excess.cross)

    def _excess(self, theta: Tensor, t: float, x: Tensor) -> Excess:
        total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
        squares, start = total[:, 0].clone(), 0
        for rows in theta.split(self.rows_at_once):
            part = slice(start, start + len(rows))
            for observations in x.split(max(1, self.rows_at_once // len(rows))):
                scores = self.posterior_score(rows, t, observations)
                excess = scores.double() + rows[:, None]
                total[part] += excess.sum(1)
                squares[part] += excess.square().sum((1, 2))
            start += len(rows)
        return Excess(total / len(x), self._cross(total, squares, len(x)))

    def _cross(self, total: Tensor, squares: Tensor, num_used: int) -> Tensor | None:
        n = self.num_observations
        if self.damping is not None or (num_used == 1 and n > 1):
            return None
        scale = n * (n - 1) / max(num_used * (num_used - 1), 1)
        return scale * (total.square().sum(1) - squares)


def _halves(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Halve particles at the mean of their widest parameter.

    Returns:
        Which half each is in, 0 or 1 `(batch,)`, and the centres of both `(2, dim)`.
    """
    # Samplers replace particles that are not finite; they must not move the others.
    theta = theta.nan_to_num(0.0, 0.0, 0.0)
    mean = theta.mean(0)
    widest = (theta - mean).abs().mean(0).argmax()
    side = (theta[:, widest] > mean[widest]).long()
    centres = [theta[side == k] if (side == k).any() else theta for k in (0, 1)]
    return side, torch.stack([some.mean(0) for some in centres])


def _require_damping(damping: Callable[[float], float]) -> None:
    if not callable(damping):
        raise InvalidTypeError(
            f"damping: expected a function of t, got {damping!r}, for instance "
            "lambda t: 1 / (1 + 5 * t)."
        )
    if abs(float(damping(0.0)) - 1) > 1e-6:
        raise InvalidInputError(
            f"damping: expected 1 at t = 0, got {float(damping(0.0))}: samples would "
            "be of a posterior of fewer observations. Divide it by its value there."
        )


def require_set(x: Tensor) -> None:
    """Raise unless `x` is a finite set of at least one observation."""
    if not isinstance(x, Tensor):
        raise InvalidTypeError(
            f"x: expected a tensor (n, *shape_x), got {type(x).__name__}."
        )
    if x.ndim < 1 or len(x) == 0:
        raise InvalidInputError(
            f"x: expected at least one observation, got shape {tuple(x.shape)}. With "
            "none the posterior is the prior: sample that."
        )
    bad = (~x.reshape(len(x), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise InvalidInputError(
            f"x: expected finite observations, got NaN or infinity in rows {bad[:10]}. "
            "Leave these observations out."
        )


def require_count(name: str, value: int) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidTypeError(f"{name}: expected an integer, got {value!r}.")
    if value < 1:
        raise InvalidInputError(f"{name}: expected 1 or more, got {value}.")
