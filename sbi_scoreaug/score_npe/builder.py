"""Builds estimators from training rows, as the host's builders do."""

from collections.abc import Callable
from typing import Any

from sbi.neural_nets.factory import posterior_score_nn
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_scoreaug._host import (
    VPScoreEstimator,
    builder_of,
    is_configuration,
)
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.coordinates import normal_coordinates
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.network import PosteriorScoreNet

PARAMETRIZATIONS = ("bounded", "noise")
HOST_MODELS = ("mlp", "ada_mlp", "transformer", "transformer_cross_attn")


class FactorizedScoreBuilder:
    """Builds the estimator from training rows, as the host's builders do.

    Args:
        prior: The prior.
        model: "factorized" for the network of this package, or a name, a builder or a
            configuration that `NPSE` takes; these are given coordinates z in place of
            theta.
        parametrization: "bounded" or "noise"; for "factorized" only.
        embedding_net: Embeds x; None to flatten it.
        num_hidden: Width of the layers.
        num_blocks: Residual blocks of each part.
        max_set_size: Observations that the network takes at most, m; if it is more than
            one, x is `(batch, m, *shape_x)`.

    Raises:
        InvalidInputError: If a name is not known.
    """

    def __init__(
        self,
        prior: Distribution | None,
        model: str | Callable[..., nn.Module] = "factorized",
        *,
        parametrization: str = "bounded",
        embedding_net: nn.Module | None = None,
        num_hidden: int = 128,
        num_blocks: int = 2,
        max_set_size: int = 1,
    ) -> None:
        if parametrization not in PARAMETRIZATIONS:
            raise InvalidInputError(
                f"parametrization: expected one of {PARAMETRIZATIONS}, got "
                f"{parametrization!r}."
            )
        self.coordinates = normal_coordinates(prior)
        self.model, self.parametrization = model, parametrization
        self.embedding_net = embedding_net
        self.num_hidden, self.num_blocks = num_hidden, num_blocks
        self.max_set_size = max_set_size

    def __call__(self, theta: Tensor, x: Tensor) -> FactorizedScoreEstimator:
        """Return an estimator for `theta (batch, dim)` and `x (batch, *shape_x)`."""
        z = self.coordinates.to_normal(theta)
        net: nn.Module
        if self.model == "factorized":
            net = PosteriorScoreNet(
                z,
                x,
                embedding_net=self.embedding_net,
                num_hidden=self.num_hidden,
                num_blocks=self.num_blocks,
                parametrization=self.parametrization,
                max_set_size=self.max_set_size,
                walls=self.coordinates.walls(z.shape[1]),
            )
        else:
            net = self._host_network(z, x)
        return FactorizedScoreEstimator(net, self.coordinates, x.shape[1:], z.shape[1])

    def _host_network(self, z: Tensor, x: Tensor) -> nn.Module:
        builder: Any = self.model
        options: dict[str, Any] = {"sde_type": "vp"}
        if self.embedding_net is not None:
            options["embedding_net"] = self.embedding_net
        if isinstance(builder, str):
            builder = posterior_score_nn(model=builder, **options)  # type: ignore[arg-type]
        elif is_configuration(builder):
            builder = builder_of(builder, estimator_type="score", **options)
        net = builder(z, x)
        if not isinstance(net, VPScoreEstimator):
            raise InvalidTypeError(
                "vf_estimator: expected a builder of VP score estimators, got a "
                f"{type(net).__name__}. Build it with posterior_score_nn(..., "
                "sde_type='vp')."
            )
        return net


def require_model(model: Any) -> None:
    """Raise unless `model` is a known name or a builder."""
    if isinstance(model, str) and model not in ("factorized", *HOST_MODELS):
        raise InvalidInputError(
            f"vf_estimator: expected one of {('factorized', *HOST_MODELS)} or a "
            f"builder, got {model!r}."
        )
    known = isinstance(model, str) or callable(model) or is_configuration(model)
    if isinstance(model, nn.Module) or not known:
        raise InvalidTypeError(
            "vf_estimator: expected a name or a function (theta, x) that builds a "
            f"network, got a {type(model).__name__}. Pass embedding_net for a network "
            "that embeds x."
        )
