r"""How a score travels beside its simulation, from `append_simulations` to the batch.

`ScoreCarrier` is mixed into a trainer of sbi, in front of the host class. It keeps one
score tensor for every tensor of theta that the host keeps, so that whatever selects
rounds, rows or batches of theta selects the same rows of the score:

- rows that the host drops (NaN or infinite x) are dropped by the same mask;
- rounds are selected by the host's own `get_simulations_since_round`;
- batches gain two columns at the end, `(score, mask)`, after sbi's three.

A missing component is a NaN when it comes in and a zero under a false mask inside.
A trainer without scores has the host's batches: the host, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_scoreaug._host import (
    get_simulations_since_round,
    handle_invalid_x,
    show_host_signature,
)
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)
from sbi_scoreaug.scores.check import check_score
from sbi_scoreaug.scores.loaders import rebuild_loader
from sbi_scoreaug.scores.progress import ShowsLoss
from sbi_scoreaug.scores.reports import (
    report_check,
    report_missing,
    report_unknown,
    report_unseen,
)
from sbi_scoreaug.scores.validation import (
    as_column,
    validate_dim_theta,
    validate_score,
)

SCORE_KINDS = ("exact", "joint")


class ScoreCarrier(ShowsLoss):
    """Mixin that carries scores through a trainer of sbi.

    Put it in front of the host class. Subclasses read the batch's fourth and fifth
    column, `score (batch, dim_theta)` and `mask (batch, dim_theta)`.

    Args:
        score_fn: Optional function `(theta, x) -> score`, all `(batch, ...)`, that
            returns the exact score grad_theta log p(x|theta). It fills in the scores
            of appended simulations that come without.
        args: As in the host class.
        kwargs: As in the host class.

    Raises:
        InvalidTypeError: `score_fn` is no function.

    Example:
        Scores beside the simulations of a trainer, for a loss of your own:

        >>> from sbi.inference import NLE_A
        >>> class CarryingNLE(ScoreCarrier, NLE_A):
        ...     '''NLE whose batches are (theta, x, prior_mask, score, mask).'''
        >>> theta = torch.randn(30, 2)
        >>> trainer = CarryingNLE(show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, theta, score=-theta)
        >>> loader, _ = trainer.get_dataloaders(training_batch_size=10)
        >>> [tuple(column.shape) for column in next(iter(loader))]
        [(10, 2), (10, 2), (10, 1), (10, 2), (10, 2)]
    """

    _num_split: int | None = None  # simulations when the rows were split last
    _resuming = False

    def __init__(
        self,
        *args: Any,
        score_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if score_fn is not None and not callable(score_fn):
            raise InvalidTypeError(
                "score_fn: expected a function (theta, x) -> score, got "
                f"{type(score_fn).__name__}."
            )
        super().__init__(*args, **kwargs)
        self._score_fn = score_fn
        self._score_roundwise: list[Tensor] = []
        self._score_kinds: list[str] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the host's arguments in the signatures of the mixin's methods."""
        super().__init_subclass__(**kwargs)
        for name in ("__init__", "append_simulations", "train"):
            if hasattr(cls, name):
                show_host_signature(cls, name)

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        *args: Any,
        score: Tensor | None = None,
        score_kind: str = "exact",
        score_check: bool = True,
        **kwargs: Any,
    ) -> Self:
        r"""Store simulations and, beside them, their scores.

        All other arguments as in the host class.

        Args:
            theta: Parameters `(num_simulations, dim_theta)`.
            x: Simulations `(num_simulations, *shape_x)`.
            args: As in the host class.
            score: Likelihood scores grad_theta log p(x|theta),
                `(num_simulations, dim_theta)`. A NaN marks an unknown component: it is
                left out of the loss, its simulation stays.
            score_kind: "exact", or "joint" for grad_theta log p(x, z|theta) of a
                simulator with latent z.
            score_check: Whether to run `check_score` on simulations from the prior,
                which warns when the scores do not look as if they belonged to them, or
                theta as if it were drawn from the prior. It tests nothing without a
                prior or with fewer than 50 simulations.
            kwargs: As in the host class.

        Returns:
            The trainer, so that calls can be chained.

        Raises:
            InvalidTypeError, InvalidInputError: Scores that cannot be used, or theta
                of another dimension than the prior's; nothing is stored.

        Warns:
            ScoreWarning: Scores or parameters that look wrong, unknown components, or
                no score where earlier simulations had one.
        """
        if score_kind not in SCORE_KINDS:
            raise InvalidInputError(
                f"score_kind: expected one of {SCORE_KINDS}, got {score_kind!r}."
            )
        if args and isinstance(args[0], Tensor):
            raise InvalidTypeError(
                "append_simulations: expected the score by keyword, got a third "
                "positional tensor. Write append_simulations(theta, x, score=score)."
            )
        if score is None and self._score_fn is None and score_kind != "exact":
            raise InvalidInputError(
                f"score_kind: expected a score beside {score_kind!r}, got none. Pass "
                "score=..., or leave score_kind out."
            )
        if isinstance(theta, Tensor) and theta.ndim == 1:
            theta, x, score = map(as_column, (theta, x, score))
        validate_dim_theta(theta, self._prior)
        if score is None and self._score_fn is not None:
            score = self._call_score_fn(theta, x)
            score_kind = "exact"
        if score is not None:
            score = validate_score(score, theta)
            self._validate_before_storing(theta, x)

        super().append_simulations(theta, x, *args, **kwargs)

        stored = self._theta_roundwise[-1]
        kept = slice(None)
        if len(stored) < len(theta):
            kept = self._kept_rows(x)
        if score is None:
            self._score_roundwise.append(torch.full_like(stored, torch.nan))
            if self._score_kinds:
                report_missing(self._score_roundwise)
            return self
        self._score_roundwise.append(score[kept].to(stored.device))
        self._score_kinds.append(score_kind)
        self._report(score_check)
        return self

    def _kept_rows(self, x: Tensor) -> Tensor:
        """Hook: which simulations the host keeps where it drops some, `(batch,)`."""
        return handle_invalid_x(x, exclude_invalid_x=True)[0]

    def _report(self, score_check: bool) -> None:
        """Warn, in the caller's name, of unknown and of implausible scores."""
        score = self._score_roundwise[-1]
        report_unknown(score)
        if not score_check or not self._prior_masks[-1].all():
            return
        theta, x = self._theta_roundwise[-1], self._x_roundwise[-1]
        check = check_score(theta, x, score, self._prior)
        proposals = getattr(self, "_proposal_roundwise", None) or [None]
        restricted = proposals[-1] not in (None, self._prior)  # a part of the prior
        report_check(check, restricted)

    def _validate_before_storing(self, theta: Tensor, x: Tensor) -> None:
        """Hook: raise here whatever makes scores unusable for this trainer."""

    def _call_score_fn(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return `score_fn(theta, x)` after checking it; NaN where x is not finite."""
        assert self._score_fn is not None
        valid = x.reshape(len(x), -1).isfinite().all(1)
        name = "score_fn(theta, x)"
        if valid.all():
            # A copy: the function may change what it is given.
            score = self._score_fn(theta.clone(), x.clone())
            return validate_score(score, theta, name)
        score = torch.full_like(theta, torch.nan)
        known = validate_score(
            self._score_fn(theta[valid], x[valid]), theta[valid], name
        )
        score[valid] = known.to(score)
        return score

    def _scores(self, starting_round: int = 0) -> tuple[Tensor, Tensor] | None:
        """Return `(score, mask)` of the rounds since `starting_round`, None if none."""
        if not self._score_kinds:
            return None
        score = get_simulations_since_round(
            self._score_roundwise,
            self._data_round_index,
            starting_round,
        )
        mask = ~score.isnan()
        return (score.nan_to_num(0.0), mask) if mask.any() else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the host, once there are simulations.

        Raises:
            InvalidStateError: No simulations yet.
        """
        if not self._theta_roundwise:
            raise InvalidStateError(
                "train: expected simulations, got none. Call append_simulations first."
            )
        return super().train(*args, **kwargs)

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Return the host's loaders; with scores, batches gain `(score, mask)`.

        Without scores too, the same batches are fetched as a whole, which is faster.
        """
        loaders = super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs=dataloader_kwargs,
        )
        self._note_split(len(loaders[0].dataset), resume_training)
        columns = self._columns(starting_round)
        if not columns and "collate_fn" in (dataloader_kwargs or {}):
            return loaders
        train, validation = (
            rebuild_loader(loader, columns, dataloader_kwargs) for loader in loaders
        )
        return train, validation

    def _note_split(self, num_simulations: int, resume_training: bool) -> None:
        """Warn where a resumed training does not see what was appended since."""
        self._resuming = resume_training
        if not resume_training:
            self._num_split = num_simulations
        elif self._num_split not in (None, num_simulations):
            report_unseen(self._num_split, num_simulations)

    def _columns(self, starting_round: int) -> tuple[Tensor, ...]:
        """Hook: the columns that follow sbi's three in every batch."""
        return self._scores(starting_round) or ()
