r"""What a network for the expected cost f(theta, x_t) = E[d(x, x_t) | theta] is.

All are trained on single draws: the minimiser of E (d(x, x_t) - f(theta, x_t))^2 over
functions of (theta, x_t) is the conditional mean, which is the expected cost. What
differs is how x_t enters: see `QuadraticCost`, `ParticleCost` and `CostNet`.

Each splits into `encode(theta)`, `embed(x_t)` and `cost(encoded, embedded)`, so that
parameters and targets are worked on once however they are paired. Costs are scaled by
the standard deviation of the distance over random pairs, so that neither training nor
anything after it depends on the distance's unit.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor

from sbi_scoreaug.amortized_cost.control_variate import ControlVariate
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.layers import Standardize

SCALE_PAIRS = 4000


class ExpectedCost(ConditionalEstimator):
    """What potentials and rules for beta ask of a cost.

    Attributes:
        needs_pairs: Whether `loss` reads targets and distances.
        on_sets: Whether a target is a set of trials.
        cost_scale: Standard deviation of the distance over random pairs.
        cost_mean: Mean of the distance over random pairs.
    """

    needs_pairs: bool = True
    on_sets: bool
    cost_scale: Tensor
    cost_mean: Tensor

    @abstractmethod
    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return what the cost needs of `theta (batch, dim_theta)`."""

    @abstractmethod
    def embed(self, x_t: Tensor) -> Tensor:
        """Return what the cost needs of `x_t (num_targets, *shape_x)`."""

    @abstractmethod
    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return costs `(batch, T)` of embedded targets `(batch or 1, T, ...)`."""

    def forward(self, theta: Tensor, x_t: Tensor) -> Tensor:
        """Expected cost of paired rows.

        Args:
            theta: Parameters `(batch, dim_theta)`.
            x_t: Targets `(batch, *shape_x)`.

        Returns:
            f(theta, x_t), `(batch,)`.
        """
        return self.cost(self.encode(theta), self.embed(x_t).unsqueeze(1)).squeeze(1)


class CostEstimator(ExpectedCost):
    """Base of the networks, trained on simulations that succeed.

    Args:
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Valid training simulations `(num_simulations, *shape_x)`.
        distance: The distance, fitted.

    Attributes:
        control: The head of exact scores, while training with them.

    Example:
        >>> import torch
        >>> from sbi_scoreaug.amortized_cost import CostNet
        >>> from sbi_scoreaug.amortized_cost.distance import CallableDistance
        >>> distance = CallableDistance(lambda x, x_t: (x - x_t).abs().amax(1))
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 3)
        >>> net = CostNet(theta, x, distance)
        >>> isinstance(net, CostEstimator), net(theta, x).shape
        (True, torch.Size([50]))
    """

    control: ControlVariate | None
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, theta: Tensor, x: Tensor, distance: Distance) -> None:
        super().__init__(input_shape=x.shape[1:], condition_shape=theta.shape[1:])
        self.control = None
        self.on_sets = distance.on_sets
        self.standardize_theta = Standardize(theta)
        if not self.on_sets:
            spread = Standardize(x.flatten(1))
            self.register_buffer("target_mean", spread.mean)
            self.register_buffer("target_std", spread.std)
        rows = torch.arange(SCALE_PAIRS) % len(x)
        shift = 1 + torch.arange(SCALE_PAIRS) // len(x) % max(1, len(x) - 1)
        with torch.no_grad():
            values = distance(x[rows], x[(rows + shift) % len(x)])
        self.register_buffer("cost_scale", values.std().clamp(min=1e-20))
        self.register_buffer("cost_mean", values.mean())

    def add_control(
        self, score: Tensor, start: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a head for scores `(num_simulations, dim_theta)`, 0 where unknown.

        Args:
            score: The training scores.
            start: Their theta and x, if the network is new: it may start from a fit.
        """
        embedded = self.input_shape.numel() if not self.on_sets else 0
        self.control = ControlVariate(score, score.shape[1] + embedded)

    def _controlled(self, theta: Tensor, targets: Tensor, score: Tensor) -> Tensor:
        """Return c(theta, x_t)' s `(batch, T)`; for sets c depends on theta alone."""
        assert self.control is not None
        theta = self.standardize_theta(theta)[:, None].expand(-1, targets.shape[1], -1)
        inputs = [theta]
        if not self.on_sets:
            inputs.append((targets.flatten(2) - self.target_mean) / self.target_std)
        return self.control(torch.cat(inputs, dim=2), score).squeeze(2)

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        x: Tensor,
        distances: Tensor,
        score: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the cost over each simulation's targets.

        Args:
            input: Targets `(batch, T, *shape_x)`.
            condition: Parameters `(batch, dim_theta)`.
            x: Simulations `(batch, *shape_x)`.
            distances: d(x, x_t) `(batch, T)`.
            score: Scores `(batch, dim_theta)`, 0 where unknown; with `control` only.

        Returns:
            Losses `(batch,)`, dimensionless.
        """
        embedded = self.embed(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        error = distances - self.cost(self.encode(condition), embedded)
        if self.control is not None and score is not None:
            error = error - self.cost_scale * self._controlled(condition, input, score)
        return (error / self.cost_scale).square().mean(dim=1)
