"""What a trained surrogate says of scores and of information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug._host import HostTrainer
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)


class SurrogateScore(HostTrainer):
    """Mixin of what can be asked of a trainer with scores after training."""

    def surrogate_score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the score that the trained network implies, grad_theta f(theta, x).

        Args:
            theta: `(batch, dim_theta)`.
            x: `(batch, *shape_x)`, or one row `(1, *shape_x)` for all theta.

        Returns:
            `(batch, dim_theta)`.

        Raises:
            InvalidStateError: Before training.
            InvalidTypeError: Something else than tensors.
            InvalidInputError: Different numbers of rows.
        """
        if self._neural_net is None:
            raise InvalidStateError(
                "the surrogate's score: expected a trained network, got none. Call "
                "train() first."
            )
        if not (isinstance(theta, Tensor) and isinstance(x, Tensor)):
            raise InvalidTypeError(
                f"theta and x: expected tensors, got {type(theta).__name__} and "
                f"{type(x).__name__}. Convert them with torch.as_tensor(..., "
                "dtype=torch.float32)."
            )
        if len(x) == 1:
            x = x.expand(len(theta), *x.shape[1:])
        if len(theta) != len(x):
            raise InvalidInputError(
                f"theta and x: expected one row each a pair, got {len(theta)} and "
                f"{len(x)} rows."
            )
        with torch.enable_grad():
            return self._surrogate_gradient(
                theta.to(self._device),
                x.to(self._device),
            )

    def fisher_information(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the mean of s s' over pairs, s the surrogate's score.

        With all rows of theta equal and x simulated there this estimates the Fisher
        information at theta; with theta from the prior, its prior expectation.

        Args:
            theta: `(batch, dim_theta)`.
            x: `(batch, *shape_x)`, simulated at theta.

        Returns:
            `(dim_theta, dim_theta)`, in units of 1 / (theta theta').

        Raises:
            InvalidStateError, InvalidInputError: As in `surrogate_score`.
        """
        score = self.surrogate_score(theta, x)
        return score.T @ score / len(score)


def require_surrogate(trainer: Any, instead: str) -> None:
    """Raise unless the network of `trainer` implies a likelihood score.

    Args:
        trainer: What the user gave.
        instead: What to do with another trainer.

    Raises:
        InvalidTypeError: It has no `surrogate_score`.
    """
    if not hasattr(trainer, "surrogate_score"):
        raise InvalidTypeError(
            "trainer: expected ScoreAugmentedNRE, ScoreAugmentedNLE, ScoreAugmentedNPE "
            "or another ScoreAugmentedRatioTerm, whose networks imply a score, got "
            f"{type(trainer).__name__}. {instead}"
        )
