"""What a training shows while it runs: epochs, and the loss of validation."""

from __future__ import annotations

from sbi_scoreaug._host import HostTrainer


class ShowsLoss(HostTrainer):
    """Mixin that adds the loss to the line in which the host counts epochs."""

    def _maybe_show_progress(self, show: bool, epoch: int) -> None:
        """Rewrite the line, if the trainer's `show_progress_bars` says so."""
        if show:
            line = f"Training neural network. Epochs trained: {epoch}"
            # Spaces cover what a longer number left.
            print("\r", f"{line}, validation loss {self._val_loss:.4g}   ", end="")
