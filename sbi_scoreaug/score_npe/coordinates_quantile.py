r"""Exact coordinates of distributions whose CDF or quantiles torch does not have.

z = Phi^-1(F(theta)) and theta = F^-1(Phi(z)) are computed by scipy in double precision,
each half of the distribution from its own tail,

    z = Phi^-1(F(theta))   below the median,   z = -Phi^-1(1 - F(theta))   above,

so that no tail is lost to the rounding of 1 - u. scipy knows no gradients; those are
the implicit function's,

    dz/dtheta = f(theta) / phi(z),    dtheta/dz = phi(z) / f(theta),

with the density f of torch, which also makes them differentiable again.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor
from torch.distributions import Beta, Chi2, Distribution, Gamma, InverseGamma, StudentT

from sbi_scoreaug.score_npe.coordinates_exact import NormalCoordinates


class BetaTwin:
    """What `scipy.stats.beta` gives, but for quantiles that it finds inexactly.

    `scipy.stats.beta.ppf(1e-9, 0.5, 3)` is no quantile; that of `special` is.
    """

    @staticmethod
    def cdf(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the probability below x."""
        return special.betainc(a, b, x)

    @staticmethod
    def sf(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the probability above x."""
        return special.betainc(b, a, 1 - x)

    @staticmethod
    def ppf(q: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the point with probability q below it."""
        return special.betaincinv(a, b, q)

    @staticmethod
    def isf(q: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the point with probability q above it."""
        return 1 - special.betaincinv(b, a, q)


GAMMA = ("concentration", "rate")
# By the type in torch: the type that is built of the parameters named here, the twin in
# scipy, and how that takes them.
TWINS: dict[type[Distribution], tuple[Any, tuple[str, ...], Any, Callable]] = {
    Gamma: (Gamma, GAMMA, stats.gamma, lambda a, rate: {"a": a, "scale": 1 / rate}),
    Chi2: (Gamma, GAMMA, stats.gamma, lambda a, rate: {"a": a, "scale": 1 / rate}),
    InverseGamma: (
        InverseGamma,
        GAMMA,
        stats.invgamma,
        lambda a, rate: {"a": a, "scale": rate},
    ),
    Beta: (
        Beta,
        ("concentration1", "concentration0"),
        BetaTwin,
        lambda a, b: {"a": a, "b": b},
    ),
    StudentT: (
        StudentT,
        ("df", "loc", "scale"),
        stats.t,
        lambda df, loc, scale: {"df": df, "loc": loc, "scale": scale},
    ),
}
# The probability of a tail at the ends of the scale of z, +-7.65. Beyond, scipy's
# search for the quantiles of a beta fails at times.
SMALLEST = 1e-14
FARTHEST = float(-special.ndtri(SMALLEST))


class QuantileCoordinates(NormalCoordinates):
    """Phi^-1 of the CDF of independent parameters, by scipy.

    Values travel through the CPU; the parameters of the prior move with the module.

    Args:
        prior: A distribution of a type in `TWINS`, of batch shape `(dim,)`.
    """

    median: Tensor

    def __init__(self, prior: Distribution) -> None:
        super().__init__()
        self.kind = type(prior)
        for name in TWINS[self.kind][1]:
            value = getattr(prior, name).detach()
            self.register_buffer(name, value.expand(prior.batch_shape).clone())
        middle = value.new_zeros(prior.batch_shape)
        self.register_buffer("median", self.from_normal(middle))

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return Phi^-1(F(theta)) for each component, finite at walls too."""
        return _ToNormal.apply(self._inside(theta), self)  # type: ignore[return-value]

    def from_normal(self, z: Tensor) -> Tensor:
        """Return F^-1(Phi(z)) for each component, inside the support."""
        return _FromNormal.apply(z, self)  # type: ignore[return-value]

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return sum log f(theta) - log phi(z)."""
        theta = self._inside(theta)
        return self._log_slope(theta, self.to_normal(theta)).sum(-1)

    def _cdf(self, theta: Tensor) -> Tensor:
        value = _array(theta)
        below = value < _array(self.median)
        tail = self._by_tail("cdf", "sf", value, below)
        z = special.ndtri(np.maximum(tail, SMALLEST))
        return torch.from_numpy(np.where(below, z, -z)).to(theta)

    def _quantile(self, z: Tensor) -> Tensor:
        value = _array(z)
        tail = np.maximum(special.ndtr(-np.abs(value)), SMALLEST)
        theta = self._by_tail("ppf", "isf", tail, value < 0)
        return self._inside(torch.from_numpy(theta).to(z))

    def _by_tail(
        self, lower: str, upper: str, value: np.ndarray, below: np.ndarray
    ) -> np.ndarray:
        """Evaluate one function of the twin below the median, another above."""
        _, names, twin, translate = TWINS[self.kind]
        parameters = [
            np.broadcast_to(_array(getattr(self, name)), value.shape) for name in names
        ]
        found = np.empty_like(value)
        for function, rows in ((lower, below), (upper, ~below)):
            arguments = translate(*(parameter[rows] for parameter in parameters))
            found[rows] = getattr(twin, function)(value[rows], **arguments)
        return found

    def _bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        info = torch.finfo(dtype)
        far = 0.01 * math.sqrt(info.max)  # Its square is a number too.
        low = -far if self.kind is StudentT else info.tiny
        return low, 1 - info.eps / 2 if self.kind is Beta else far

    def _inside(self, theta: Tensor) -> Tensor:
        """Move values at a wall, or beyond, inside by what the numbers resolve."""
        low, high = self._bounds(theta.dtype)
        return theta.clamp(low, high)

    def _log_slope(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return log dz/dtheta of each component."""
        kind, names = TWINS[self.kind][:2]
        parameters = {name: getattr(self, name) for name in names}
        log_prob = kind(**parameters, validate_args=False).log_prob(theta)
        return log_prob + 0.5 * (z.square() + math.log(2 * math.pi))

    def _slope(self, theta: Tensor, z: Tensor, sign: int) -> Tensor:
        """Return dz/dtheta, or its inverse; 0 at the ends, where nothing moves."""
        low, high = self._bounds(theta.dtype)
        moves = (z.abs() < FARTHEST) & (theta > low) & (theta < high)
        slope = (sign * self._log_slope(theta, z)).exp()
        return torch.where(moves, slope, torch.zeros_like(slope)).to(theta)


class _ToNormal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, coordinates: QuantileCoordinates) -> Tensor:
        z = coordinates._cdf(theta)
        ctx.save_for_backward(theta, z)
        ctx.coordinates = coordinates
        return z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        theta, z = ctx.saved_tensors
        return grad_outputs[0] * ctx.coordinates._slope(theta, z, 1), None


class _FromNormal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, coordinates: QuantileCoordinates) -> Tensor:
        theta = coordinates._quantile(z)
        ctx.save_for_backward(theta, z)
        ctx.coordinates = coordinates
        return theta

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        theta, z = ctx.saved_tensors
        return grad_outputs[0] * ctx.coordinates._slope(theta, z, -1), None


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()
