r"""Two moons: a crescent around a mean that two parameters fold.

    theta ~ U(-1, 1)^2,    x = q + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2
    q = (r cos a + 1/4, r sin a),    a ~ U(-pi/2, pi/2),    r ~ N(.1, .01^2)

    d(x, x_t) = mean of squared differences over the two components
    c(theta, x_t) = 1/2 [ |m(theta) - x_t|^2 + E r^2 - (.2/pi)^2 ],    E r^2 = .0101
    m(theta) = (1/4 + .2/pi, 0) + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2

The generalized posterior has two modes, as the usual one, but none of its crescents.

References: Greenberg et al. (2019), arXiv 1905.07488; Gao, Deistler & Macke (2023),
arXiv 2305.15208.
"""

import math

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.simulators.cost_base import BoxCostSimulator

RADIUS_MEAN, RADIUS_STD = 0.1, 0.01


class TwoMoons(BoxCostSimulator):
    """The two moons task with mean squared distance.

    Example:
        >>> problem = TwoMoons()
        >>> theta = problem.prior.sample((3,))
        >>> problem(theta).shape, problem.expected_cost(theta, torch.zeros(1, 2)).shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    betas = (10.0, 100.0, 1000.0)
    points_per_axis = 400

    def __init__(self) -> None:
        self.prior = BoxUniform(-torch.ones(2), torch.ones(2))
        self.shape_x = torch.Size([2])

    def _fold(self, theta: Tensor) -> Tensor:
        """The shift `(batch, 2)` that the parameters give to the crescent."""
        along = -(theta[:, 0] + theta[:, 1]).abs()
        return torch.stack([along, theta[:, 1] - theta[:, 0]], dim=1) / math.sqrt(2)

    def _simulate(self, theta: Tensor) -> Tensor:
        angle = math.pi * (torch.rand(len(theta), dtype=theta.dtype) - 0.5)
        radius = RADIUS_MEAN + RADIUS_STD * torch.randn_like(angle)
        crescent = torch.stack([angle.cos() * radius + 0.25, angle.sin() * radius], 1)
        return crescent + self._fold(theta)

    def _expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor:
        offset = 2 * RADIUS_MEAN / math.pi
        mean = self._fold(theta) + torch.tensor([0.25 + offset, 0.0])
        variance = RADIUS_MEAN**2 + RADIUS_STD**2 - offset**2
        return ((mean - x_t).square().sum(dim=1) + variance) / 2
