"""A user's own network for the expected cost, behind the interface of ours."""

from __future__ import annotations

from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator


class CustomCost(CostEstimator):
    """A user's estimator with `forward(theta, x_t) -> (batch,)`.

    Args:
        theta: As in `CostEstimator`.
        x: As in `CostEstimator`.
        distance: Any distance.
        estimator: The user's network.
    """

    def __init__(
        self, theta: Tensor, x: Tensor, distance: Distance, estimator: nn.Module
    ) -> None:
        super().__init__(theta, x, distance)
        self.estimator = estimator

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return theta itself."""
        return (theta,)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the targets themselves."""
        return x_t

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return the user's value for every pair."""
        shape = (len(encoded[0]), embedded.shape[1])
        theta = encoded[0].unsqueeze(1).expand(*shape, -1).flatten(0, 1)
        x_t = embedded.expand(shape[0], *embedded.shape[1:]).flatten(0, 1)
        return self.estimator(theta, x_t).unflatten(0, shape)
