r"""Simulator, prior and score from a Pyro model.

A Pyro model with parameter sites theta, observed sites x and, it may be, latent sites z
states the whole joint density

    p(theta, z, x) = p(theta) p(z|theta) p(x|theta, z).

Sampling it at given theta is the simulator, its parameter sites are the prior. Without
latent sites p(x|theta) is the product of the observed sites' densities, and its
theta-gradient by autodiff the *exact* score. With latent sites that density is an
integral, but each simulation knows its own z, and

    t = grad_theta log p(x, z|theta),      E[t | theta, x] = grad_theta log p(x|theta)

is a *joint* score (z held fixed: no gradient flows through its sampling).

*Vectorised.* All simulations are rows of one plate, left of the model's own plates,
as in `pyro.infer.Predictive(parallel=True)`. The model has to be written for that, as
most are: parameters and latents broadcast from the left, events are on the right (use
`...` and negative dimensions).

*Assumptions.* The supports of x and z do not depend on theta. No subsampling and no
`pyro.factor`. Latent sites are continuous.

References: Bingham et al. 2019 (JMLR 20, 28, arXiv 1810.09538); Brehmer et al. 2020
(arXiv 1805.12244) for joint scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError
from sbi_scoreaug.scores.pyro_prior import PyroPrior
from sbi_scoreaug.scores.pyro_sites import (
    model_sites,
    require_vectorised,
    select_sites,
)


def score_from_pyro(
    model: Callable[..., Any],
    parameters: str | Sequence[str],
    observed: str | Sequence[str],
    *args: Any,
    **kwargs: Any,
) -> PyroSimulator:
    """Return a simulator with its prior and its scores from a Pyro model.

    Args:
        model: The model. Sites that it observes already (`obs=...`) are simulated.
        parameters: The site or sites that are theta, in this order, each flattened.
        observed: The site or sites that are x. One keeps its shape, several are
            flattened and joined. All other sites are latent.
        args: Passed on to `model`.
        kwargs: Passed on to `model`.

    Returns:
        A `PyroSimulator`, to be given to `simulate_with_score` with its `prior`; append
        the scores with `score_kind=simulator.score_kind`.

    Raises:
        InvalidTypeError: `model` cannot be called.
        InvalidInputError: A name that is no site of the model, or named twice; discrete
            parameters or latent sites; `pyro.factor`, subsampling; a model that cannot
            be vectorised.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from sbi_scoreaug import simulate_with_score
        >>> def model():
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     z = pyro.sample("z", dist.Normal(mu, 0.5))
        ...     with pyro.plate("data", 3):
        ...         pyro.sample("x", dist.Normal(z, 1.0))
        >>> simulator = score_from_pyro(model, parameters="mu", observed="x")
        >>> simulator.score_kind
        'joint'
        >>> theta, x, score = simulate_with_score(
        ...     simulator, simulator.prior, 10, simulation_batch_size=None,
        ...     show_progress_bar=False,
        ... )
        >>> theta.shape, x.shape, score.shape
        (torch.Size([10, 1]), torch.Size([10, 3]), torch.Size([10, 1]))
    """
    if not callable(model):
        raise InvalidTypeError(
            "model: expected a function with pyro.sample statements, got "
            f"{type(model).__name__}."
        )
    return PyroSimulator(_Bound(model, args, kwargs), parameters, observed)


class _Bound:
    """The model with its arguments; a class, so that it can be pickled."""

    def __init__(self, model: Callable[..., Any], args: tuple, kwargs: dict) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs

    def __call__(self) -> Any:
        return self._model(*self._args, **self._kwargs)


class PyroSimulator:
    """A simulator that returns `(x, score)`; made by `score_from_pyro`.

    Attributes:
        prior: The density of the parameter sites over `(dim_theta,)`, a distribution.
        score_kind: "exact", or "joint" if the model has latent sites.
        latent: Names of the latent sites.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        parameters: str | Sequence[str],
        observed: str | Sequence[str],
    ) -> None:
        self._model = poutine.uncondition(model)
        sites = model_sites(self._model)
        self._parameters = select_sites("parameters", parameters, sites)
        self._observed = select_sites("observed", observed, sites)
        named = {site.name for site in (*self._parameters, *self._observed)}
        if len(named) < len(self._parameters) + len(self._observed):
            raise InvalidInputError(
                "parameters and observed: expected different sites, got "
                f"{parameters!r} and {observed!r}."
            )
        latent = [site for name, site in sites.items() if name not in named]
        for kind, group in (("parameters", self._parameters), ("latent sites", latent)):
            discrete = [site.name for site in group if site.discrete]
            if discrete:
                raise InvalidInputError(
                    f"model: expected continuous {kind}, got discrete {discrete}. Sum "
                    "them out in the density of the observed site, for example with a "
                    "mixture distribution."
                )
        first = list(sites)[: len(self._parameters)]
        if set(first) != {site.name for site in self._parameters}:
            raise InvalidInputError(
                "parameters: expected the first sites of the model, got "
                f"{parameters!r} among {list(sites)}. A prior that depends on "
                "latent sites has no density in closed form: make those parameters "
                "as well, or reorder."
            )
        self.latent = [site.name for site in latent]
        self.score_kind = "joint" if latent else "exact"
        self._plates = max(site.num_plates for site in sites.values())
        self.prior = PyroPrior(self._model, self._parameters, self._plates)
        sizes = {size for site in sites.values() for size in site.shape}
        num_rows = min(set(range(3, len(sizes) + 4)) - sizes)  # not to be confused
        with torch.random.fork_rng(devices=[]):
            theta = self.prior.sample((num_rows,))
            require_vectorised(self._trace, theta, sites, self._plates)

    def _trace(self, theta: Tensor, **values: Tensor) -> Any:
        """Run all rows at once, with theta and the `values` of further sites given."""
        columns = theta.split([site.numel for site in self._parameters], dim=1)
        given = {
            site.name: site.on_rows(column, self._plates)
            for site, column in zip(self._parameters, columns, strict=True)
        }
        conditioned = poutine.condition(self._model, {**given, **values})
        with pyro.plate("_simulations", len(theta), dim=-self._plates - 1):
            return poutine.trace(conditioned).get_trace()

    def _x(self, trace: Any, num_rows: int) -> Tensor:
        values = [trace.nodes[site.name]["value"] for site in self._observed]
        if len(values) == 1:
            return values[0].reshape(num_rows, *self._observed[0].shape)
        return torch.cat([value.reshape(num_rows, -1) for value in values], dim=1)

    def _log_density(self, theta: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Return log p(values|theta) `(batch,)`, the parameters' own density left out.

        Args:
            theta: `(batch, dim_theta)`.
            values: Of all other sites, as the trace of all rows holds them.
        """
        trace = self._trace(theta, **values)
        log_prob = theta.new_zeros(len(theta))
        for name in values:
            node = trace.nodes[name]
            log_prob = log_prob + node["fn"].log_prob(node["value"]).reshape(
                len(theta), -1
            ).sum(1)
        return log_prob

    def _grad(self, theta: Tensor, values: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            log_prob = self._log_density(leaf, values)
            if not log_prob.requires_grad:
                return torch.zeros_like(theta)
            (score,) = torch.autograd.grad(log_prob.sum(), leaf, allow_unused=True)
        return torch.zeros_like(theta) if score is None else score

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Simulate, and return the score of each simulation beside it.

        Args:
            theta: `(batch, dim_theta)`.

        Returns:
            x `(batch, *shape_x)` and its exact or joint score `(batch, dim_theta)`.
        """
        with torch.no_grad():
            trace = self._trace(theta)
        names = [*(site.name for site in self._observed), *self.latent]
        values = {name: trace.nodes[name]["value"].detach() for name in names}
        return self._x(trace, len(theta)), self._grad(theta, values)

    def _observed_values(self, theta: Tensor, x: Tensor) -> dict[str, Tensor]:
        if self.latent:
            raise InvalidStateError(
                f"the density of x is an integral over the latent sites {self.latent}: "
                "there is no log_prob and no exact score. Use the joint score that a "
                "call returns beside x."
            )
        sizes = [site.numel for site in self._observed]
        columns = x.reshape(len(theta), -1).split(sizes, dim=1)
        return {
            site.name: site.on_rows(column, self._plates)
            for site, column in zip(self._observed, columns, strict=True)
        }

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|theta) `(batch,)`; raise InvalidStateError with latents."""
        return self._log_density(theta, self._observed_values(theta, x))

    def score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the exact score at any pairs; raise InvalidStateError with latents.

        Args:
            theta: `(batch, dim_theta)`.
            x: `(batch, *shape_x)`.

        Returns:
            `(batch, dim_theta)`.
        """
        return self._grad(theta, self._observed_values(theta, x))
