r"""The expected cost of a simulator that fails at some parameters.

A failed simulation lies as far from a target as the farthest of up to REFERENCES valid
simulations x_r of the training set, so that

    f(theta, x_t) = (1 - p(theta)) f_valid(theta, x_t) + p(theta) max_r d(x_r, x_t)

with p the probability of failure, a logistic regression on theta. The penalty depends
on the target: a constant would draw the posterior of a distant observation towards
failure, which would then be the nearest place of all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.control_variate import ControlVariate
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator, ExpectedCost
from sbi_scoreaug.amortized_cost.layers import ResidualNet

REFERENCES = 200


class PenalizedCost(ExpectedCost):
    """Expected cost of a simulator that fails at some parameters.

    Args:
        valid_cost: A cost network for simulations that succeed.
        failed: Which training simulations failed, `(num_simulations,)`.
        distance: The distance, fitted.
        x: Valid training simulations `(num_valid, *shape_x)`.
        hidden_features: Width of the classifier.
    """

    references: Tensor

    def __init__(
        self,
        valid_cost: CostEstimator,
        failed: Tensor,
        distance: Distance,
        x: Tensor,
        hidden_features: int = 32,
    ) -> None:
        super().__init__(valid_cost.input_shape, valid_cost.condition_shape)
        self.valid_cost = valid_cost
        self.on_sets = valid_cost.on_sets
        self.distance = distance
        rows = torch.linspace(0, len(x) - 1, min(len(x), REFERENCES)).long()
        self.register_buffer("references", x[rows].clone())
        with torch.no_grad():
            embedded = valid_cost.embed(x[:1])
        self._embedded_shape = embedded.shape[2:]  # a set's number of trials may vary
        self.classifier = ResidualNet(
            valid_cost.condition_shape[0], 1, hidden_features, 1
        )
        rate = failed.double().mean().clamp(1e-3, 1 - 1e-3).logit().item()
        nn.init.zeros_(self.classifier.straight.weight)
        self.classifier.start_constant(torch.tensor(rate))

    @property
    def needs_pairs(self) -> bool:
        """Whether the valid cost is trained on pairs."""
        return self.valid_cost.needs_pairs

    @property
    def cost_scale(self) -> Tensor:
        """Standard deviation of the distance over random pairs."""
        return self.valid_cost.cost_scale

    @property
    def cost_mean(self) -> Tensor:
        """Mean of the distance over random pairs."""
        return self.valid_cost.cost_mean

    @property
    def control(self) -> ControlVariate | None:
        """The valid cost's head of exact scores, while training with them."""
        return self.valid_cost.control

    @control.setter
    def control(self, control: ControlVariate | None) -> None:
        self.valid_cost.control = control

    def add_control(
        self, score: Tensor, start: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a head for scores to the valid cost; see `CostEstimator.add_control`.

        For training without failures only, see `control_variate`.
        """
        self.valid_cost.add_control(score, start)

    def _logit(self, theta: Tensor) -> Tensor:
        standardized = self.valid_cost.standardize_theta(theta)
        return self.classifier(standardized).squeeze(1)

    def failure_probability(self, theta: Tensor) -> Tensor:
        """Return p(theta) `(batch,)`."""
        return self._logit(theta).sigmoid()

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return the valid cost's encoding and p."""
        return (*self.valid_cost.encode(theta), self.failure_probability(theta))

    def penalty(self, x_t: Tensor) -> Tensor:
        """Return max_r d(x_r, x_t) `(num_targets,)` of `x_t (num_targets, *shape_x)`.

        Gradients are not tracked.
        """
        with torch.no_grad():
            known, rows = self.references, x_t.unsqueeze(1)
            farthest = [
                self.distance(known, row.expand(len(known), *row.shape[1:])).max()
                for row in rows
            ]
        return torch.stack(farthest)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the valid cost's embedding, flat, and the penalty in a last column."""
        valid = self.valid_cost.embed(x_t).flatten(1)
        return torch.cat([valid, self.penalty(x_t).unsqueeze(1)], dim=1)

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return the mixture of the valid cost and the penalty."""
        *valid, probability = encoded
        probability = probability.unsqueeze(1)
        flat, penalty = embedded[..., :-1], embedded[..., -1]
        cost = self.valid_cost.cost(
            tuple(valid), flat.unflatten(2, (-1, *self._embedded_shape))
        )
        return (1 - probability) * cost + probability * penalty

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        x: Tensor,
        distances: Tensor,
        score: Tensor | None = None,
        failed: Tensor | None = None,
    ) -> Tensor:
        """Cost error of valid rows plus the classifier's cross-entropy, `(batch,)`."""
        if failed is None:
            failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        entropy = nn.functional.binary_cross_entropy_with_logits(
            self._logit(condition), failed.to(condition), reduction="none"
        )
        error = self.valid_cost.loss(
            input, condition, x=x, distances=distances, score=score
        )
        return torch.where(failed, 0.0, error) + entropy
