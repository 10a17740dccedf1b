"""Training of a cost network in the host's loop, with three changes.

Every batch draws fresh pairs (`training_loss`). An epoch has at least 50 steps
(`loaders`). The learning rate falls when the loss on the fixed validation pairs stalls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from sbi_scoreaug._host import assert_all_finite
from sbi_scoreaug.amortized_cost.builder import CostNetBuilder, build_cost_net
from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.control_variate import ControlVariate, left_out
from sbi_scoreaug.amortized_cost.cost_data import CostData
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.distance_checks import is_valid
from sbi_scoreaug.amortized_cost.distances import resolve_distance
from sbi_scoreaug.amortized_cost.estimator import CostEstimator
from sbi_scoreaug.amortized_cost.loaders import numbered_loaders
from sbi_scoreaug.amortized_cost.pairs import TargetPool, check_pair_options
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.amortized_cost.target_range import TargetRange
from sbi_scoreaug.amortized_cost.training_loss import TrainingLoss
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
    warn,
)
from sbi_scoreaug.scores.carrier import ScoreCarrier

INVALID_MODES = ("raise", "drop", "penalty")
VALIDATION_SEED = 0


class CostTraining(ScoreCarrier, CostData):
    """Trains a cost network on the data.

    Args:
        distance: As in `AmortizedCostEstimator`.
        cost_net: As in `AmortizedCostEstimator`.
        kwargs: As in the host class.
    """

    _neural_net: CostEstimator | PenalizedCost | None  # type: ignore[assignment]

    def __init__(
        self,
        distance: str | Distance | Callable[[Tensor, Tensor], Tensor],
        cost_net: str | Callable[..., ConditionalEstimator],
        **kwargs: Any,
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
        super().__init__(resolved, density_estimator=cost_net, **kwargs)
        self._loss: TrainingLoss | None = None
        self._target_range: TargetRange | None = None
        self._plateau: ReduceLROnPlateau | None = None
        self._generator: torch.Generator | None = None
        self._invalid = "raise"
        self._pair_options: dict[str, float] = {}
        self._targets_per_simulation = 4
        # of the present network: prior, method, options, what was found
        self._control: ControlVariate | None = None
        self._calibrations: list[tuple[Any, str, Any, BetaCalibration]] = []

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

        All other arguments as in `sbi.inference.NLE_A`. Scores serve as control
        variates where every simulation of the training rounds succeeded; where some
        failed they would bias the cost and are left out, with a warning.

        Args:
            args: As in the host class.
            targets_per_simulation: Targets that a simulation meets in a batch. The
                "quadratic" network, exact in x_t, is trained without targets.
            widened_fraction: Fraction of targets that is widened, from 0 to 1.
            widened_scale: By how many prior predictive standard deviations.
            invalid: "raise" on simulations with NaN or infinity, "drop" them, or give
                them a finite "penalty": they lie as far from any target as the
                farthest of up to 200 valid simulations.
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
        check_pair_options(targets_per_simulation, widened_fraction, widened_scale)
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
        self._fit_distance()
        self._calibrations = []
        estimator = super().train(*args, **kwargs)
        # The head of scores has served; a resumed training takes it up again.
        trained: Any = self._neural_net
        self._control = trained.control
        estimator.control = trained.control = None
        x = self._valid_simulations()
        self._target_range = TargetRange(
            torch.cat([x, *(t.to(x) for t in self._targets)]), self._distance.on_sets
        )
        return estimator  # type: ignore[return-value]

    def _kept_rows(self, x: Tensor) -> Tensor:
        """Return which simulations `exclude_invalid_x` keeps, `(batch,)`."""
        return is_valid(self._distance, x)

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
        loaders = super().get_dataloaders(
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
        num_validation = len(self.val_indices)
        rows = self.train_indices[valid[self.train_indices]].sort().values
        if len(rows) < 2 or num_validation < 1:
            raise InvalidInputError(
                "expected at least two valid simulations to train and one to validate "
                f"on, got {len(rows)} and {num_validation}. Append more simulations or "
                "change validation_fraction."
            )
        pool = TargetPool(
            x[rows.to(x.device)].cpu(),
            rows,
            torch.cat([x[:0].cpu(), *(target.cpu() for target in self._targets)]),
            on_sets=self._distance.on_sets,
            **self._pair_options,
        )
        self._loss = TrainingLoss(pool, self._distance, self._targets_per_simulation)
        return numbered_loaders(
            loaders,
            (self.train_indices, self.val_indices),
            len(x),
            training_batch_size,
            dataloader_kwargs,
        )

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Build the cost network from valid training rows, in the first round."""
        new = self._neural_net is None or retrain_from_scratch
        if new:
            self._build_network(start_idx)
            self._control = None
        scores, cost_net = self._scores(start_idx), cast(Any, self._neural_net)
        if scores is None:
            return
        failed, total = self._num_failed(start_idx)
        if failed:
            cost_net.control = None
            warn(left_out(failed, total))
            return
        if self._control is not None:
            cost_net.control = self._control
        elif cost_net.control is None and not self._resuming:
            # (An interrupted training leaves one. The optimiser of a training that
            # began without scores does not know of a head.)
            rows = self.train_indices
            theta, x, _ = self.get_simulations(start_idx)
            start = (theta[rows].cpu(), x[rows].cpu()) if new else None
            cost_net.add_control((scores[0] * scores[1])[rows].cpu(), start)

    def _build_network(self, start_idx: int) -> None:
        builder: Any = self._build_neural_net
        if builder is None:
            raise InvalidStateError(
                "retrain_from_scratch: expected a trainer that was not unpickled, got "
                "one whose network builder is gone. Create a new trainer."
            )
        theta, x, _ = self.get_simulations(start_idx)
        self._neural_net = build_cost_net(
            builder,
            theta[self.train_indices].cpu(),
            x[self.train_indices].cpu(),
            deepcopy(self._distance).cpu(),
            penalize_failures=self._invalid == "penalty",
        )

    def _get_losses(self, batch: Sequence[Tensor]) -> Tensor:
        """Return losses `(batch,)` of fresh pairs, or of the fixed validation pairs."""
        assert self._loss is not None and self._neural_net is not None
        theta, x = batch[0].to(self._device), batch[1].to(self._device)
        generator = None if self._neural_net.training else self._generator
        score = None
        if len(batch) > 4:  # the row numbers come last
            score = (batch[3] * batch[4]).to(theta)
        losses = self._loss(self._neural_net, theta, x, batch[-1], generator, score)
        assert_all_finite(losses, f"{type(self).__name__} loss")
        return losses

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
