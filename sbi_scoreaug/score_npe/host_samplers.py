r"""The paper's two algorithms and a centred GAUSS for sbi's own `NPSE` posteriors.

    register_samplers()
    posterior.sample((1000,), x=x_set, iid_method="gauss_centered")
    posterior.sample((1000,), x=x_set, iid_method="fnpe", predictor="hold",
                     corrector="annealed_langevin", steps=400)
    posterior.sample((1000,), x=x_set, iid_method="fnpe", predictor="composed")

*annealed_langevin* with *hold*: Algorithm 1, whose bridging score is the host's "fnpe".
The host's own corrector aims at the level that it has just left, with a fixed step;
this one aims at the next level, with the paper's step .05 (1 - alpha) / sqrt(alpha).
*composed*: Algorithm 2; too narrow beyond n = 1 (see `annealed`).
*gauss_centered*: the host's "auto_gauss", with covariances in place of uncentred second
moments, which are too wide wherever a posterior mean is not 0.

References: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249; Linhart et al.
(2024), arXiv 2404.07593.
"""

import functools
from typing import Any

import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from torch import Tensor

from sbi_scoreaug._host import (
    CORRECTORS,
    IID_METHODS,
    PREDICTORS,
    AutoGaussCorrectedScoreFn,
    Corrector,
    Predictor,
    register_corrector,
    register_iid_method,
    register_predictor,
)
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.composition import require_count


class Hold(Predictor):
    """No step: the level changes, the particles do not. For Algorithm 1."""

    def predict(self, theta: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """Return `theta` as it is."""
        return theta


class ComposedStep(Predictor):
    """A step of Algorithm 2 from level `t1` to `t0`, for VP estimators."""

    def predict(self, theta: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """Return the particles at level `t0`."""
        alpha = _alpha(self.potential_fn.vector_field_estimator, t1, t0)
        beta = 1 - alpha
        theta = (theta + beta * self.potential_fn.gradient(theta, t1)) / alpha**0.5
        last = t0 <= self.potential_fn.vector_field_estimator.t_min
        return theta if last else theta + beta**0.5 * torch.randn_like(theta)


class AnnealedLangevin(Corrector):
    """The Langevin steps of Algorithm 1 at one level.

    Args:
        predictor: As in the host.
        num_steps: L.
        step: Factor of the step sizes.
    """

    def __init__(
        self, predictor: Predictor, num_steps: int = 50, step: float = 0.05
    ) -> None:
        super().__init__(predictor)
        require_count("num_steps", num_steps)
        if not 0 < step < float("inf"):
            raise InvalidInputError(f"step: expected a positive number, got {step}.")
        self.num_steps, self.step = num_steps, step

    def correct(self, theta: Tensor, t0: Tensor, t1: Tensor | None = None) -> Tensor:
        """Return the particles after the steps at level `t0`, which follows `t1`."""
        if t1 is None:
            raise InvalidInputError(
                "t1: expected the time of the level before, got None."
            )
        alpha = _alpha(self.potential_fn.vector_field_estimator, t1, t0)
        delta = self.step * (1 - alpha) / alpha**0.5
        for _ in range(self.num_steps):
            drift = delta / 2 * self.potential_fn.gradient(theta, t0)
            theta = theta + drift + delta**0.5 * torch.randn_like(theta)
        return theta


class CenteredGauss(AutoGaussCorrectedScoreFn):
    """The host's "auto_gauss" with centred covariances."""

    @classmethod
    @functools.lru_cache
    def estimate_posterior_precision(
        cls,
        vector_field_estimator: Any,
        prior: Any,
        conditions: Tensor,
        precision_est_only_diag: bool = False,
        precision_est_budget: int | None = None,
        precision_initial_sampler_steps: int = 100,
    ) -> Tensor:
        """Return inverse covariances `(1, n, dim, dim)`; arguments as in the host."""
        posterior = VectorFieldPosterior(
            vector_field_estimator, prior, device=conditions.device
        )
        budget = precision_est_budget or min(1000 * prior.event_shape[0], 5000)
        theta = posterior.sample_batched(
            torch.Size([budget]),
            x=conditions,
            show_progress_bars=False,
            steps=precision_initial_sampler_steps,
        )
        centred = theta - theta.mean(0)
        if precision_est_only_diag:
            return 1 / centred.square().mean(0).unsqueeze(0)
        covariance = torch.einsum("bnd,bne->nde", centred, centred) / (budget - 1)
        return torch.inverse(covariance).unsqueeze(0)


def register_samplers() -> None:
    """Make the names known to sbi; again does nothing.

    Raises:
        InvalidInputError: If a name is taken by another class.

    Example:
        >>> register_samplers()
        >>> "gauss_centered" in IID_METHODS
        True
    """
    entries = [
        (PREDICTORS, register_predictor, "hold", Hold),
        (PREDICTORS, register_predictor, "composed", ComposedStep),
        (CORRECTORS, register_corrector, "annealed_langevin", AnnealedLangevin),
        (IID_METHODS, register_iid_method, "gauss_centered", CenteredGauss),
    ]
    for registry, register, name, cls in entries:
        if registry.get(name, cls) is not cls:
            raise InvalidInputError(
                f"{name!r}: expected a free name in sbi's registry, found "
                f"{registry[name].__name__}. Rename that one."
            )
        register(name)(cls)


def _alpha(estimator: Any, t1: Tensor, t0: Tensor) -> Tensor:
    if not hasattr(estimator, "mean_t_fn"):
        raise InvalidInputError(
            "vector_field_estimator: expected a VP score estimator, got "
            f"{type(estimator).__name__}."
        )
    return ((estimator.mean_t_fn(t1) / estimator.mean_t_fn(t0)) ** 2).squeeze()
