r"""Networks for the expected cost f(theta, x_t) = E[d(x, x_t) | theta].

All are trained on single draws: the minimiser of E (d(x, x_t) - f(theta, x_t))^2 over
functions of (theta, x_t) is the conditional mean, which is the expected cost. What
differs is how x_t enters.

`QuadraticCost`   d = mean_k (phi_k(x) - phi_k(x_t))^2. With m_k = E[phi_k(x) | theta]
                  and v = E[mean_k (phi_k(x) - m_k)^2 | theta],
                      f = mean_k (m_k(theta) - phi_k(x_t))^2 + v(theta),
                  exact in x_t, however far it lies from the simulations. The moments
                  are regressed on directly, m on phi(x) and v on the squared residual
                  of m: that is the pair regression with every target at once.
`ParticleCost`    points: f = mean_j d(p_j(theta), x_t) + v(theta), with K
                  pseudo-simulations p_j and an offset v. Sets and a kernel k:
                      f = v(theta) - 2 mean_ij k(p_i(theta) - y_j) + within(y),
                  the U-statistic with K pseudo-trials, whose first term depends on
                  theta alone.
`CostNet`         f = net(theta, embedding(x_t)): any distance.

Each splits into `encode(theta)`, `embed(x_t)` and `cost(encoded, embedded)`, so that
parameters and targets are worked on once however they are paired. Costs are scaled by
the standard deviation of the distance over random pairs, so that neither training nor
anything after it depends on the distance's unit.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbi_scoreaug.amortized_cost.distances import Distance, KernelDistance
from sbi_scoreaug.errors import InvalidInputError

SCALE_PAIRS = 4000


class ResidualNet(nn.Module):
    """A linear map plus residual blocks of SiLU layers, from `(..., dim_in)`."""

    def __init__(
        self, dim_in: int, dim_out: int, hidden_features: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.straight = nn.Linear(dim_in, dim_out)
        self.first = nn.Linear(dim_in, hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Linear(hidden_features, dim_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def start_from_least_squares(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Set the linear map to the ridge regression of outputs; return residuals.

        Args:
            inputs: `(num_rows, dim_in)`, standardized.
            outputs: `(num_rows, d)`, the first d of `dim_out`.
        """
        design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
        ridge = torch.eye(design.shape[1], dtype=torch.float64)
        gram = design.T @ design + ridge
        solution = torch.linalg.solve(gram, design.T @ outputs.double())
        weight = solution.T.to(inputs)
        with torch.no_grad():
            self.straight.weight[: len(weight)] = weight[:, :-1]
            self.straight.bias[: len(weight)] = weight[:, -1]
        return outputs - self.straight(inputs)[:, : len(weight)].detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(..., dim_out)`."""
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.straight(inputs) + self.last(nn.functional.silu(hidden))


class Standardize(nn.Module):
    """Subtract the mean and divide by the standard deviation of given rows.

    Missing values are left out of both; constant components are only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        present = ~rows.isnan()
        count = present.sum(dim=0).clamp(min=1)
        mean = rows.nan_to_num().sum(dim=0) / count
        squares = ((rows - mean).nan_to_num() ** 2).sum(dim=0) / count
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(squares > 1e-20, squares, 1.0).sqrt())

    def forward(self, rows: Tensor) -> Tensor:
        """Return standardized rows of the same shape."""
        return (rows - self.mean) / self.std

    def inverse(self, rows: Tensor) -> Tensor:
        """Return rows in their original units."""
        return rows * self.std + self.mean


class CostEstimator(ConditionalEstimator):
    """Base of the cost networks.

    Args:
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Valid training simulations `(num_simulations, *shape_x)`.
        distance: The distance, fitted.

    Attributes:
        needs_pairs: Whether `loss` reads targets and distances.
        cost_scale: Standard deviation of the distance over random pairs.
        cost_mean: Mean of the distance over random pairs.
    """

    needs_pairs: bool = True
    cost_scale: Tensor
    cost_mean: Tensor

    def __init__(self, theta: Tensor, x: Tensor, distance: Distance) -> None:
        super().__init__(input_shape=x.shape[1:], condition_shape=theta.shape[1:])
        self.on_sets = distance.on_sets
        self.standardize_theta = Standardize(theta)
        rows = torch.arange(SCALE_PAIRS) % len(x)
        shift = 1 + torch.arange(SCALE_PAIRS) // len(x) % max(1, len(x) - 1)
        with torch.no_grad():
            values = distance(x[rows], x[(rows + shift) % len(x)])
        self.register_buffer("cost_scale", values.std().clamp(min=1e-20))
        self.register_buffer("cost_mean", values.mean())

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

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        x: Tensor,
        distances: Tensor,
    ) -> Tensor:
        """Squared error of the cost over each simulation's targets.

        Args:
            input: Targets `(batch, T, *shape_x)`.
            condition: Parameters `(batch, dim_theta)`.
            x: Simulations `(batch, *shape_x)`.
            distances: d(x, x_t) `(batch, T)`.

        Returns:
            Losses `(batch,)`, dimensionless.
        """
        embedded = self.embed(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        error = distances - self.cost(self.encode(condition), embedded)
        return (error / self.cost_scale).square().mean(dim=1)


class QuadraticCost(CostEstimator):
    """First and second moments of the features of a quadratic distance.

    Args:
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Training simulations `(num_simulations, *shape_x)`.
        distance: A distance with features.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.

    Raises:
        InvalidInputError: The distance has no features.

    Example:
        >>> from sbi_scoreaug.amortized_cost.distances import QuadraticDistance
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
        _set_bias(self.variance_net, _inverse_softplus(variance / self.cost_scale))

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

    def loss(
        self, input: Tensor, condition: Tensor, *, x: Tensor, distances: Tensor
    ) -> Tensor:
        """Squared errors of both moments; see `CostEstimator.loss`."""
        mean, variance = self.encode(condition)
        residual = self.embed(x) - mean
        second = residual.detach().square().mean(dim=1) - variance
        first = (residual / self.standardize.std).square().mean(dim=1)
        return first + (second / self.cost_scale).square()


class ParticleCost(CostEstimator):
    """Pseudo-simulations whose mean distance to the target is the expected cost.

    They start as the linear regression of x on theta plus residuals of K simulations.

    Args:
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Training simulations `(num_simulations, *shape_x)`.
        distance: A differentiable distance on points, or a `KernelDistance`.
        num_particles: Number K of pseudo-simulations, or of pseudo-trials.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.

    Raises:
        InvalidInputError: The distance is not differentiable, or on sets in general.

    Example:
        >>> from sbi_scoreaug.amortized_cost.distances import MMDDistance
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
            _set_bias(self.net, distance.within(x).mean() / self.cost_scale, row=-1)
            x = x.flatten(0, 1)
            present = x.isfinite().all(dim=1)
            theta, x = theta[present], x[present]
        self.standardize = Standardize(x)
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
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Training simulations `(num_simulations, *shape_x)`.
        distance: Any distance.
        hidden_features: Width of the network.
        num_blocks: Residual blocks.
        embedding_net: Network from standardized `(batch, *shape_x)` to
            `(batch, num_features)`; by default the components themselves, or
            `TrialEmbedding` for sets.

    Example:
        >>> from sbi_scoreaug.amortized_cost.distances import AbsoluteDistance
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


class CustomCost(CostEstimator):
    """A user's estimator with `forward(theta, x_t) -> (batch,)`.

    Args:
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Training simulations `(num_simulations, *shape_x)`.
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


class PenalizedCost(ConditionalEstimator):
    r"""Expected cost of a simulator that fails at some parameters.

    A failed simulation has the finite distance `penalty` to every target, so that

        f(theta, x_t) = (1 - p(theta)) f_valid(theta, x_t) + p(theta) penalty

    with p the probability of failure, a logistic regression on theta.

    Args:
        valid_cost: A cost network for simulations that succeed.
        failed: Which training simulations failed, `(num_simulations,)`.
        penalty: Distance of a failed simulation.
        hidden_features: Width of the classifier.
    """

    penalty: Tensor

    def __init__(
        self,
        valid_cost: CostEstimator,
        failed: Tensor,
        penalty: Tensor,
        hidden_features: int = 32,
    ) -> None:
        super().__init__(valid_cost.input_shape, valid_cost.condition_shape)
        self.valid_cost = valid_cost
        self.on_sets = valid_cost.on_sets
        self.classifier = ResidualNet(
            valid_cost.condition_shape[0], 1, hidden_features, 1
        )
        rate = failed.double().mean().clamp(1e-3, 1 - 1e-3).logit().item()
        nn.init.zeros_(self.classifier.straight.weight)
        _set_bias(self.classifier, torch.tensor(rate))
        self.register_buffer("penalty", penalty.detach().clone())

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

    def _logit(self, theta: Tensor) -> Tensor:
        standardized = self.valid_cost.standardize_theta(theta)
        return self.classifier(standardized).squeeze(1)

    def failure_probability(self, theta: Tensor) -> Tensor:
        """Return p(theta) `(batch,)`."""
        return self._logit(theta).sigmoid()

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return the valid cost's encoding and p."""
        return (*self.valid_cost.encode(theta), self.failure_probability(theta))

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the valid cost's embedding."""
        return self.valid_cost.embed(x_t)

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return the mixture of the valid cost and the penalty."""
        *valid, probability = encoded
        probability = probability.unsqueeze(1)
        cost = self.valid_cost.cost(tuple(valid), embedded)
        return (1 - probability) * cost + probability * self.penalty

    def forward(self, theta: Tensor, x_t: Tensor) -> Tensor:
        """Expected cost `(batch,)` of paired rows; see `CostEstimator.forward`."""
        return self.cost(self.encode(theta), self.embed(x_t).unsqueeze(1)).squeeze(1)

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        x: Tensor,
        distances: Tensor,
        failed: Tensor | None = None,
    ) -> Tensor:
        """Cost error of valid rows plus the classifier's cross-entropy, `(batch,)`."""
        if failed is None:
            failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        entropy = nn.functional.binary_cross_entropy_with_logits(
            self._logit(condition), failed.to(condition), reduction="none"
        )
        error = self.valid_cost.loss(input, condition, x=x, distances=distances)
        return torch.where(failed, 0.0, error) + entropy


def _set_bias(net: ResidualNet, value: Tensor, row: int = 0) -> None:
    """Make a constant of one output of the linear map."""
    with torch.no_grad():
        net.straight.bias[row] = value
        net.straight.weight[row] = 0


def _inverse_softplus(value: Tensor) -> Tensor:
    return value.clamp(min=1e-6).expm1().log()


COST_NETS: dict[str, type[CostEstimator]] = {
    "quadratic": QuadraticCost,
    "particles": ParticleCost,
    "net": CostNet,
}


class CostNetBuilder:
    """Builds one of the cost networks from training data; picklable.

    Args:
        cost_net: "quadratic", "particles", "net", or "auto": the first of these that
            the distance allows.
        options: Arguments of that network, e.g. `hidden_features`, `embedding_net`.

    Raises:
        InvalidInputError: An unknown name.

    Example:
        >>> from sbi_scoreaug.amortized_cost.distances import QuadraticDistance
        >>> builder = CostNetBuilder("auto", hidden_features=32)
        >>> theta, x = torch.randn(50, 2), torch.randn(50, 3)
        >>> type(builder(theta, x, QuadraticDistance())).__name__
        'QuadraticCost'
    """

    def __init__(self, cost_net: str = "auto", **options: object) -> None:
        if cost_net != "auto" and cost_net not in COST_NETS:
            raise InvalidInputError(
                f"cost_net: expected one of {('auto', *COST_NETS)} or a function "
                f"(theta, x) -> ConditionalEstimator, got {cost_net!r}."
            )
        self.cost_net = cost_net
        self.options = options

    def choose(self, x: Tensor, distance: Distance) -> str:
        """Return the network's name for simulations `(num_simulations, *shape_x)`."""
        if self.cost_net != "auto":
            return self.cost_net
        if "embedding_net" in self.options:
            return "net"
        if distance.features(x[:2]) is not None:
            return "quadratic"
        if isinstance(distance, KernelDistance):
            return "particles"
        small = x[0].numel() <= 256
        points = distance.differentiable and not distance.on_sets
        return "particles" if points and small else "net"

    def __call__(self, theta: Tensor, x: Tensor, distance: Distance) -> CostEstimator:
        """Build the network from training rows, all valid."""
        name = self.choose(x, distance)
        return COST_NETS[name](theta, x, distance, **self.options)  # type: ignore[arg-type]
