r"""Independent normal values with unknown location and scale.

    theta = (mu, eta),   eta = log sigma,   x_1 .. x_n iid N(mu, exp(2 eta))

    log p(x|theta) = -n eta - n/2 log 2 pi - 1/2 sum_i z_i^2,   z_i = (x_i - mu) / sigma
    d/d mu  = sum_i z_i / sigma
    d/d eta = sum_i z_i^2 - n

The score in eta grows with the square of the data while that in mu is linear, and both
scale with 1/sigma: a small problem in which unequal score magnitudes matter.

Reference: Casella and Berger (2002), Statistical Inference, section 7.2.
"""

import math

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import BoxSimulator


class NormalLocationScale(BoxSimulator):
    """Normal values whose mean and log standard deviation are the parameters.

    The prior is uniform, mu in [-2, 2] and eta in [-1, 1].

    Args:
        num_values: Number of values n in a simulation.

    Raises:
        InvalidInputError: If `num_values` is below 1.

    Example:
        >>> simulator = NormalLocationScale(num_values=5)
        >>> theta = simulator.prior.sample((4,))
        >>> x = simulator(theta)
        >>> x.shape, simulator.score(theta, x).shape
        (torch.Size([4, 5]), torch.Size([4, 2]))
        >>> simulator.exact_posterior(x[:1]).mean.shape
        torch.Size([2])
    """

    def __init__(self, num_values: int = 5) -> None:
        if num_values < 1:
            raise InvalidInputError(f"num_values must be at least 1, got {num_values}.")
        self.prior = BoxUniform(torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 1.0]))
        self.shape_x = torch.Size([num_values])

    def _simulate(self, theta: Tensor) -> Tensor:
        mu, eta = theta[:, :1], theta[:, 1:]
        noise = torch.randn(len(theta), *self.shape_x, dtype=theta.dtype)
        return mu + eta.exp() * noise

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        mu, eta = theta[:, :1], theta[:, 1:]
        z = (x - mu) / eta.exp()
        return (-0.5 * z.square() - eta - 0.5 * math.log(2 * math.pi)).sum(dim=1)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        mu, sigma = theta[:, :1], theta[:, 1:].exp()
        z = (x - mu) / sigma
        d_mu = (z / sigma).sum(dim=1)
        d_eta = (z.square() - 1).sum(dim=1)
        return torch.stack([d_mu, d_eta], dim=1)
