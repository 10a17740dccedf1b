r"""What a training with scores reports, and what it is stopped by.

After every epoch `trainer.summary` and the tracker gain

- `validation_host_loss`: the host's loss alone;
- `score_error`: for each parameter, mean (d_k f - s_k)^2 / mean s_k^2 over validation
  pairs. 0 is a perfect fit, 1 a surrogate that ignores theta, NaN a component that is
  unknown or always zero;
- `signal_fraction`: 1 - score_error. For joint scores t it tends to the part of Var t
  that x explains, I_observed / I_complete, which bounds what they are worth. Negative
  is worse than ignoring theta: too few simulations, or a few outliers that the network
  cannot follow, as of heavy tails by a flow (`plots.score_fit` shows which);
- `score_weights`: w_k as used last, `score_gain` included.

Model selection uses the validation sum L_host + sum_k ell_k *without* weights: weights
drift, so a weighted sum could not be compared between epochs. Patience starts anew when
either the host's loss or the sum improves; the network kept is that of the best sum,
so seldom that of the last entry: `surrogate_score` tells of the network itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug._host import HostTrainer
from sbi_scoreaug.score_augmented.loss import standardised_error

SUMMARY_KEYS = (
    "validation_host_loss",
    "score_error",
    "signal_fraction",
    "score_weights",
)


class ScoreMonitor(HostTrainer):
    """Mixin that reports score metrics and lets them decide when to stop."""

    _best_host_loss = float("inf")
    _num_logged = 0
    _last_weights: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._summary.update({key: [] for key in SUMMARY_KEYS})
        self._epoch_host_losses: list[float] = []
        self._epoch_errors: list[Tensor] = []

    def _note_validation(
        self, host_loss: Tensor, gradient: Tensor, score: Tensor, mask: Tensor
    ) -> None:
        """Note one validation batch."""
        self._epoch_host_losses.append(host_loss.item())
        self._epoch_errors.append(standardised_error(gradient, score, mask).detach())

    def _validate_epoch(self, *args: Any, **kwargs: Any) -> float:
        """Validate as the host, and note what the sum is made of."""
        self._epoch_host_losses, self._epoch_errors = [], []
        val_loss = super()._validate_epoch(*args, **kwargs)
        if self._epoch_errors:
            wrong, all_ = torch.stack(self._epoch_errors).sum(0)
            error = torch.where(all_ > 0, wrong / all_, torch.nan)
            values = (
                sum(self._epoch_host_losses) / len(self._epoch_host_losses),
                error.tolist(),
                (1 - error).tolist(),
                self._last_weights.tolist(),
            )
            for key, value in zip(SUMMARY_KEYS, values, strict=True):
                self._summary[key].append(value)
        return val_loss

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        """Stop when neither the host's loss nor the sum improves; keep the best sum."""
        if epoch == 0:
            self._best_host_loss = float("inf")
        elif self._epoch_errors:
            host_loss = self._summary["validation_host_loss"][-1]
            if host_loss < self._best_host_loss:
                self._best_host_loss = host_loss
                self._epochs_since_last_improvement = -1  # the host adds one
        return super()._converged(epoch, stop_after_epochs)

    def _summarize(self, round_: int) -> None:
        """Log the host's metrics, then the score metrics of each epoch."""
        super()._summarize(round_)
        logged = self._num_logged
        self._num_logged = len(self._summary[SUMMARY_KEYS[0]])
        for key in SUMMARY_KEYS:
            for step, value in enumerate(self._summary[key][logged:], start=logged):
                if isinstance(value, float):
                    self._tracker.log_metric(name=key, value=value, step=step)
                    continue
                for k, component in enumerate(value):
                    self._tracker.log_metric(
                        name=f"{key}_{k}", value=component, step=step
                    )
        self._tracker.flush()
