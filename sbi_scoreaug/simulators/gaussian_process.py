r"""Gaussian random field with unknown variance and range.

An image y of n = g x g unit-spaced pixels with zero mean and covariance

    K = v R(r),    R_ij = exp(-d_ij / r),    theta = (log v, log r)

    log p(y|theta) = -1/2 q - 1/2 log |K| - n/2 log 2 pi,    q = y' K^-1 y

With a = K^-1 y the score is s_k = 1/2 tr[(w a a' - K^-1) d_k K], w = 1 for the
Gaussian. In terms of the correlation matrix alone, b = R^-1 y and R' = dR / d log r:

    d/d log v = 1/2 (w q - n),                                   q = y' b / v
    d/d log r = 1/2 (w b' R' b / v - tr(R^-1 R'))

A field that is a scale mixture of Gaussians differs in the weight w and in how q
enters the density; `FieldSimulator` leaves these two to its subclasses. A grid
posterior needs one Cholesky factor for each range only.

References: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning,
eq. 5.9; Mardia and Marshall (1984), Biometrika 71, 135-146.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import BoxSimulator
from sbi_scoreaug.simulators.correlation import ExponentialCorrelation


class _Factor(NamedTuple):
    """Cholesky factors of the four blocks of R, and log |R|."""

    cholesky: Tensor  # (batch, 4, n / 4, n / 4)
    log_det: Tensor  # (batch,)


class FieldSimulator(BoxSimulator):
    """Random field with exponential covariance; subclasses state the density.

    Args:
        grid_size: Pixels along each side of the image, even.

    Raises:
        InvalidInputError: If `grid_size` is not a positive even number.
    """

    def __init__(self, grid_size: int = 16) -> None:
        if grid_size < 2 or grid_size % 2:
            raise InvalidInputError(
                f"grid_size must be a positive even number, got {grid_size}."
            )
        upper = math.log(max(1.0, grid_size / 4))
        self.prior = BoxUniform(
            torch.tensor([-2.0, math.log(0.5)]), torch.tensor([2.0, upper])
        )
        self.grid_size = grid_size
        self.shape_x = torch.Size([grid_size, grid_size])
        self.rows_at_once = min(256, max(1, 2**24 // grid_size**4))
        self._correlation = ExponentialCorrelation(grid_size)

    @abstractmethod
    def _amplitude(self, batch: int) -> Tensor:
        """Random factor `(batch,)` of unit mean square on a Gaussian field."""

    @abstractmethod
    def _log_density(self, quadratic: Tensor, log_det: Tensor) -> Tensor:
        """Log density from q = y' K^-1 y and log |K|."""

    @abstractmethod
    def _weight(self, quadratic: Tensor) -> Tensor:
        """The weight w = -2 d log p / d q."""

    def _factor(self, log_range: Tensor) -> _Factor:
        cholesky = torch.linalg.cholesky(self._correlation.blocks(log_range))
        diagonal = cholesky.diagonal(dim1=-2, dim2=-1)
        return _Factor(cholesky, 2 * diagonal.log().sum(dim=(1, 2)))

    def _quadratic(self, factor: _Factor, x: Tensor) -> Tensor:
        """Quadratic form y' R^-1 y, `(batch,)`."""
        split = self._correlation.split(x).unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor.cholesky, split, upper=False)
        return white.square().sum(dim=(1, 2, 3))

    def _simulate(self, theta: Tensor) -> Tensor:
        cholesky = self._factor(theta[:, 1]).cholesky
        white = torch.randn(*cholesky.shape[:3], 1, dtype=theta.dtype)
        field = self._correlation.join((cholesky @ white).squeeze(-1))
        scale = (theta[:, 0] / 2).exp() * self._amplitude(len(theta))
        return scale[:, None, None] * field

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        factor = self._factor(theta[:, 1])
        return self._scaled_log_prob(
            theta[:, 0], self._quadratic(factor, x), factor.log_det
        )

    def _scaled_log_prob(
        self, log_variance: Tensor, quadratic: Tensor, log_det: Tensor
    ) -> Tensor:
        """Log density from the quadratic form and log determinant of R."""
        num_pixels = self.shape_x.numel()
        return self._log_density(
            quadratic * (-log_variance).exp(), log_det + num_pixels * log_variance
        )

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        cholesky = self._factor(theta[:, 1]).cholesky
        identity = torch.eye(cholesky.shape[-1], dtype=theta.dtype)
        whitener = torch.linalg.solve_triangular(
            cholesky, identity.expand_as(cholesky), upper=False
        )
        inverse = whitener.mT @ whitener
        derivative = self._correlation.derivative_blocks(theta[:, 1])
        split = self._correlation.split(x).unsqueeze(-1)
        b = inverse @ split
        precision = (-theta[:, 0]).exp()
        q = precision * (split * b).sum(dim=(1, 2, 3))
        q_derivative = precision * (b * (derivative @ b)).sum(dim=(1, 2, 3))
        trace = inverse.flatten(1).unsqueeze(1) @ derivative.flatten(1).unsqueeze(2)
        w = self._weight(q)
        d_log_variance = 0.5 * (w * q - self.shape_x.numel())
        d_log_range = 0.5 * (w * q_derivative - trace.flatten())
        return torch.stack([d_log_variance, d_log_range], dim=1)

    def _log_prob_on_grid(self, theta: Tensor, x_o: Tensor) -> Tensor:
        log_range, index = theta[:, 1].unique(return_inverse=True)
        quadratics, log_dets = [], []
        for rows in log_range.split(self.rows_at_once):
            factor = self._factor(rows)
            x = x_o.expand(len(rows), *self.shape_x)
            quadratics.append(self._quadratic(factor, x))
            log_dets.append(factor.log_det)
        return self._scaled_log_prob(
            theta[:, 0], torch.cat(quadratics)[index], torch.cat(log_dets)[index]
        )


class GaussianProcessField(FieldSimulator):
    """Zero-mean Gaussian field with exponential covariance on a square grid.

    `theta = (log variance, log range)`; the prior is uniform, log variance in [-2, 2]
    and the range from half a pixel to a quarter of the grid's side.

    Args:
        grid_size: Pixels along each side of the image, even.

    Raises:
        InvalidInputError: If `grid_size` is not a positive even number.

    Example:
        >>> simulator = GaussianProcessField(grid_size=8)
        >>> theta = simulator.prior.sample((4,))
        >>> x = simulator(theta)
        >>> x.shape, simulator.score(theta, x).shape
        (torch.Size([4, 8, 8]), torch.Size([4, 2]))
        >>> simulator.exact_posterior(x[0], points_per_axis=20).shape
        (20, 20)
    """

    def _amplitude(self, batch: int) -> Tensor:
        return torch.ones(batch, dtype=torch.float64)

    def _log_density(self, quadratic: Tensor, log_det: Tensor) -> Tensor:
        num_pixels = self.shape_x.numel()
        return -0.5 * (quadratic + log_det + num_pixels * math.log(2 * math.pi))

    def _weight(self, quadratic: Tensor) -> Tensor:
        return torch.ones_like(quadratic)
