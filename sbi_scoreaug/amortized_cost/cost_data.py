"""What a trainer of costs learns from: simulations, appended targets, a distance.

Simulations may be invalid: they are kept as they are, `train` decides on them. Targets
are observations, or anything that users expect to see. Nothing is stored of a call that
is refused.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from torch import Tensor
from typing_extensions import Self

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.distance_checks import (
    check_distance,
    check_event_shape,
    is_valid,
)
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError


class CostData(LikelihoodEstimatorTrainer):
    """The data of a trainer, and the distance that compares them.

    Args:
        distance: The distance.
        kwargs: As in the host class.
    """

    def __init__(self, distance: Distance, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._distance = deepcopy(distance)
        self._distance_is_fitted = False
        self._targets: list[Tensor] = []
        self._num_dropped: list[int] = []  # by exclude_invalid_x, an entry an append

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
                Scores of their rounds are then left out of training.
            from_round: Round that the simulations stem from.
            algorithm: Name in messages.
            data_device: Where to store the data.

        Returns:
            The trainer, so that calls can be chained.

        Raises:
            InvalidTypeError, InvalidInputError: Data that cannot be used; nothing is
                stored.
        """
        theta, x = as_rows(theta, x)
        check_event_shape(self._distance, x)
        self._check_same_shape("x", x)
        valid = is_valid(self._distance, x)
        if not valid.any():
            raise InvalidInputError(
                "x: expected at least one valid simulation, got NaN or infinity in "
                "all of them."
            )
        num_dropped = int((~valid).sum()) if exclude_invalid_x else 0
        if exclude_invalid_x:
            theta, x = theta[valid], x[valid]
        super().append_simulations(
            theta,
            x.nan_to_num(0.0, 0.0, 0.0),
            from_round=from_round,
            algorithm=algorithm,
            data_device=data_device,
        )
        self._x_roundwise[-1] = x.to(self._x_roundwise[-1].device, copy=True)
        self._num_dropped.append(num_dropped)
        return self

    def append_targets(self, x: Tensor) -> Self:
        """Store observations, or anything that users expect to see, as targets.

        Args:
            x: Targets `(num_targets, *shape_x)`, or one `(*shape_x)`.

        Returns:
            The trainer, so that calls can be chained.

        Raises:
            InvalidTypeError: No floating tensor.
            InvalidInputError: Another shape than the simulations, NaN or infinity;
                nothing is stored.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InvalidTypeError(
                f"x: expected a floating tensor of targets, got {type(x).__name__}."
            )
        x = x.detach().to(torch.float32, copy=True)
        if self._x_roundwise and x.ndim == self._x_roundwise[0].ndim - 1:
            x = x.unsqueeze(0)
        if x.ndim < 2:
            raise InvalidInputError(
                "targets x: expected shape (num_targets, *shape_x), got "
                f"{tuple(x.shape)}. Append simulations first if this is one target."
            )
        check_event_shape(self._distance, x)
        self._check_same_shape("targets x", x)
        if not is_valid(self._distance, x).all():
            raise InvalidInputError(
                "targets x: expected finite values, got NaN or infinity."
            )
        self._targets.append(x)
        return self

    def _check_simulations(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a user's simulations as the trainer stores them.

        Raises:
            InvalidTypeError, InvalidInputError: They are unlike those appended, or
                invalid.
        """
        theta, x = as_rows(theta, x)
        check_event_shape(self._distance, x)
        self._check_same_shape("x", x)
        if not is_valid(self._distance, x).all():
            raise InvalidInputError(
                "x: expected valid simulations, got NaN or infinity. Leave those out."
            )
        return theta, x

    def _check_same_shape(self, name: str, x: Tensor) -> None:
        for known in (*self._x_roundwise, *self._targets):
            if known.shape[1:] != x.shape[1:]:
                raise InvalidInputError(
                    f"{name}: expected shape (batch, "
                    f"{', '.join(map(str, known.shape[1:]))}) as before, got "
                    f"{tuple(x.shape)}. Pad sets of fewer trials with rows of NaN."
                )

    def _valid_simulations(self) -> Tensor:
        x = torch.cat(self._x_roundwise)
        return x[is_valid(self._distance, x)]

    def _num_failed(self, starting_round: int) -> tuple[int, int]:
        """Return how many simulations of these rounds failed, and their number.

        Those that `exclude_invalid_x` dropped count in both.
        """
        failed = total = 0
        appended = zip(
            self._x_roundwise, self._num_dropped, self._data_round_index, strict=True
        )
        for x, num_dropped, index in appended:
            if index >= starting_round:
                failed += num_dropped + int((~is_valid(self._distance, x)).sum())
                total += num_dropped + len(x)
        return failed, total

    def _fit_distance(self) -> None:
        """Freeze the distance's scales, once, and check what it returns."""
        if self._distance_is_fitted:
            return
        x = self._valid_simulations()
        if len(x) < 4:
            raise InvalidInputError(
                f"x: expected at least four valid simulations, got {len(x)}."
            )
        check_distance(self._distance.fit(x), x)
        self._distance.to(self._device)
        self._distance_is_fitted = True


def as_rows(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return parameters `(batch, dim_theta)` and simulations `(batch, *shape_x)`.

    Raises:
        InvalidTypeError: Anything but float32 tensors.
        InvalidInputError: Different numbers of rows, or parameters that are not finite.
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
    if not theta.isfinite().all():
        failed = int((~theta.isfinite()).sum())
        raise InvalidInputError(
            f"theta: expected finite parameters, got NaN or infinity in {failed} of "
            f"{theta.numel()} values."
        )
    theta = theta.unsqueeze(1) if theta.ndim == 1 else theta
    return theta, x.unsqueeze(1) if x.ndim == 1 else x
