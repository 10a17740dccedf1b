r"""Amortized cost estimation: generalized Bayes for simulators.

    objective   min_f  E (d(x, x_t) - f(theta, x_t))^2,    (theta, x) simulated,
                x_t from simulations, appended targets and widened versions of both
    minimiser   f(theta, x_t) = E[ d(x, x_t) | theta ], the expected cost
    posterior   p_beta(theta | x_o) ~ exp(-beta f(theta, x_o)) p(theta)

One network serves every observation and every beta. The posterior concentrates where
simulations come near to x_o in the user's distance, also when no parameter can produce
x_o, where a likelihood says nothing useful.

Training runs in the host's loop with three changes. Every batch draws fresh pairs (see
`pairs`). An epoch has at least 50 steps, so that patience does not end a training on
few simulations early. The learning rate falls when the loss on the fixed validation
pairs stalls.

Assumption: theta covers the region of the posterior; its distribution does not enter
the minimiser, so simulations from any proposal may be appended.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from sbi.inference.potentials.base_potential import BasePotential
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.utils import mcmc_transform
from torch import Tensor
from torch.distributions import Distribution
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_scoreaug._host import assert_all_finite, show_host_signature
from sbi_scoreaug.amortized_cost.diagnosis import CostDiagnosis, diagnose
from sbi_scoreaug.amortized_cost.distances import (
    Distance,
    check_distance,
    check_event_shape,
    is_valid,
    resolve_distance,
)
from sbi_scoreaug.amortized_cost.estimator import (
    CostEstimator,
    CostNetBuilder,
    CustomCost,
    PenalizedCost,
)
from sbi_scoreaug.amortized_cost.pairs import TargetPool
from sbi_scoreaug.amortized_cost.posterior import generalized
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential, validate_beta
from sbi_scoreaug.amortized_cost.target_range import TargetRange
from sbi_scoreaug.amortized_cost.temperature import (
    METHODS,
    BetaCalibration,
    calibrate_beta,
)
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)
from sbi_scoreaug.scores.loaders import RepeatSampler, rebuild_loader

SAMPLERS = ("mcmc", "rejection", "vi", "importance")
INVALID_MODES = ("raise", "drop", "penalty")
STEPS_PER_EPOCH = 50
VALIDATION_ROWS = 1000
VALIDATION_SEED = 0


class AmortizedCostEstimator(LikelihoodEstimatorTrainer):
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

    _neural_net: CostEstimator | PenalizedCost | None  # type: ignore[assignment]

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
        resolved = resolve_distance(distance)
        if isinstance(cost_net, str):
            cost_net = CostNetBuilder(cost_net)
        if not callable(cost_net) or isinstance(cost_net, torch.nn.Module):
            raise InvalidTypeError(
                "cost_net: expected a name, a CostNetBuilder or a function (theta, x) "
                f"-> ConditionalEstimator, got {type(cost_net).__name__}. Wrap a "
                "network in a function that builds it from training data."
            )
        super().__init__(
            prior=prior,
            density_estimator=cost_net,  # type: ignore[arg-type]
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
        )
        self._distance = deepcopy(resolved)
        self._distance_is_fitted = False
        self._targets: list[Tensor] = []
        self._pool: TargetPool | None = None
        self._target_range: TargetRange | None = None
        self._plateau: ReduceLROnPlateau | None = None
        self._generator_seed: int | None = None
        self._invalid = "raise"
        self._pair_options: dict[str, float] = {}
        self._targets_per_simulation = 4
        self._beta: float | None = None
        self._calibrations: dict[Any, BetaCalibration] = {}

    # --- data ------------------------------------------------------------------------

    @property
    def distance(self) -> Distance:
        """The distance; its scales are frozen at the first training."""
        return self._distance

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        exclude_invalid_x: bool = False,
        from_round: int = 0,
        algorithm: str = "ACE",
        data_device: str | None = None,
    ) -> Self:
        """Store simulations; invalid ones too, `train(invalid=...)` decides on them.

        All arguments as in `sbi.inference.NLE_A`.

        Args:
            theta: Parameters `(num_simulations, dim_theta)`.
            x: Simulations `(num_simulations, *shape_x)`; for a distance on sets
                `(num_simulations, num_trials, dim)`, rows of NaN for missing trials.
            exclude_invalid_x: Whether to drop invalid simulations here and now.
            from_round: Round that the simulations stem from.
            algorithm: Name in messages.
            data_device: Where to store the data.

        Returns:
            The trainer, so that calls can be chained.

        Raises:
            InvalidTypeError, InvalidInputError: Data that cannot be used; nothing is
                stored.
        """
        for name, value in (("theta", theta), ("x", x)):
            if not isinstance(value, Tensor) or value.dtype != torch.float32:
                found = getattr(value, "dtype", type(value).__name__)
                raise InvalidTypeError(
                    f"{name}: expected a float32 tensor, got {found}. Convert it with "
                    "torch.as_tensor(..., dtype=torch.float32)."
                )
        if len(theta) != len(x):
            raise InvalidInputError(
                f"x: expected as many rows as theta ({len(theta)}), got {len(x)}."
            )
        theta = theta.unsqueeze(1) if theta.ndim == 1 else theta
        x = x.unsqueeze(1) if x.ndim == 1 else x
        check_event_shape(self._distance, x)
        self._check_same_shape("x", x)
        valid = is_valid(self._distance, x)
        if not valid.any():
            raise InvalidInputError(
                "x: expected at least one valid simulation, got NaN or infinity in "
                "all of them."
            )
        if exclude_invalid_x:
            theta, x, valid = theta[valid], x[valid], valid[valid]
        super().append_simulations(
            theta,
            x.nan_to_num(0.0, 0.0, 0.0),
            from_round=from_round,
            algorithm=algorithm,
            data_device=data_device,
        )
        self._x_roundwise[-1] = x.to(self._x_roundwise[-1].device)
        return self

    def append_targets(self, x: Tensor) -> Self:
        """Store observations, or anything that users expect to see, as targets.

        Args:
            x: Targets `(num_targets, *shape_x)`, or one `(*shape_x)`.

        Returns:
            The trainer, so that calls can be chained.

        Raises:
            InvalidInputError: Another shape than the simulations, NaN or infinity;
                nothing is stored.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InvalidTypeError(
                f"x: expected a floating tensor of targets, got {type(x).__name__}."
            )
        x = x.detach().to(torch.float32)
        if self._x_roundwise and x.ndim == self._x_roundwise[0].ndim - 1:
            x = x.unsqueeze(0)
        check_event_shape(self._distance, x)
        self._check_same_shape("targets x", x)
        if not is_valid(self._distance, x).all():
            raise InvalidInputError(
                "targets x: expected finite values, got NaN or infinity."
            )
        self._targets.append(x)
        return self

    def _check_same_shape(self, name: str, x: Tensor) -> None:
        for known in (*self._x_roundwise, *self._targets):
            if known.shape[1:] != x.shape[1:]:
                raise InvalidInputError(
                    f"{name}: expected shape (batch, "
                    f"{', '.join(map(str, known.shape[1:]))}) as before, got "
                    f"{tuple(x.shape)}. Pad sets of fewer trials with rows of NaN."
                )

    # --- training --------------------------------------------------------------------

    def train(
        self,
        *args: Any,
        targets_per_simulation: int = 4,
        widened_fraction: float = 0.5,
        widened_scale: float = 2.0,
        invalid: str = "raise",
        **kwargs: Any,
    ) -> CostEstimator | PenalizedCost:
        """Train the cost network on fresh pairs.

        All other arguments as in `sbi.inference.NLE_A`.

        Args:
            args: As in the host class.
            targets_per_simulation: Targets that a simulation meets in a batch.
            widened_fraction: Fraction of targets that is widened, from 0 to 1.
            widened_scale: By how many prior predictive standard deviations.
            invalid: "raise" on simulations with NaN or infinity, "drop" them, or give
                them a finite "penalty": the largest distance among valid ones.
            kwargs: As in the host class.

        Returns:
            The cost network, `forward(theta, x_t) -> (batch,)`.

        Raises:
            InvalidStateError: No simulations yet.
            InvalidInputError: An option that cannot be used, invalid simulations under
                "raise", or a distance that fails on the simulations.
        """
        if not self._x_roundwise:
            raise InvalidStateError(
                "train: expected simulations, got none. Call append_simulations first."
            )
        if invalid not in INVALID_MODES:
            raise InvalidInputError(
                f"invalid: expected one of {INVALID_MODES}, got {invalid!r}."
            )
        if targets_per_simulation < 1 or int(targets_per_simulation) != (
            targets_per_simulation
        ):
            raise InvalidInputError(
                "targets_per_simulation: expected a positive whole number, got "
                f"{targets_per_simulation}."
            )
        if not 0 <= widened_fraction <= 1 or not 0 <= widened_scale < math.inf:
            raise InvalidInputError(
                "widened_fraction, widened_scale: expected a fraction from 0 to 1 "
                f"and a finite scale, got {widened_fraction} and {widened_scale}."
            )
        known = torch.cat(self._x_roundwise)
        failed = int((~is_valid(self._distance, known)).sum())
        if failed and invalid == "raise":
            raise InvalidInputError(
                f"x: expected finite simulations, got NaN or infinity in {failed}. "
                "Train with invalid='penalty' (failing counts as far from every "
                "target) or invalid='drop' (failing says nothing about theta). Sets "
                "of trials with missing ones need a distance on sets."
            )
        self._invalid = invalid
        self._targets_per_simulation = int(targets_per_simulation)
        self._pair_options = {
            "widened_fraction": widened_fraction,
            "widened_scale": widened_scale,
        }
        if not self._distance_is_fitted:
            x = self._valid_simulations()
            if len(x) < 4:
                raise InvalidInputError(
                    f"x: expected at least four valid simulations, got {len(x)}."
                )
            check_distance(self._distance.fit(x), x)
            self._distance.to(self._device)
            self._distance_is_fitted = True
        estimator = super().train(*args, **kwargs)
        self._calibrations = {}
        x = self._valid_simulations()
        self._target_range = TargetRange(
            torch.cat([x, *(t.to(x) for t in self._targets)]), self._distance.on_sets
        )
        return estimator  # type: ignore[return-value]

    def _valid_simulations(self) -> Tensor:
        x = torch.cat(self._x_roundwise)
        return x[is_valid(self._distance, x)]

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Return the host's loaders with row numbers, long epochs, fixed validation.

        Raises:
            InvalidInputError: Too few simulations to train or to validate on.
        """
        train, validation = super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs=dataloader_kwargs,
        )
        self._start_round = starting_round
        x = self.get_simulations(starting_round)[1]
        valid = is_valid(self._distance, x).cpu()
        if self._invalid == "drop":
            self.train_indices = self.train_indices[valid[self.train_indices]]
            self.val_indices = self.val_indices[valid[self.val_indices]]
        num_train, num_validation = len(self.train_indices), len(self.val_indices)
        rows = self.train_indices[valid[self.train_indices]].sort().values
        if len(rows) < 2 or num_validation < 1:
            raise InvalidInputError(
                "expected at least two valid simulations to train and one to validate "
                f"on, got {len(rows)} and {num_validation}. Append more simulations or "
                "change validation_fraction."
            )
        empty = x[:0].cpu()
        self._pool = TargetPool(
            x[rows.to(x.device)].cpu(),
            rows,
            torch.cat([empty, *(target.cpu() for target in self._targets)]),
            on_sets=self._distance.on_sets,
            **self._pair_options,
        )
        columns = (torch.arange(len(x)),)
        batch_size = min(training_batch_size, num_train)
        passes = math.ceil(STEPS_PER_EPOCH / max(1, num_train // batch_size))
        sampler = RepeatSampler(self.train_indices.tolist(), passes)
        train = rebuild_loader(
            train, columns, dataloader_kwargs, sampler=sampler, batch_size=batch_size
        )
        fixed = self.val_indices.tolist() * math.ceil(VALIDATION_ROWS / num_validation)
        batches = math.ceil(len(fixed) / VALIDATION_ROWS)
        validation = rebuild_loader(
            validation,
            columns,
            dataloader_kwargs,
            sampler=fixed,
            batch_size=len(fixed) // batches,
        )
        return train, validation

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Build the cost network from valid training rows, in the first round."""
        if self._neural_net is not None and not retrain_from_scratch:
            return
        builder: Any = self._build_neural_net
        if builder is None:
            raise InvalidStateError(
                "retrain_from_scratch: expected a trainer that was not unpickled, got "
                "one whose network builder is gone. Create a new trainer."
            )
        theta, x, _ = self.get_simulations(start_idx)
        theta, x = theta[self.train_indices].cpu(), x[self.train_indices].cpu()
        valid = is_valid(self._distance, x)
        distance = deepcopy(self._distance).cpu()
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
        if self._invalid == "penalty":
            largest = distance(x[valid], x[valid].roll(1, dims=0)).max()
            estimator = PenalizedCost(estimator, ~valid, largest)
        self._neural_net = estimator

    def _get_losses(self, batch: Sequence[Tensor]) -> Tensor:
        """Return losses `(batch,)` of fresh pairs, or of the fixed validation pairs."""
        assert self._pool is not None and self._neural_net is not None
        theta, x, index = batch[0], batch[1], batch[3]
        theta, x = theta.to(self._device), x.to(self._device)
        failed = ~is_valid(self._distance, x)
        options = {}
        if isinstance(self._neural_net, PenalizedCost):
            options["failed"] = failed
            stand_in = self._pool.x[:1].to(x)
            x = torch.where(failed.reshape(-1, *(1,) * (x.ndim - 1)), stand_in, x)
        targets, distances = x[:, None], x.new_zeros(len(x), 1)
        if self._neural_net.needs_pairs:
            targets, distances = self._draw_pairs(x, index)
        losses = self._neural_net.loss(
            targets, theta, x=x, distances=distances, **options
        )
        assert_all_finite(losses, f"{type(self).__name__} loss")
        return losses

    def _draw_pairs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets `(batch, T, *shape_x)` and their distances `(batch, T)`."""
        assert self._pool is not None and self._neural_net is not None
        generator = None if self._neural_net.training else self._generator
        num_targets = self._targets_per_simulation
        targets = self._pool.draw(index.cpu(), num_targets, generator).to(x)
        with torch.no_grad():
            repeated = x.repeat_interleave(num_targets, dim=0)
            distances = self._distance(repeated, targets.flatten(0, 1))
        return targets, distances.unflatten(0, (len(x), num_targets))

    def _validate_epoch(self, *args: Any, **kwargs: Any) -> float:
        """Validate on the same pairs as ever; lower the rate when that stalls."""
        self._generator = torch.Generator().manual_seed(VALIDATION_SEED)
        loss = super()._validate_epoch(*args, **kwargs)
        if self._plateau is None or self._plateau.optimizer is not self.optimizer:
            self._plateau = ReduceLROnPlateau(
                self.optimizer, factor=0.4, patience=4, threshold=0.0
            )
        self._plateau.step(loss)
        return loss

    def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the host's loop; generators cannot be pickled, so drop ours after it."""
        try:
            return super()._run_training_loop(*args, **kwargs)
        finally:
            self._generator = None

    # --- posterior -------------------------------------------------------------------

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

    def _cost_net(self, estimator: Any) -> CostEstimator | PenalizedCost:
        estimator = self._neural_net if estimator is None else estimator
        if estimator is None:
            raise InvalidStateError(
                "estimator: expected a trained cost network, got none. Call train "
                "first."
            )
        if not isinstance(estimator, CostEstimator | PenalizedCost):
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
        cost_net = self._cost_net(estimator)
        prior = self._resolve_prior(prior, "mcmc")
        default = theta is None and x is None and cost_net is self._neural_net
        key = (method, id(prior), tuple(sorted(options.items())))
        if default and key in self._calibrations:
            return self._calibrations[key]
        if theta is None or x is None:
            theta, x = self._held_out()
        calibration = calibrate_beta(cost_net, prior, theta, x, method, **options)
        if default:
            self._calibrations[key] = calibration
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
