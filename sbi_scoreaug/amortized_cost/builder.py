"""From a name and training data to a cost network.

Which cost network when? The more of the distance is built in, the less is left to
learn; "auto" is the first that the distance allows:

    "quadratic"  distances with features ("mse", "mahalanobis"). Exact in x_t, the best
                 by far for observations unlike any simulation, and the fastest
    "particles"  distances with gradients on small points ("mae", "huber", "euclidean"),
                 and kernels on sets ("mmd", "energy"). Close to exact in x_t; its cost
                 grows with the number of particles times the size of x
    "net"        any distance, images and time series through an embedding net. It must
                 learn how the cost depends on x_t: give it widened targets, and targets
                 like the observations that are expected (`append_targets`)
"""

from __future__ import annotations

from collections.abc import Callable

from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.cost_net import CostNet
from sbi_scoreaug.amortized_cost.custom_cost import CustomCost
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.distance_checks import is_valid
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.particle_cost import ParticleCost
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.amortized_cost.quadratic_cost import QuadraticCost
from sbi_scoreaug.amortized_cost.set_distances import KernelDistance
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

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
        >>> import torch
        >>> from sbi_scoreaug.amortized_cost.point_distances import QuadraticDistance
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


def build_cost_net(
    builder: CostNetBuilder | Callable[[Tensor, Tensor], nn.Module],
    theta: Tensor,
    x: Tensor,
    distance: Distance,
    penalize_failures: bool,
) -> CostEstimator | PenalizedCost:
    """Build a network, ours or the user's, from training rows that may have failed.

    Args:
        builder: A `CostNetBuilder`, or the user's function of theta and x.
        theta: Training parameters `(num_simulations, dim_theta)`.
        x: Training simulations `(num_simulations, *shape_x)`.
        distance: The distance, fitted.
        penalize_failures: Whether failed simulations count as far from every target,
            see `penalized_cost`.

    Raises:
        InvalidTypeError: The user's function returned no estimator.
    """
    valid = is_valid(distance, x)
    if isinstance(builder, CostNetBuilder):
        estimator = builder(theta[valid], x[valid], distance)
    else:
        custom = builder(theta[valid], x[valid])
        if not isinstance(custom, ConditionalEstimator):
            raise InvalidTypeError(
                "cost_net: expected the function to return a ConditionalEstimator, "
                f"got {type(custom).__name__}."
            )
        if isinstance(custom, CostEstimator):
            estimator = custom
        else:
            estimator = CustomCost(theta[valid], x[valid], distance, custom)
    if not penalize_failures:
        return estimator
    return PenalizedCost(estimator, ~valid, distance, x[valid])
