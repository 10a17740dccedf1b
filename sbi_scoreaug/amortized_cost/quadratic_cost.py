r"""The expected cost of a quadratic distance, d = mean_k (phi_k(x) - phi_k(x_t))^2.

With m_k = E[phi_k(x) | theta] and v = E[mean_k (phi_k(x) - m_k)^2 | theta],

    f(theta, x_t) = mean_k (m_k(theta) - phi_k(x_t))^2 + v(theta),

exact in x_t, however far it lies from the simulations. The moments are regressed on
directly, m on phi(x) and v on the squared residual of m. With the error e_k of m_k and
e_v of v, the error of f at a target is -2 mean_k e_k (phi_k(x_t) - m_k) + e_v + ...:
whatever the targets, it vanishes with the errors of the moments, so that no target is
needed to train on. Appended and widened targets change nothing here, but that appended
ones count as familiar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sbi_scoreaug.amortized_cost.control_variate import ControlVariate
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.layers import ResidualNet, Standardize
from sbi_scoreaug.amortized_cost.softplus_fit import start_softplus
from sbi_scoreaug.errors import InvalidInputError


class QuadraticCost(CostEstimator):
    """First and second moments of the features of a quadratic distance.

    Args:
        theta: As in `CostEstimator`.
        x: As in `CostEstimator`.
        distance: A distance with features.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.

    Raises:
        InvalidInputError: The distance has no features.

    Example:
        >>> import torch
        >>> from sbi_scoreaug.amortized_cost.point_distances import QuadraticDistance
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 3)
        >>> QuadraticCost(theta, x, QuadraticDistance())(theta, x).shape
        torch.Size([50])
    """

    needs_pairs = False

    def __init__(
        self,
        theta: Tensor,
        x: Tensor,
        distance: Distance,
        hidden_features: int = 64,
        num_blocks: int = 2,
    ) -> None:
        super().__init__(theta, x, distance)
        features = distance.features(x)
        if features is None:
            raise InvalidInputError(
                f"cost_net: expected a distance with features for 'quadratic', got "
                f"{type(distance).__name__}. Use 'particles' or 'net'."
            )
        self.distance = distance
        self.standardize = Standardize(features)
        sizes = (theta.shape[1], hidden_features, num_blocks)
        self.mean_net = ResidualNet(sizes[0], features.shape[1], *sizes[1:])
        self.variance_net = ResidualNet(sizes[0], 1, *sizes[1:])
        residual = self.mean_net.start_from_least_squares(
            self.standardize_theta(theta), self.standardize(features)
        )
        variance = (residual * self.standardize.std).square().mean()
        self.variance_net.start_constant(_inverse_softplus(variance / self.cost_scale))

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return m `(batch, num_features)` and v over its scale `(batch,)`."""
        theta = self.standardize_theta(theta)
        mean = self.standardize.inverse(self.mean_net(theta))
        return mean, self.cost_scale * softplus(self.variance_net(theta)).squeeze(1)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return phi(x_t), `(num_targets, num_features)`."""
        features = self.distance.features(x_t)
        assert features is not None
        return features

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return mean_k (m_k - phi_k(x_t))^2 + v."""
        mean, variance = encoded
        squares = (mean.unsqueeze(1) - embedded).square().mean(dim=2)
        return squares + variance.unsqueeze(1)

    def add_control(
        self, score: Tensor, start: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a head for scores, of every feature and of v.

        A new network starts from the regression of features on theta and score: where
        both are linear, that is already exact. v starts likewise (`softplus_fit`).
        """
        num_outputs = len(self.standardize.std.flatten()) + 1
        self.control = ControlVariate(score, score.shape[1], num_outputs)
        if start is not None:
            theta, x = start
            features = self.standardize(self.embed(x))
            inputs = self.standardize_theta(theta)
            self.control.start_beside(self.mean_net, inputs, features, score)
            self._start_variance(inputs, features, score)

    @torch.no_grad()
    def _start_variance(self, theta: Tensor, features: Tensor, score: Tensor) -> None:
        """Start v and its head from one fit of both, if held-out rows bear it out."""
        assert self.control is not None
        residual = (features - self.mean_net(theta)) * self.standardize.std
        second = residual.square().mean(dim=1) / self.cost_scale
        straight = self.variance_net.straight
        design = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1)
        origin = torch.cat([straight.weight[0], straight.bias])
        scaled = score / self.control.scale
        w, c = start_softplus(design, scaled, second, origin)
        straight.weight[0], straight.bias[0] = w[:-1], w[-1]
        self.control.constant[-1] = c

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        x: Tensor,
        distances: Tensor,
        score: Tensor | None = None,
    ) -> Tensor:
        """Squared errors of both moments; see `CostEstimator.loss`."""
        mean, variance = self.encode(condition)
        residual = self.embed(x) - mean
        second = (residual.detach().square().mean(dim=1) - variance) / self.cost_scale
        first = residual / self.standardize.std
        if self.control is not None and score is not None:
            theta = self.standardize_theta(condition)[:, None]
            controlled = self.control(theta, score).squeeze(1)
            first, second = first - controlled[:, :-1], second - controlled[:, -1]
        return first.square().mean(dim=1) + second.square()


def _inverse_softplus(value: Tensor) -> Tensor:
    return value.clamp(min=1e-6).expm1().log()
