r"""Amortized cost estimation: generalized Bayes for simulators.

    objective   min_f  E (d(x, x_t) - f(theta, x_t))^2,    (theta, x) simulated,
                x_t from simulations, appended targets and widened versions of both
    minimiser   f(theta, x_t) = E[ d(x, x_t) | theta ], the expected cost
    posterior   p_beta(theta | x_o) ~ exp(-beta f(theta, x_o)) p(theta)

One network serves every observation and every beta. The posterior concentrates where
simulations come near to x_o in the user's distance, also when no parameter can produce
x_o, where a likelihood says nothing useful.

`cost_data` holds what it learns from, `training` how, `assessment` what beta and what
trust the result deserves; this file adds the posterior.

Assumption: theta covers the region of the posterior; its distribution does not enter
the minimiser, so simulations from any proposal may be appended.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from sbi.inference.potentials.base_potential import BasePotential
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.utils import mcmc_transform
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug._host import show_host_signature
from sbi_scoreaug.amortized_cost.assessment import CostAssessment
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.posterior import generalized
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential, validate_beta
from sbi_scoreaug.errors import InvalidInputError

SAMPLERS = ("mcmc", "rejection", "vi", "importance")


class AmortizedCostEstimator(CostAssessment):
    """Amortized generalized Bayesian inference (Gao et al. 2023, arXiv 2305.15208).

    A subclass of the base of sbi's `NLE_A`, with its arguments, methods and posteriors.

    Args:
        prior: As in `sbi.inference.NLE_A`.
        distance: "mse", "mae", "huber", "euclidean", "mahalanobis" on points; "energy",
            "mmd" on sets of trials `(num_trials, dim)`; a `Distance`; or a function
            `(x, x_t) -> (batch,)`.
        cost_net: "auto", "quadratic", "particles", "net", a `CostNetBuilder` with
            options, or a function `(theta, x) -> ConditionalEstimator` with
            `forward(theta, x_t) -> (batch,)`.
        device: As in `sbi.inference.NLE_A`.
        logging_level: As in `sbi.inference.NLE_A`.
        summary_writer: As in `sbi.inference.NLE_A`.
        tracker: As in `sbi.inference.NLE_A`.
        show_progress_bars: As in `sbi.inference.NLE_A`.

    Raises:
        InvalidInputError: An unknown name of a distance or network.
        InvalidTypeError: A distance or network that is neither a name nor a function.

    Example:
        >>> from sbi_scoreaug import AmortizedCostEstimator
        >>> from sbi_scoreaug.simulators import TwoMoons
        >>> problem = TwoMoons()
        >>> theta = problem.prior.sample((300,))
        >>> trainer = AmortizedCostEstimator(problem.prior, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, problem(theta))
        >>> cost_net = trainer.train()  # doctest: +SKIP
        >>> posterior = trainer.build_posterior(beta="ml")  # doctest: +SKIP
        >>> samples = posterior.sample((100,), x=problem(theta[:1]))  # doctest: +SKIP
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        distance: str | Distance | Callable[[Tensor, Tensor], Tensor] = "mse",
        cost_net: str | Callable[..., ConditionalEstimator] = "auto",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: Any = None,
        tracker: Any = None,
        show_progress_bars: bool = True,
    ) -> None:
        super().__init__(
            distance,
            cost_net,
            prior=prior,
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
        )
        self._beta: float | None = None

    def build_posterior(
        self,
        density_estimator: ConditionalEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: str = "mcmc",
        *args: Any,
        beta: float | str = "ml",
        estimator: ConditionalEstimator | None = None,
        **kwargs: Any,
    ) -> Any:
        """Build one of sbi's posteriors over the cost.

        All other arguments as in `sbi.inference.NLE_A`.

        Args:
            density_estimator: A cost network; by default the latest.
            prior: As in the host class.
            sample_with: "mcmc", "rejection", "vi" or "importance". The last resamples
                proposals from the prior: fast where the posterior is not much narrower
                than the prior, approximate elsewhere. It takes as many proposals as
                needed, 2000 a sample at most, and warns where that is not enough.
            args: As in the host class.
            beta: Inverse temperature, or the rule that finds it, see `calibrate_beta`.
                It can be changed later by `posterior.beta = ...`.
            estimator: The same as `density_estimator`.
            kwargs: As in the host class.

        Returns:
            A posterior of sbi, whose `repr` tells beta.

        Raises:
            InvalidInputError: An unknown sampler or rule, or a beta that is not
                positive.
            InvalidTypeError: `estimator` is no cost network.
            InvalidStateError: Nothing is trained yet.
        """
        if sample_with not in SAMPLERS:
            raise InvalidInputError(
                f"sample_with: expected one of {SAMPLERS}, got {sample_with!r}."
            )
        cost_net = self._cost_net(density_estimator or estimator)
        if isinstance(beta, str):
            beta = self.calibrate_beta(beta, estimator=cost_net, prior=prior).beta
        self._beta = validate_beta(beta)
        posterior = super().build_posterior(
            cost_net,  # type: ignore[arg-type]
            prior,
            sample_with,  # type: ignore[arg-type]
            *args,
            **kwargs,
        )
        self._posterior = generalized(posterior)
        return self._posterior

    def _get_potential_function(
        self, prior: Distribution, estimator: Any
    ) -> tuple[BasePotential, Any]:
        """Return the potential at the beta of this call, and sbi's transform."""
        assert self._beta is not None
        device = next(estimator.parameters()).device
        potential = CostBasedPotential(
            estimator,
            prior,
            beta=self._beta,
            target_range=deepcopy(self._target_range),
            device=device,
        )
        return potential, mcmc_transform(prior, device=str(device))


for _name in ("train", "build_posterior"):
    show_host_signature(AmortizedCostEstimator, _name)
del _name
