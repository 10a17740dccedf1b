"""Names under which sbi's `infer` and its samplers find this package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import sbi.inference

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator
from sbi_scoreaug.errors import InvalidInputError, warn
from sbi_scoreaug.score_augmented import (
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
)
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.host_samplers import register_samplers


def _asking_for_scores(trainer: type) -> Callable[..., Any]:
    """Return what makes a `trainer`, with a warning where no scores can reach it."""

    @functools.wraps(trainer, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("score_fn") is None:
            warn(
                f"score_fn: expected the score as a function, got none: infer() draws "
                f"simulations without scores, and {trainer.__name__} trains like the "
                "class of sbi that it replaces. Pass init_kwargs={'score_fn': "
                "simulator.score}, or append the scores yourself."
            )
        return trainer(*args, **kwargs)

    return make


METHODS = {
    "SCORE_NRE": _asking_for_scores(ScoreAugmentedNRE),
    "SCORE_NLE": _asking_for_scores(ScoreAugmentedNLE),
    "SCORE_AUGMENTED_NPE": _asking_for_scores(ScoreAugmentedNPE),
    "SCORE_NPE": ScoreNPE,
    "ACE": AmortizedCostEstimator,
}


def register() -> None:
    """Make the trainers and samplers of this package known to sbi.

    Afterwards `sbi.inference.infer(method=...)` accepts "score_nre", "score_nle",
    "score_augmented_npe", "score_npe" (`ScoreNPE`) and "ace", and sbi's `NPSE` the
    samplers of `score_npe.register_samplers`. Importing the package changes nothing in
    sbi; this call does, and a second one does nothing.

    `infer` draws its own simulations and knows no scores: hand it the score as a
    function, `init_kwargs={"score_fn": simulator.score}`. Without it the first three
    warn.

    Raises:
        InvalidInputError: If sbi has another class of one of these names.

    Example:
        >>> from sbi.inference import infer
        >>> from sbi_scoreaug import register
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> register()
        >>> simulator = LinearGaussian()
        >>> posterior = infer(
        ...     simulator, simulator.prior, method="score_nre", num_simulations=100,
        ...     init_kwargs={"score_fn": simulator.score, "show_progress_bars": False},
        ...     train_kwargs={"max_num_epochs": 1, "training_batch_size": 50},
        ... )
    """
    for name, trainer in METHODS.items():
        found = getattr(sbi.inference, name, trainer)
        if found is not trainer:
            raise InvalidInputError(
                f"{name!r}: expected a free name in sbi.inference, found {found!r}. "
                f"Use {trainer.__name__} directly."
            )
    for name, trainer in METHODS.items():
        setattr(sbi.inference, name, trainer)
    register_samplers()
