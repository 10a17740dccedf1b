r"""Enough steps, then a smaller step: training that suits a gradient-matching loss.

sbi counts patience in epochs. With 500 simulations and batches of 200 an epoch is two
steps, and patience of 20 epochs ends a training after some 40 steps without progress,
long before a score term is fitted. Where a trainer is *steady* (it has scores), and
only there, four things change, all within the host's loop:

- *Epochs of at least 50 steps.* The training sampler passes over the data several
  times, newly shuffled, so `stop_after_epochs=20` means at least 1000 steps.
- *Annealing.* When patience ends (or 60 % of `max_num_epochs` has passed), training
  goes on from there for one more stretch in which the learning rate falls linearly to
  zero, and then stops: warm-up is not needed at sbi's rates, and the length of the
  first stretch need not be known beforehand, as it would be for a cosine.
- *The same validation at every epoch*: rows in a fixed order and in batches of equal
  size, so that the epochs that are compared differ by the network alone.
- *Adam in one call*, gradients clipped without a search for parameters: the same
  steps, faster (`fused`).
"""

from __future__ import annotations

import math
import sys
from typing import Any

from torch.utils.data import DataLoader

from sbi_scoreaug._host import HostTrainer
from sbi_scoreaug.errors import InvalidInputError, warn
from sbi_scoreaug.fused import clipped_steps, fuse_step
from sbi_scoreaug.scores.loaders import fixed_order, long_epochs

ANNEALED_FRACTION = 0.4


class SteadyTraining(HostTrainer):
    """Mixin of the schedule above; put it in front of a trainer of sbi.

    `_steady` decides at the start of `train` whether it applies.
    """

    _anneal_start: int | None = None
    _max_num_epochs: int | None = None
    _in_budget = True

    @property
    def _steady(self) -> bool:
        """Whether the schedule applies; otherwise the host trains as it does."""
        return True

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Return the host's loaders with longer epochs and a fixed validation order.

        Raises:
            InvalidInputError: Fewer than two rows to train or to validate on.
        """
        self._anneal_start = None
        train, validation = super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs=dataloader_kwargs,
        )
        if not self._steady:
            return train, validation
        num_train, num_validation = len(self.train_indices), len(self.val_indices)
        if min(num_train, num_validation) < 2:
            raise InvalidInputError(
                "expected at least two simulations to train and two to validate on, "
                f"got {num_train} and {num_validation}. Append more simulations or "
                "change validation_fraction."
            )
        options: dict[str, Any] = {"dataloader_kwargs": dataloader_kwargs}
        if "sampler" not in (dataloader_kwargs or {}):
            train = long_epochs(train, self.train_indices, train.batch_size, **options)
        rows = self.val_indices.tolist()
        validation = fixed_order(validation, rows, validation.batch_size, **options)
        return train, validation

    def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Note the host's budget of epochs, then run its loop."""
        self._max_num_epochs = kwargs["train_config"].max_num_epochs
        try:
            return super()._run_training_loop(*args, **kwargs)
        finally:
            self._set_learning_rate(1.0)  # for a resumed training

    def _set_learning_rate(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.optimizer.defaults["lr"]

    def _train_epoch(
        self, train_loader: Any, clip_max_norm: float | None, loss_args: Any
    ) -> float:
        """Set this epoch's learning rate, then train as the host."""
        if self._anneal_start is not None:
            done = (self.epoch - self._anneal_start) / self._anneal_epochs
            self._set_learning_rate(max(0.0, 1.0 - done))
        if not self._steady:
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)
        fuse_step(self.optimizer)
        with clipped_steps(self.optimizer, clip_max_norm):
            return super()._train_epoch(train_loader, None, loss_args)

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        """Return whether training has ended; start annealing before it does."""
        annealing = self._anneal_start is not None
        patience = sys.maxsize if annealing else stop_after_epochs
        out_of_patience = super()._converged(epoch, patience)
        if not self._steady:
            return out_of_patience
        if self._anneal_start is not None:
            if epoch - self._anneal_start < self._anneal_epochs:
                return False
            self._neural_net.load_state_dict(self._best_model_state_dict)
            return True
        assert self._max_num_epochs is not None
        budget = math.ceil(ANNEALED_FRACTION * self._max_num_epochs)
        self._in_budget = out_of_patience
        if out_of_patience or epoch >= self._max_num_epochs - budget:
            left = max(1, self._max_num_epochs - epoch)
            self._anneal_start = epoch
            self._anneal_epochs = min(
                left, stop_after_epochs if out_of_patience else left
            )
            self._epochs_since_last_improvement = 0
        return False

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        """Report as the host; annealing for want of epochs is not convergence."""
        if not self._steady or self._in_budget:
            return super()._report_convergence_at_end(epoch, max_num_epochs)
        warn(
            f"Maximum number of epochs max_num_epochs={max_num_epochs} reached: the "
            "learning rate was lowered before patience ended. More epochs may help.",
            UserWarning,
        )
