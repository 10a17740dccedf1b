r"""Coordinates in which the prior is N(0, I).

    z = L^-1 (theta - mu)              theta ~ N(mu, L L'): exact
    z_i = Phi^-1(F_i(theta_i))         independent parameters with CDF F_i: exact
    z = (z_1, z_2, ...)                independent blocks, each by its own: exact
    z = (T(theta) - mean) / std        otherwise: the host's map T to the real line,
                                       standardised with draws from the prior

There the diffused prior score is -z at all noise levels, every parameter has the same
scale, and theta(z) lies in the support whatever z: no rejection, no leakage. Densities
change by log |dz/dtheta|.

In the last kind the prior of z has the mean and covariance of N(0, I), not its shape
(`exact` is False). One posterior does not mind. A set of n observations whose
posteriors are divided by N(z; 0, I)^(n - 1) is off by the factor
[p(z) / N(z; 0, I)]^(n - 1); `log_prior` gives p(z).
"""

from typing import Any

import torch
from sbi.utils import MultipleIndependent, mcmc_transform
from sbi.utils.user_input_checks_utils import OneDimPriorWrapper
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
)

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.coordinates_exact import (
    BoxCoordinates,
    GaussianCoordinates,
    IndependentCoordinates,
    NormalCoordinates,
    StackedCoordinates,
)
from sbi_scoreaug.score_npe.coordinates_quantile import TWINS, QuantileCoordinates

NUM_DRAWS = 10_000


class TransformedCoordinates(NormalCoordinates):
    """The host's transform to the real line, then standardisation: about normal.

    Args:
        prior: The prior; 10,000 draws are made, which leaves the generator as it was.
    """

    exact = False
    prior: Distribution

    def __init__(self, prior: Distribution) -> None:
        super().__init__()
        self.prior = prior
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

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(theta(z)) - log |dz/dtheta| `(...)`."""
        theta = self.from_normal(z)
        # Priors of the host take (batch, dim) only, and may return (batch, 1).
        log_prob = self.prior.log_prob(theta.reshape(-1, theta.shape[-1]))
        return log_prob.reshape(z.shape[:-1]) - self.log_abs_det(theta)


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
        >>> from sbi.utils import BoxUniform
        >>> coordinates = normal_coordinates(BoxUniform(torch.zeros(2), torch.ones(2)))
        >>> coordinates.to_normal(torch.full((2,), 0.5))
        tensor([0., 0.])
    """
    if not (hasattr(prior, "log_prob") and hasattr(prior, "sample")):
        raise InvalidTypeError(
            "prior: expected a distribution with sample() and log_prob(), got "
            f"{type(prior).__name__}. Sets of observations need the prior's density."
        )
    joint = _joint(prior)  # type: ignore[arg-type]
    exact = _exact_coordinates(joint)
    if exact is not None:
        return exact
    draws = joint.sample((100,))
    try:
        coordinates = TransformedCoordinates(joint)
        support = getattr(joint, "support", None)
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


def _joint(prior: Distribution) -> Distribution:
    """Return a prior with one event dimension, where the host takes (and adds) none."""
    if isinstance(prior, OneDimPriorWrapper):
        prior = prior.prior
    one = isinstance(prior, Distribution) and prior.batch_shape == (1,)
    return Independent(prior, 1) if one and not prior.event_shape else prior


def _exact_coordinates(prior: Distribution) -> NormalCoordinates | None:
    """Return coordinates in which the prior is exactly N(0, I), None if unknown."""
    if isinstance(prior, MultivariateNormal):
        return GaussianCoordinates(prior.loc, prior.scale_tril)
    if isinstance(prior, MultipleIndependent):
        parts = [_exact_coordinates(_joint(part)) for part in prior.dists]
        known = [part for part in parts if part is not None]
        whole = len(known) == len(parts)
        return StackedCoordinates(known, prior.dims_per_dist) if whole else None
    if not isinstance(prior, Independent):
        return None
    base = prior.base_dist
    if isinstance(base, Uniform):
        return BoxCoordinates(base.low, base.high)
    if isinstance(base, Normal):
        return GaussianCoordinates(base.mean, base.stddev.diag())
    if len(base.batch_shape) != 1:
        return None
    draws, dim = prior.sample((100,)), base.batch_shape[0]
    candidate: NormalCoordinates = IndependentCoordinates(base, dim)
    if type(base) in TWINS:
        candidate = QuantileCoordinates(base)
    return candidate if _inverts(candidate, draws) else None


def _inverts(coordinates: NormalCoordinates, theta: Tensor) -> bool:
    try:
        z = coordinates.to_normal(theta)
        back = coordinates.from_normal(z)
        log_det = coordinates.log_abs_det(theta)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    finite = z.isfinite().all() and log_det.isfinite().all()
    return bool(finite) and torch.allclose(back, theta, rtol=1e-2, atol=1e-3)
