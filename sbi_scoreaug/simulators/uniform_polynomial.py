r"""A polynomial with uniform noise: one parameter, bounded support.

    theta ~ U(-1.5, 1.5),    x = g(theta) + e,    e ~ U(-h, h),    h = 1/4
    g(theta) = sum_i a_i (0.8 (theta + 0.25))^i,
    a = (.1627, .9073, -1.2197, -1.4639, 1.4381)

    d(x, x_t) = (x - x_t)^2,    c(theta, x_t) = (g(theta) - x_t)^2 + h^2 / 3

The likelihood of an x_o outside the range of g plus h is zero for every theta; the
generalized posterior concentrates where g comes nearest to it.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208, "uniform 1D".
"""

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.simulators.cost_base import BoxCostSimulator

COEFFICIENTS = (0.1627, 0.9073, -1.2197, -1.4639, 1.4381)
HALF_WIDTH = 0.25


class UniformPolynomial(BoxCostSimulator):
    """Uniform noise around a quartic polynomial, squared distance.

    Example:
        >>> problem = UniformPolynomial()
        >>> theta = problem.prior.sample((3,))
        >>> problem(theta).shape, problem.expected_cost(theta, torch.zeros(1, 1)).shape
        (torch.Size([3, 1]), torch.Size([3]))
        >>> problem.exact_posterior(torch.tensor([2.0]), beta=20.0).mean.shape
        torch.Size([1])
    """

    betas = (4.0, 20.0, 100.0)
    points_per_axis = 3000

    def __init__(self) -> None:
        self.prior = BoxUniform(torch.tensor([-1.5]), torch.tensor([1.5]))
        self.shape_x = torch.Size([1])

    def mean(self, theta: Tensor) -> Tensor:
        """The polynomial g `(batch, 1)` at `theta (batch, 1)`."""
        powers = (0.8 * (theta + 0.25)) ** torch.arange(len(COEFFICIENTS))
        return (powers * torch.tensor(COEFFICIENTS, dtype=theta.dtype)).sum(1, True)

    def _simulate(self, theta: Tensor) -> Tensor:
        return self.mean(theta) + HALF_WIDTH * (2 * torch.rand_like(theta) - 1)

    def _expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor:
        return (self.mean(theta) - x_t).square().mean(dim=1) + HALF_WIDTH**2 / 3
