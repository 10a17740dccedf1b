"""The parameter sites of a Pyro model as a prior: a distribution that sbi takes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import plate, poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.pyro_sites import Site


class _Enough(BaseException):
    """Leaves a model once all parameter sites are known."""


class _Parameters(Messenger):
    """Notes the parameter sites of one run, and ends it after the last."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names
        self.nodes: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            self.nodes[msg["name"]] = msg
        if len(self.nodes) == len(self._names):
            raise _Enough


class PyroPrior(Distribution):
    """The density of a model's parameter sites, which may depend on one another.

    Args:
        model: A Pyro model without arguments, whose parameter sites come first.
        parameters: These sites; theta joins them in this order, flattened.
        num_plates: Dimensions that plates take in the whole model.

    Raises:
        InvalidInputError: A support that depends on other parameters, or that is no
            product of intervals.
    """

    arg_constraints: dict = {}

    def __init__(
        self, model: Callable[[], Any], parameters: list[Site], num_plates: int
    ) -> None:
        self._model, self._sites, self._plates = model, parameters, num_plates
        dim_theta = sum(site.numel for site in parameters)
        super().__init__(torch.Size(), torch.Size([dim_theta]), validate_args=False)
        self._ends = self._find_ends()

    def _run(self, num_rows: int, values: dict[str, Tensor]) -> dict[str, Any]:
        names = [site.name for site in self._sites]
        seen = _Parameters(names)
        rows = plate("_simulations", num_rows, dim=-self._plates - 1)
        with contextlib.suppress(_Enough), seen, rows:
            poutine.condition(self._model, values)()
        return seen.nodes

    def _flatten(self, num_rows: int, values: list[Tensor]) -> Tensor:
        return torch.cat([value.reshape(num_rows, -1) for value in values], dim=1)

    def _find_ends(self) -> Tensor:
        """Return lower and upper ends `(2, dim_theta)`, where -+ infinity is sent."""
        with torch.random.fork_rng(devices=[]):
            nodes = self._run(5, {})
        ends = []
        for sign in (-1, 1):
            columns = []
            for site in self._sites:
                node = nodes[site.name]
                support = node["fn"].support
                infinity = torch.full_like(node["value"], sign * torch.inf)
                try:
                    columns.append(biject_to(support)(infinity).expand_as(infinity))
                except (NotImplementedError, RuntimeError):
                    columns.append(infinity * torch.nan)
            ends.append(self._flatten(5, columns))
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        if lower.isnan().any() or upper.isnan().any():
            raise InvalidInputError(
                "parameters: expected supports that are products of intervals, got "
                f"{[site.support for site in self._sites]}. Parametrise the model by "
                "unconstrained sites."
            )
        if (lower != lower[0]).any() or (upper != upper[0]).any():
            raise InvalidInputError(
                "parameters: expected supports that are the same for all parameters, "
                "got one that depends on another site. Parametrise the model by "
                "fractions or unconstrained sites."
            )
        return torch.stack([lower[0], upper[0]])

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The box in which the parameters lie."""
        if self._ends.isinf().all():
            return constraints.real_vector
        components = [_interval(*ends) for ends in self._ends.T.tolist()]
        return constraints.independent(constraints.cat(components, dim=-1), 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return parameters `(*sample_shape, dim_theta)`."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            nodes = self._run(shape.numel(), {})
        values = [nodes[site.name]["value"] for site in self._sites]
        return self._flatten(shape.numel(), values).reshape(*shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(theta) `(...)` for `value (..., dim_theta)`; -inf outside."""
        theta = value.reshape(-1, value.shape[-1])
        lower, upper = self._ends.to(theta)
        inside = ((theta >= lower) & (theta <= upper)).all(1)
        log_prob = torch.full_like(theta[:, 0], -torch.inf)
        if inside.any():
            log_prob = log_prob.masked_scatter(inside, self._log_density(theta[inside]))
        return log_prob.reshape(value.shape[:-1])

    def _log_density(self, theta: Tensor) -> Tensor:
        columns = theta.split([site.numel for site in self._sites], dim=1)
        nodes = self._run(
            len(theta),
            {
                site.name: site.on_rows(column, self._plates)
                for site, column in zip(self._sites, columns, strict=True)
            },
        )
        values = [
            node["fn"].log_prob(node["value"]).reshape(len(theta), -1).sum(1)
            for node in nodes.values()
        ]
        return torch.stack(values).sum(0)


def _interval(lower: float, upper: float) -> Any:
    if math.isinf(lower) and math.isinf(upper):
        return constraints.real
    if math.isinf(upper):
        return constraints.greater_than(lower)
    if math.isinf(lower):
        return constraints.less_than(upper)
    return constraints.interval(lower, upper)
