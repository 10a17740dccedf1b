"""The expected cost of any distance, f(theta, x_t) = net(theta, embedding(x_t)).

Costs above a known lower bound are the bound plus a softplus of the network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.layers import ResidualNet, Standardize


class TrialEmbedding(nn.Module):
    """Mean over present trials of a network of each, plus their number.

    Args:
        dim: Components of a trial.
        num_features: Size of the embedding.
    """

    def __init__(self, dim: int, num_features: int) -> None:
        super().__init__()
        self.net = ResidualNet(dim, num_features, num_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, num_features + 1)` for sets `(batch, num_trials, dim)`."""
        present = ~x.isnan().any(dim=2, keepdim=True)
        count = present.sum(dim=1)
        pooled = (self.net(x.nan_to_num()) * present).sum(dim=1) / count.clamp(min=1)
        return torch.cat([pooled, 1 / count.clamp(min=1)], dim=1)


class CostNet(CostEstimator):
    """A residual network of theta and an embedding of the target.

    Args:
        theta: As in `CostEstimator`.
        x: As in `CostEstimator`.
        distance: Any distance.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.
        embedding_net: Network from standardized `(batch, *shape_x)` to
            `(batch, num_features)`; by default the components themselves, or
            `TrialEmbedding` for sets.

    Example:
        >>> from sbi_scoreaug.amortized_cost.point_distances import AbsoluteDistance
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 3)
        >>> CostNet(theta, x, AbsoluteDistance())(theta, x).shape
        torch.Size([50])
    """

    def __init__(
        self,
        theta: Tensor,
        x: Tensor,
        distance: Distance,
        hidden_features: int = 64,
        num_blocks: int = 3,
        embedding_net: nn.Module | None = None,
    ) -> None:
        super().__init__(theta, x, distance)
        self.standardize = Standardize(x.flatten(0, 1) if distance.on_sets else x)
        if embedding_net is None:
            embedding_net = nn.Flatten()
            if distance.on_sets:
                embedding_net = TrialEmbedding(x.shape[-1], hidden_features)
        self.embedding_net = embedding_net
        with torch.no_grad():
            num_features = self.embed(x[:2]).shape[1]
        self.net = ResidualNet(
            theta.shape[1] + num_features, 1, hidden_features, num_blocks
        )
        self.lower_bound = distance.lower_bound

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return theta, standardized."""
        return (self.standardize_theta(theta),)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the embedding `(num_targets, num_features)`."""
        return self.embedding_net(self.standardize(x_t))

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return the network's value, above the distance's lower bound."""
        theta = encoded[0].unsqueeze(1).expand(-1, embedded.shape[1], -1)
        embedded = embedded.expand(len(theta), -1, -1)
        value = self.net(torch.cat([theta, embedded], dim=2)).squeeze(2)
        if math.isinf(self.lower_bound):
            return self.cost_mean + self.cost_scale * value
        return self.lower_bound + self.cost_scale * softplus(value)
