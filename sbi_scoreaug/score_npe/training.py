r"""Averaged weights and a falling learning rate, inside the host's training loop.

Denoising losses are noisy, so the weights that a step leaves are too. Validation, model
selection and the final network use the average

    w_avg <- d w_avg + (1 - d) w,    d = min(decay, (1 + k) / (10 + k)) after k steps

and the learning rate falls as a half cosine over the epochs that amount to `num_steps`
optimiser steps, after which training ends (early stopping may end it before). Patience
is counted in steps as well: where simulations are few the host's 20 epochs without an
improvement are 80 steps, too few to tell.

Reference: Song & Ermon (2020), arXiv 2006.09011, on averaged weights.
"""

import inspect
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug._host import HostTrainer
from sbi_scoreaug.fused import fuse_step

MIN_PATIENCE = 400  # optimiser steps
MIN_PATIENCE_EPOCHS = 20  # the host's


class AveragedTraining(HostTrainer):
    """Mixin that trains a host's network with averaged weights and a cosine rate."""

    _ema_decay: float = 0.999
    _decay_epochs: int | None = None

    def _start_averaging(self, ema_decay: float, decay_epochs: int | None) -> None:
        self._ema_decay, self._decay_epochs = ema_decay, decay_epochs
        self._average: dict[str, Tensor] | None = None
        self._raw: dict[str, Tensor] | None = None
        self._num_averaged = 0

    def _train_averaged(
        self, args: tuple, num_steps: int, ema_decay: float, kwargs: dict[str, Any]
    ) -> Any:
        """Run the host's loop; `args` and `kwargs` are arguments of its `train`."""
        given = inspect.signature(type(self).train).bind(self, *args, **kwargs)
        options = dict(given.arguments)
        options.pop("self")
        num_rows = sum(len(theta) for theta in self._theta_roundwise)
        fraction = options.get("validation_fraction", 0.1)
        # A batch size below one is the host's to refuse.
        batch_size = max(options["training_batch_size"], 1)
        num_batches = max(int(num_rows * (1 - fraction)) // batch_size, 1)
        num_epochs = math.ceil(num_steps / num_batches)
        patience = max(MIN_PATIENCE_EPOCHS, math.ceil(MIN_PATIENCE / num_batches))
        options.setdefault("stop_after_epochs", patience)
        if options.get("resume_training") and self._decay_epochs:
            num_epochs += self.epoch
            self._decay_epochs = num_epochs
        else:
            self._start_averaging(ema_decay, num_epochs)
        limit = options.get("max_num_epochs", num_epochs)
        options["max_num_epochs"] = min(limit, num_epochs)
        with warnings.catch_warnings():
            # The rate has fallen to nothing there: more epochs would not help.
            warnings.filterwarnings("ignore", "Maximum number of epochs")
            return super().train(**options)

    def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
        """Train one epoch from the raw weights, and average them after each step."""
        net, optimizer = self._neural_net, self.optimizer
        fuse_step(optimizer)
        if self._raw is not None:
            _load(net, self._raw)
        if self._decay_epochs:
            base = optimizer.defaults["lr"]
            share = min(self.epoch / self._decay_epochs, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = base * max(0.5 * (1 + math.cos(math.pi * share)), 0.01)
        handle = optimizer.register_step_post_hook(self._update_average)
        try:
            return super()._train_epoch(*args, **kwargs)
        finally:
            handle.remove()
            if self._average is not None:
                self._raw = _copy(net)
                _load(net, self._average)

    @torch.no_grad()
    def _update_average(self, *_: Any) -> None:
        parameters = dict(self._neural_net.named_parameters())
        if self._average is None:
            self._average = {name: p.detach().clone() for name, p in parameters.items()}
        self._num_averaged += 1
        k = self._num_averaged
        decay = min(self._ema_decay, (1 + k) / (10 + k))
        for name, parameter in parameters.items():
            self._average[name].lerp_(parameter, 1 - decay)


def _copy(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


@torch.no_grad()
def _load(net: torch.nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in net.named_parameters():
        parameter.copy_(values[name])
