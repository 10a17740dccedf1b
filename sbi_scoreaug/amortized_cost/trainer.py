r"""Amortized cost estimation: generalized Bayes for simulators.

    objective   min_f  E (d(x, x_t) - f(theta, x_t))^2,    (theta, x) simulated,
                x_t from simulations, appended targets and widened versions of both
    minimiser   f(theta, x_t) = E[ d(x, x_t) | theta ], the expected cost
    posterior   p_beta(theta | x_o) ~ exp(-beta f(theta, x_o)) p(theta)

One network serves every observation and every beta. The posterior concentrates where
simulations come near to x_o in the user's distance, also when no parameter can produce
x_o, where a likelihood says nothing useful.

`cost_data` holds what it learns from, `training` how; this file adds what follows, the
inverse temperature, the posterior and the diagnosis.

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
from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis, diagnose
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.distance_checks import is_valid
from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.posterior import generalized
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential, validate_beta
from sbi_scoreaug.amortized_cost.temperature import calibrate_beta
from sbi_scoreaug.amortized_cost.temperature_rules import METHODS
from sbi_scoreaug.amortized_cost.training import CostTraining
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)

SAMPLERS = ("mcmc", "rejection", "vi", "importance")


class AmortizedCostEstimator(CostTraining):
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
            sample_with: "mcmc", "rejection", "vi" or "importance".
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

    def _cost_net(self, estimator: Any) -> ExpectedCost:
        estimator = self._neural_net if estimator is None else estimator
        if estimator is None:
            raise InvalidStateError(
                "estimator: expected a trained cost network, got none. Call train "
                "first."
            )
        if not isinstance(estimator, ExpectedCost):
            raise InvalidTypeError(
                "estimator: expected a cost network as train returns it, got "
                f"{type(estimator).__name__}."
            )
        return estimator

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

    def calibrate_beta(
        self,
        method: str = "ml",
        *,
        theta: Tensor | None = None,
        x: Tensor | None = None,
        estimator: ConditionalEstimator | None = None,
        prior: Distribution | None = None,
        **options: Any,
    ) -> BetaCalibration:
        """Find an inverse temperature from simulations; see `temperature`.

        Args:
            method: "ml", "coverage", "ess" or "predictive".
            theta: Parameters from the prior `(num_observations, dim_theta)`; by
                default those held out from training.
            x: Their simulations `(num_observations, *shape_x)`.
            estimator: A cost network; by default the latest.
            prior: The prior; by default the trainer's.
            options: Further arguments of `temperature.calibrate_beta`.

        Returns:
            The value, its curves and a picture.

        Raises:
            InvalidInputError: An unknown rule, or too few simulations.
            InvalidStateError: Nothing is trained yet.
        """
        if method not in METHODS:
            raise InvalidInputError(
                f"beta: expected a positive number or one of {METHODS}, got {method!r}."
            )
        if (theta is None) != (x is None):
            raise InvalidInputError(
                "theta, x: expected both or neither, got one of them. Parameters from "
                "the prior and their simulations belong together."
            )
        cost_net = self._cost_net(estimator)
        prior = self._resolve_prior(prior, "mcmc")
        default = theta is None and cost_net is self._neural_net
        for known_prior, *key, calibration in self._calibrations if default else ():
            if known_prior is prior and key == [method, options]:
                calibration.warn()
                return calibration
        if theta is None or x is None:
            theta, x = self._held_out()
        else:
            theta, x = self._check_simulations(theta, x)
        device = next(cost_net.parameters()).device
        calibration = calibrate_beta(
            cost_net, prior, theta.to(device), x.to(device), method, **options
        )
        if default:
            self._calibrations.append((prior, method, options, calibration))
        return calibration

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Return valid simulations from the prior that training did not see."""
        if not hasattr(self, "val_indices"):
            raise InvalidStateError(
                "theta, x: expected held-out simulations, got none. Call train first, "
                "or pass simulations from the prior."
            )
        theta, x, from_prior = self.get_simulations(self._start_round)
        rows = self.val_indices
        keep = from_prior[rows].flatten().bool() & is_valid(self._distance, x[rows])
        return theta[rows][keep], x[rows][keep]

    def diagnose(self, x_o: Tensor, beta: float | str = "ml") -> CostDiagnosis:
        """Ask whether network and model can be trusted at an observation.

        Args:
            x_o: One observation `(1, *shape_x)` or `(*shape_x)`.
            beta: Inverse temperature, or the rule that finds it.

        Returns:
            R^2 against its noise floor, the largest trustworthy beta, the predictive
            cost at `x_o` among those of simulations, and a picture.

        Raises:
            InvalidStateError: Nothing is trained yet.
            InvalidInputError: `x_o` does not fit.
        """
        estimator = self._cost_net(None)
        if isinstance(beta, str):
            beta = self.calibrate_beta(beta).beta
        prior = self._resolve_prior(None, "mcmc")
        potential = CostBasedPotential(
            deepcopy(estimator), prior, beta=beta, target_range=self._target_range
        )
        return diagnose(
            potential, self._distance, *self._held_out(), potential.check_x(x_o)
        )


for _name in ("train", "build_posterior"):
    show_host_signature(AmortizedCostEstimator, _name)
del _name
