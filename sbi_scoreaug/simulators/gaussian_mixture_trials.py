r"""Trials from a two-scale Gaussian mixture, compared as sets by an MMD.

    theta ~ U(-10, 10)^2,    x = n trials, each N(theta, I) or N(theta, .1^2 I), 1 : 1

    d(x, x_t) = U-statistic of the squared MMD, kernel k(r) = exp(-s |r|^2), s = .01:
                mean_{i != j} k(x_i - x_j) - 2 mean_ij k(x_i - y_j)
                + mean_{i != j} k(y_i - y_j),      y the trials of x_t

For a Gaussian difference r ~ N(m, v I) in D dimensions

    E k(r) = kappa(v, m) = (1 + 2 s v)^(-D/2) exp(-s |m|^2 / (1 + 2 s v))

so that, the U-statistic being unbiased in each of its terms,

    c(theta, x_t) = 1/4 kappa(2, 0) + 1/2 kappa(1.01, 0) + 1/4 kappa(.02, 0)
                    - mean_j [kappa(1, y_j - theta) + kappa(.01, y_j - theta)]
                    + mean_{i != j} k(y_i - y_j).

Misspecified observations draw each trial from N(theta, I) or, with equal odds, from
N(12.5 sign(theta), .5^2 I), a place outside the prior's box.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208, "Gaussian mixture".
"""

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.cost_base import BoxCostSimulator

KERNEL_SCALE = 0.01
VARIANCES = (1.0, 0.01)
OUTLIER_LOCATION, OUTLIER_STD = 12.5, 0.5


class GaussianMixtureTrials(BoxCostSimulator):
    """Sets of two-dimensional trials with a shared location, squared MMD.

    Args:
        num_trials: Trials n in a simulation, at least 2.

    Attributes:
        bandwidth: The kernel is exp(-|r|^2 / (2 bandwidth^2)).

    Raises:
        InvalidInputError: If `num_trials` is below 2.

    Example:
        >>> problem = GaussianMixtureTrials()
        >>> theta = problem.prior.sample((3,))
        >>> problem(theta).shape, problem.distance(problem(theta), problem(theta)).shape
        (torch.Size([3, 5, 2]), torch.Size([3]))
    """

    betas = (10.0, 25.0, 75.0)
    distance_name = "mmd"
    points_per_axis = 250
    bandwidth = (2 * KERNEL_SCALE) ** -0.5

    def __init__(self, num_trials: int = 5) -> None:
        if num_trials < 2:
            raise InvalidInputError(
                f"num_trials: expected at least 2, got {num_trials}."
            )
        self.prior = BoxUniform(torch.full((2,), -10.0), torch.full((2,), 10.0))
        self.shape_x = torch.Size([num_trials, 2])

    def distance(self, x: Tensor, x_t: Tensor) -> Tensor:
        """The U-statistic of the squared MMD; see `CostSimulator.distance`."""
        across = _kernel(x.unsqueeze(2) - x_t.unsqueeze(1)).mean(dim=(1, 2))
        return _mean_within(x) + _mean_within(x_t) - 2 * across

    def _simulate(self, theta: Tensor) -> Tensor:
        shape = (len(theta), *self.shape_x)
        first = torch.rand(shape[:2], dtype=theta.dtype).unsqueeze(2) < 0.5
        variance = torch.where(first, *VARIANCES)
        noise = torch.randn(shape, dtype=theta.dtype)
        return theta.unsqueeze(1) + variance.sqrt() * noise

    def _misspecified(self, theta: Tensor) -> Tensor:
        x = theta.unsqueeze(1) + torch.randn(len(theta), *self.shape_x)
        outlier = OUTLIER_LOCATION * theta.sign().unsqueeze(1)
        outlier = outlier + OUTLIER_STD * torch.randn_like(x)
        return torch.where(torch.rand(x.shape[:2]).unsqueeze(2) < 0.5, x, outlier)

    def _expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor:
        squared = (x_t - theta.unsqueeze(1)).square().sum(dim=2)
        across = sum(_smoothed_kernel(v, squared).mean(dim=1) for v in VARIANCES) / 2
        zero = torch.zeros(1, dtype=theta.dtype)
        pairs = [v + w for v in VARIANCES for w in VARIANCES]
        within = sum(_smoothed_kernel(v, zero) for v in pairs) / len(pairs)
        return within - 2 * across + _mean_within(x_t)


def _kernel(difference: Tensor) -> Tensor:
    return (-KERNEL_SCALE * difference.square().sum(dim=-1)).exp()


def _smoothed_kernel(variance: float, squared: Tensor) -> Tensor:
    """The kappa above in two dimensions, at squared mean differences."""
    spread = 1 + 2 * KERNEL_SCALE * variance
    return (-KERNEL_SCALE * squared / spread).exp() / spread


def _mean_within(x: Tensor) -> Tensor:
    """Mean kernel over pairs of different trials, `(batch,)`."""
    num_trials = x.shape[1]
    total = _kernel(x.unsqueeze(2) - x.unsqueeze(1)).sum(dim=(1, 2)) - num_trials
    return total / (num_trials * (num_trials - 1))
