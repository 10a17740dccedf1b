"""What follows training: the inverse temperature and the diagnosis of an observation.

Both need simulations from the prior that training did not see: the validation rows, or
fresh ones of the user.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis, diagnose
from sbi_scoreaug.amortized_cost.distance_checks import is_valid
from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.amortized_cost.target_range import ModelWarning
from sbi_scoreaug.amortized_cost.temperature import calibrate_beta
from sbi_scoreaug.amortized_cost.temperature_rules import METHODS
from sbi_scoreaug.amortized_cost.training import CostTraining
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
    warn,
)


class CostAssessment(CostTraining):
    """Trains a cost network, finds its inverse temperature and questions it."""

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
        cost_net = self._cost_net(estimator)
        prior = self._resolve_prior(prior, "mcmc")
        default = theta is None and x is None and cost_net is self._neural_net
        theta, x = self._unseen(theta, x, prior)
        for known_prior, *key, calibration in self._calibrations if default else ():
            if known_prior is prior and key == [method, options]:
                calibration.warn()
                return calibration
        device = next(cost_net.parameters()).device
        calibration = calibrate_beta(
            cost_net,
            prior,
            theta.to(device),
            x.to(device),
            method,
            **{"show_progress_bar": self._show_progress_bars, **options},
        )
        if default:
            self._calibrations.append((prior, method, options, calibration))
        return calibration

    def _unseen(
        self, theta: Tensor | None, x: Tensor | None, prior: Distribution
    ) -> tuple[Tensor, Tensor]:
        """Return the user's valid simulations, or those held out from training."""
        if theta is not None and x is not None:
            return self._check_simulations(theta, x)
        if theta is not None or x is not None:
            raise InvalidInputError(
                "theta, x: expected both or neither, got one of them. Parameters from "
                "the prior and their simulations belong together."
            )
        if not hasattr(self, "val_indices"):
            raise InvalidStateError(
                "theta, x: expected held-out simulations, got none. Call train first, "
                "or pass simulations from the prior."
            )
        theta, x, from_prior = self.get_simulations(self._start_round)
        rows = self.val_indices
        keep = from_prior[rows].flatten().bool() & is_valid(self._distance, x[rows])
        theta, x = theta[rows][keep], x[rows][keep]
        if self._prior is not None and not _agree(
            prior, self._prior, theta.to(self._device)
        ):
            warn(
                "theta, x: expected simulations from the prior that was given, got "
                "those held out from training, which are from the trainer's prior: "
                "what is found may be off. Pass theta and x drawn under that prior.",
                ModelWarning,
            )
        return theta, x

    def diagnose(
        self,
        x_o: Tensor,
        beta: float | str = "ml",
        *,
        theta: Tensor | None = None,
        x: Tensor | None = None,
        prior: Distribution | None = None,
    ) -> CostDiagnosis:
        """Ask whether network and model can be trusted at an observation.

        Args:
            x_o: One observation `(1, *shape_x)` or `(*shape_x)`.
            beta: Inverse temperature, or the rule that finds it.
            theta: Parameters from the prior `(num_simulations, dim_theta)`; by default
                those held out from training. From 50 on the verdict can be bad.
            x: Their simulations `(num_simulations, *shape_x)`.
            prior: The prior; by default the trainer's.

        Returns:
            R^2 against its noise floor, the largest trustworthy beta, the predictive
            cost at `x_o` among those of simulations, and a picture.

        Raises:
            InvalidStateError: Nothing is trained yet.
            InvalidInputError: `x_o` does not fit, or there are too few simulations.
        """
        estimator, resolved = self._cost_net(None), self._resolve_prior(prior, "mcmc")
        theta, x = self._unseen(theta, x, resolved)
        if isinstance(beta, str):
            beta = self.calibrate_beta(beta, prior=prior).beta
        device = next(estimator.parameters()).device
        potential = CostBasedPotential(
            deepcopy(estimator),
            resolved,
            beta=beta,
            target_range=self._target_range,
            device=device,
        )
        x_o = potential.check_x(x_o).to(device)
        return diagnose(potential, self._distance, theta.to(device), x.to(device), x_o)

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


def _agree(prior: Distribution, other: Distribution, theta: Tensor) -> bool:
    """Whether both have the same density at `theta (batch, dim_theta)`."""
    if prior is other:
        return True
    found, known = (p.log_prob(theta) for p in (prior, other))
    return torch.allclose(found.to(known), known, atol=1e-3, rtol=1e-3)
