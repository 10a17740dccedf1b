r"""Coordinates in which the prior is N(0, I).

    z = L^-1 (theta - mu)              theta ~ N(mu, L L'): exact
    z_i = Phi^-1(F_i(theta_i))         independent parameters with CDF F_i: exact
    z = (T(theta) - mean) / std        otherwise: the host's map T to the real line,
                                       standardised with draws from the prior

There the diffused prior score is -z at all noise levels, every parameter has the same
scale, and theta(z) lies in the support whatever z: no rejection, no leakage. Densities
change by log |dz/dtheta|.
"""

import math
from typing import Any

import torch
from sbi.utils import BoxUniform, mcmc_transform
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
)

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

NUM_DRAWS = 10_000


class NormalCoordinates(nn.Module):
    """A map between parameters and coordinates in which the prior is normal."""

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return z `(..., dim)` for `theta (..., dim)`."""
        raise NotImplementedError

    def from_normal(self, z: Tensor) -> Tensor:
        """Return theta `(..., dim)`, inside the support, for `z (..., dim)`."""
        raise NotImplementedError

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return log |dz/dtheta| `(...)` at `theta (..., dim)`."""
        raise NotImplementedError


class GaussianCoordinates(NormalCoordinates):
    """Standardisation of a Gaussian prior.

    Args:
        mean: `(dim,)`.
        scale_tril: Cholesky factor of the covariance `(dim, dim)`.
    """

    mean: Tensor
    scale_tril: Tensor

    def __init__(self, mean: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale_tril", scale_tril.clone())

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return L^-1 (theta - mu)."""
        centred = (theta - self.mean).unsqueeze(-1)
        return torch.linalg.solve_triangular(
            self.scale_tril, centred, upper=False
        ).squeeze(-1)

    def from_normal(self, z: Tensor) -> Tensor:
        """Return mu + L z."""
        return self.mean + z @ self.scale_tril.mT

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return -log |L|, the same for all theta."""
        return -self.scale_tril.diagonal().log().sum().expand(theta.shape[:-1])


class BoxCoordinates(NormalCoordinates):
    """Phi^-1 of the position between the walls of a box.

    Args:
        low: Lower walls `(dim,)`.
        high: Upper walls `(dim,)`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return Phi^-1((theta - low) / (high - low)), finite at the walls too."""
        u = (theta.double() - self.low) / (self.high - self.low).double()
        return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).to(theta)

    def from_normal(self, z: Tensor) -> Tensor:
        """Return low + (high - low) Phi(z), inside the walls in float32 too."""
        theta = self.low + (self.high - self.low) * torch.special.ndtr(z.double())
        margin = 1e-6 * (self.high - self.low)
        inside = theta.to(z.dtype)
        return torch.maximum(
            torch.minimum(inside, self.high - margin), self.low + margin
        )

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return -sum log[(high - low) phi(z)]."""
        z = self.to_normal(theta)
        log_normal = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return -(log_normal + (self.high - self.low).log()).sum(-1)


class IndependentCoordinates(NormalCoordinates):
    """Phi^-1 of the CDF of independent parameters.

    Args:
        prior: A prior with `cdf` and `icdf` by component, `(..., dim) -> (..., dim)`.
        dim: Number of parameters.
    """

    def __init__(self, prior: Distribution, dim: int) -> None:
        super().__init__()
        self.prior = prior
        self.dim = dim
        # The estimator and the device checks of the host look for a tensor.
        self.register_buffer("zero", torch.zeros(1))

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return Phi^-1(F(theta)) for each component."""
        u = self.prior.cdf(theta).double().clamp(1e-7, 1 - 1e-7)
        return torch.special.ndtri(u).to(theta)

    def from_normal(self, z: Tensor) -> Tensor:
        """Return F^-1(Phi(z)) for each component."""
        u = torch.special.ndtr(z.double()).to(z.dtype)
        return self.prior.icdf(u.clamp(1e-7, 1 - 1e-7)).to(z)

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return sum log f(theta) - log phi(z)."""
        z = self.to_normal(theta)
        log_normal = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return (self.prior.log_prob(theta) - log_normal).sum(-1)


class TransformedCoordinates(NormalCoordinates):
    """The host's transform to the real line, then standardisation.

    Args:
        prior: The prior; 10,000 draws are made, which leaves the generator as it was.
    """

    def __init__(self, prior: Distribution) -> None:
        super().__init__()
        self.transform: Any = mcmc_transform(prior)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            free = self.transform(prior.sample((NUM_DRAWS,)))
        covariance = torch.cov(free.mT).reshape(2 * free.shape[1:])
        self.affine = GaussianCoordinates(
            free.mean(0), torch.linalg.cholesky(covariance)
        )

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return L^-1 (T(theta) - mean)."""
        return self.affine.to_normal(self.transform(theta))

    def from_normal(self, z: Tensor) -> Tensor:
        """Return T^-1(mean + L z)."""
        return self.transform.inv(self.affine.from_normal(z))

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return log |dT/dtheta| - log |L|."""
        free = self.transform(theta)
        host = self.transform.log_abs_det_jacobian(theta, free)
        if host.ndim == theta.ndim:
            host = host.sum(-1)
        return host + self.affine.log_abs_det(free)


def normal_coordinates(prior: Distribution | None) -> NormalCoordinates:
    """Return the coordinates that fit the prior.

    Args:
        prior: A prior over `(dim,)`.

    Returns:
        A module that moves between devices and pickles as the prior does.

    Raises:
        InvalidTypeError: If `prior` is no distribution with `sample` and `log_prob`.
        InvalidInputError: If no invertible map to the real line is known for it.

    Example:
        >>> coordinates = normal_coordinates(BoxUniform(torch.zeros(2), torch.ones(2)))
        >>> coordinates.to_normal(torch.full((2,), 0.5))
        tensor([0., 0.])
    """
    if not (hasattr(prior, "log_prob") and hasattr(prior, "sample")):
        raise InvalidTypeError(
            "prior: expected a distribution with sample() and log_prob(), got "
            f"{type(prior).__name__}. Sets of observations need the prior's density."
        )
    if isinstance(prior, MultivariateNormal):
        return GaussianCoordinates(prior.loc, prior.scale_tril)
    base = prior.base_dist if isinstance(prior, Independent) else None
    if isinstance(prior, BoxUniform) or isinstance(base, Uniform):
        return BoxCoordinates(base.low, base.high)  # type: ignore[union-attr]
    if isinstance(base, Normal):
        return GaussianCoordinates(base.mean, base.stddev.diag())
    draws = prior.sample((100,))  # type: ignore[union-attr]
    if base is not None and _inverts(
        IndependentCoordinates(base, draws.shape[-1]), draws
    ):
        return IndependentCoordinates(base, draws.shape[-1])
    try:
        coordinates = TransformedCoordinates(prior)  # type: ignore[arg-type]
        support = getattr(prior, "support", None)
        discrete = getattr(support, "is_discrete", False)
        usable = not discrete and _inverts(coordinates, draws)
    except (NotImplementedError, RuntimeError, ValueError, AssertionError):
        usable = False
    if not usable:
        raise InvalidInputError(
            "prior: expected one that can be mapped to the real line and back, got "
            f"{type(prior).__name__}. Give it a support that sbi's mcmc_transform "
            "knows, or parametrise it by independent parameters."
        )
    return coordinates


def _inverts(coordinates: NormalCoordinates, theta: Tensor) -> bool:
    try:
        z = coordinates.to_normal(theta)
        back = coordinates.from_normal(z)
        log_det = coordinates.log_abs_det(theta)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    finite = z.isfinite().all() and log_det.isfinite().all()
    return bool(finite) and torch.allclose(back, theta, rtol=1e-2, atol=1e-3)
