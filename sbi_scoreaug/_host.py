"""Every private name of sbi that this package stands on, in one place.

The rest of the package imports these from here, so that a new release of sbi is
checked by reading one file; `tests/host_contract_test.py` holds one sentence an
assertion for each of them. Where sbi 0.27 and its main branch differ, both are served
here (`OwnPotential`, `builder_of`, `DEFAULT_DENSITY`), by what is there and not
by version; `tests/host_features_test.py` puts the other shape in the host's place.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sbi.inference import NLE_A
from sbi.inference.potentials.base_potential import BasePotential
from sbi.inference.potentials.vector_field_adaptor import (
    IID_METHODS,
    AutoGaussCorrectedScoreFn,
    register_iid_method,
)
from sbi.inference.potentials.vector_field_potential import VectorFieldBasedPotential
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.neural_nets.estimators import MixtureDensityEstimator, NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator
from sbi.neural_nets.factory import model_builders
from sbi.neural_nets.ratio_estimators import RatioEstimator
from sbi.samplers.score.correctors import CORRECTORS, Corrector, register_corrector
from sbi.samplers.score.predictors import PREDICTORS, Predictor, register_predictor
from sbi.utils.sbiutils import (
    get_simulations_since_round,
    handle_invalid_x,
    within_support,
)
from sbi.utils.torchutils import assert_all_finite, ensure_theta_batched
from sbi.utils.user_input_checks import process_x
from torch import Tensor
from typing_extensions import Self

# Our mixins stand in front of a trainer of sbi and use its attributes, private ones
# too. The type checker cannot know which trainer; at run time they have no base.
if TYPE_CHECKING:
    HostTrainer = Any
else:
    HostTrainer = object

# A name in sbi 0.27; None on sbi's main branch, where names are deprecated.
DEFAULT_DENSITY = inspect.signature(NLE_A).parameters["density_estimator"].default
# The names that `likelihood_nn` and `posterior_nn` know.
DENSITY_ESTIMATORS = tuple(model_builders)

__all__ = [
    "CORRECTORS",
    "IID_METHODS",
    "PREDICTORS",
    "AutoGaussCorrectedScoreFn",
    "Corrector",
    "DEFAULT_DENSITY",
    "DENSITY_ESTIMATORS",
    "HostTrainer",
    "LikelihoodEstimatorTrainer",
    "OwnPotential",
    "Predictor",
    "VPScoreEstimator",
    "VectorFieldBasedPotential",
    "assert_all_finite",
    "builder_of",
    "embed_x",
    "ensure_theta_batched",
    "get_simulations_since_round",
    "handle_invalid_x",
    "is_configuration",
    "log_ratio",
    "register_corrector",
    "register_iid_method",
    "register_predictor",
    "loss_is_negative_log_prob",
    "show_host_signature",
    "splits_into_embedding_and_head",
    "within_support",
]


class OwnPotential(BasePotential):
    """A potential of ours, whether the host sets its observations or binds them.

    The posteriors of sbi 0.27 call `set_x`, which changes a potential. Those to come
    call `bind`, which returns another one and, as the host has it, knows nothing of
    what ours keep of x; they warn of `set_x`, and constructors do not call it. Here
    `bind` is `set_x` on a copy, so that a subclass has `set_x` to extend and to call.
    """

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observations, as the host does."""
        self._x_o = None if x_o is None else process_x(x_o).to(self.device)
        self._x_is_iid = x_is_iid

    def bind(
        self, x_o: Tensor | None, x_is_iid: bool | None = True, **kwargs: Any
    ) -> Self:
        """Return a copy with other observations; arguments as in `set_x`."""
        bound = copy.copy(self)
        bound.set_x(x_o, x_is_iid, **kwargs)
        return bound


def is_configuration(model: Any) -> bool:
    """Whether `model` is a network's configuration, which sbi has from 0.28 on."""
    return dataclasses.is_dataclass(model) and callable(getattr(model, "build", None))


def builder_of(model: Any, **defaults: Any) -> Callable[[Tensor, Tensor], Any]:
    """Return the builder of a configuration; `defaults` fill what it leaves open."""
    defaults = {k: v for k, v in defaults.items() if getattr(model, k, v) is None}
    model = dataclasses.replace(model, **defaults)
    return lambda theta, x: model.build(batch_input=theta, batch_condition=x)


def splits_into_embedding_and_head(estimator: torch.nn.Module) -> bool:
    """Whether `estimator` computes net(cat(embed(theta), embed(x))) as sbi's does."""
    cls = type(estimator)
    return isinstance(estimator, RatioEstimator) and all(
        getattr(cls, name) is getattr(RatioEstimator, name)
        for name in ("combine_theta_and_x", "unnormalized_log_ratio", "forward")
    )


def embed_x(estimator: RatioEstimator, x: Tensor) -> Tensor:
    """Return the embedding `(batch, num_features)` of `x (batch, *shape_x)`."""
    return estimator.embedding_net_x(x)


def log_ratio(estimator: RatioEstimator, theta: Tensor, embedded_x: Tensor) -> Tensor:
    """Return log r `(batch,)` for `theta (batch, dim_theta)` and embedded x."""
    z = torch.cat([estimator.embedding_net_theta(theta), embedded_x], dim=-1)
    return estimator.net(z).squeeze(-1)


def loss_is_negative_log_prob(estimator: torch.nn.Module) -> bool:
    """Whether `estimator.loss` is known to be minus its log density, row by row."""
    known = (NFlowsFlow, ZukoFlow, MixtureDensityEstimator)
    return getattr(type(estimator), "loss", None) in [cls.loss for cls in known]


def show_host_signature(cls: type, name: str) -> None:
    """Make `help(cls.name)` list the host's arguments, then our keyword-only ones.

    For the reader only (`help`, `inspect.signature`, editors): our mixins pass the
    host's arguments on as they come, so that one mixin serves every trainer. A method
    with other positional arguments than the host's is left as it is.
    """
    method = getattr(cls, name)
    hosts = [base for base in cls.__mro__ if base.__module__.startswith("sbi.")]
    shown = hasattr(method, "__signature__")
    if not hosts or shown or method.__module__.startswith("sbi."):
        return
    host = inspect.signature(getattr(hosts[0], name))
    arguments, own = dict(host.parameters), {}
    mixins = cls.__mro__[: cls.__mro__.index(hosts[0])]
    for mixin in (base for base in reversed(mixins) if name in vars(base)):
        for parameter in inspect.signature(vars(mixin)[name]).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                own[parameter.name] = parameter
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                if parameter.name not in arguments:
                    return  # a subclass with arguments of its own
                if parameter.default is not parameter.empty:
                    arguments[parameter.name] = parameter

    @functools.wraps(method)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    forward.__signature__ = host.replace(  # type: ignore[attr-defined]
        parameters=[*arguments.values(), *own.values()]
    )
    setattr(cls, name, forward)
