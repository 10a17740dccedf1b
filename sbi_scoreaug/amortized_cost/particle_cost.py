r"""The expected cost as a mean over K particles p_j(theta).

For distances with gradients, and for kernels.

Points have K pseudo-simulations and an offset v:

    f(theta, x_t) = mean_j d(p_j(theta), x_t) + v(theta).

Sets y under a kernel k have K pseudo-trials,

    f(theta, y) = v(theta) - 2 mean_ij k(p_i(theta) - y_j) + within(y),

the U-statistic, whose first term depends on theta alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.layers import ResidualNet, Standardize
from sbi_scoreaug.amortized_cost.set_distances import KernelDistance
from sbi_scoreaug.errors import InvalidInputError


class ParticleCost(CostEstimator):
    """Pseudo-simulations whose mean distance to the target is the expected cost.

    They start as the linear regression of x on theta plus residuals of K simulations.

    Args:
        theta: As in `CostEstimator`.
        x: As in `CostEstimator`.
        distance: A differentiable distance on points, or a `KernelDistance`.
        num_particles: Number K of pseudo-simulations, or of pseudo-trials.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.

    Raises:
        InvalidInputError: The distance is not differentiable, or on sets in general.

    Example:
        >>> from sbi_scoreaug.amortized_cost import MMDDistance
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 5, 3)
        >>> ParticleCost(theta, x, MMDDistance().fit(x))(theta, x[:, :4]).shape
        torch.Size([50])
    """

    def __init__(
        self,
        theta: Tensor,
        x: Tensor,
        distance: Distance,
        num_particles: int = 16,
        hidden_features: int = 64,
        num_blocks: int = 2,
    ) -> None:
        super().__init__(theta, x, distance)
        kernel = isinstance(distance, KernelDistance)
        if not distance.differentiable or (distance.on_sets and not kernel):
            raise InvalidInputError(
                "cost_net: expected a differentiable distance on points, 'mmd' or "
                f"'energy' for 'particles', got {type(distance).__name__}. Use 'net'."
            )
        self.distance = distance
        self.particle_shape = (num_particles, *x.shape[2 if kernel else 1 :])
        size = math.prod(self.particle_shape)
        self.net = ResidualNet(theta.shape[1], size + 1, hidden_features, num_blocks)
        if kernel:  # every trial is an event at its parameter
            theta = theta.repeat_interleave(x.shape[1], dim=0)
            self.net.start_constant(distance.within(x).mean() / self.cost_scale, row=-1)
            x = x.flatten(0, 1)
            present = x.isfinite().all(dim=1)
            theta, x = theta[present], x[present]
        self.standardize = Standardize(x)
        self._start_from_regression(theta, x, num_particles)

    def _start_from_regression(
        self, theta: Tensor, x: Tensor, num_particles: int
    ) -> None:
        """Set the linear map to a regression plus the residuals of random rows."""
        rows = torch.randint(len(x), (num_particles,))
        inputs, outputs = self.standardize_theta(theta), self.standardize(x).flatten(1)
        linear = ResidualNet(theta.shape[1], outputs.shape[1], 1, 0)
        residual = linear.start_from_least_squares(inputs, outputs)[rows]
        with torch.no_grad():
            straight = self.net.straight
            straight.weight[:-1] = linear.straight.weight.repeat(num_particles, 1)
            bias = linear.straight.bias + residual
            straight.bias[:-1] = bias.flatten()
            straight.weight[-1] = 0

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return particles `(batch, K, *shape)` and the offset v `(batch,)`."""
        outputs = self.net(self.standardize_theta(theta))
        particles = outputs[:, :-1].reshape(-1, *self.particle_shape)
        offset = self.cost_scale * outputs[:, -1]
        return self.standardize.inverse(particles), offset

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the targets themselves."""
        return x_t

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return the mean distance of the particles plus the offset."""
        particles, offset = encoded
        if isinstance(self.distance, KernelDistance):
            across = self.distance.across(particles.unsqueeze(1), embedded)
            return offset.unsqueeze(1) + self.distance.within(embedded) - 2 * across
        shape = (len(particles), embedded.shape[1], *self.particle_shape)
        pairs = particles.unsqueeze(1).expand(shape), embedded.unsqueeze(2)
        flat = [side.expand(shape).flatten(0, 2) for side in pairs]
        distances = self.distance(*flat).unflatten(0, shape[:3])
        return distances.mean(dim=2) + offset.unsqueeze(1)
