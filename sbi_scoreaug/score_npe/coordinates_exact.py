"""Coordinates in which the prior is N(0, I) exactly, by closed forms of torch."""

import math
from collections.abc import Callable, Sequence

import torch
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution
from typing_extensions import Self


class NormalCoordinates(nn.Module):
    """A map between parameters and coordinates in which the prior is normal.

    Attributes:
        exact: Whether the prior of z is N(0, I); else it is only about that.
    """

    exact: bool = True
    prior: Distribution | None = None  # Where it is evaluated; it moves along.

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return z `(..., dim)` for `theta (..., dim)`."""
        raise NotImplementedError

    def from_normal(self, z: Tensor) -> Tensor:
        """Return theta `(..., dim)`, inside the support, for `z (..., dim)`."""
        raise NotImplementedError

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return log |dz/dtheta| `(...)` at `theta (..., dim)`."""
        raise NotImplementedError

    def walls(self, dim: int) -> Tensor:
        """Return 1 for parameters uniform between two walls, 0 for others `(dim,)`."""
        return torch.zeros(dim)

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z) `(...)`, the prior's density of `z (..., dim)`."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = [buffer.device for buffer in self.buffers()]
        module = super()._apply(fn, recurse)
        device = next(self.buffers()).device
        if self.prior is not None and before[0] != device:
            self.prior = move_distribution_to_device(self.prior, device)
        return module


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

    def walls(self, dim: int) -> Tensor:
        """Return 1 for each parameter."""
        return torch.ones(dim)


class IndependentCoordinates(NormalCoordinates):
    """Phi^-1 of the CDF of independent parameters.

    Args:
        prior: A prior with `cdf` and `icdf` by component, `(..., dim) -> (..., dim)`.
        dim: Number of parameters.
    """

    prior: Distribution

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


class StackedCoordinates(NormalCoordinates):
    """Coordinates of blocks of parameters that are independent of each other.

    Args:
        parts: Coordinates of each block, all exact.
        sizes: Number of parameters of each block, in the order of theta.
    """

    def __init__(self, parts: Sequence[NormalCoordinates], sizes: list[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = sizes

    def to_normal(self, theta: Tensor) -> Tensor:
        """Return the coordinates of all blocks, side by side."""
        return torch.cat(self._each("to_normal", theta), -1)

    def from_normal(self, z: Tensor) -> Tensor:
        """Return the parameters of all blocks, side by side."""
        return torch.cat(self._each("from_normal", z), -1)

    def log_abs_det(self, theta: Tensor) -> Tensor:
        """Return the sum over the blocks."""
        return torch.stack(self._each("log_abs_det", theta)).sum(0)

    def walls(self, dim: int) -> Tensor:
        """Return those of the blocks, side by side."""
        parts = zip(self.parts, self.sizes, strict=True)
        return torch.cat([part.walls(size) for part, size in parts])  # type: ignore[operator]

    def _each(self, method: str, value: Tensor) -> list[Tensor]:
        blocks = value.split(self.sizes, -1)
        return [
            getattr(part, method)(block)
            for part, block in zip(self.parts, blocks, strict=True)
        ]
