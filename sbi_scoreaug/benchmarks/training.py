"""The three trainers that the keeping-score benchmark and the demo compare.

- `NRE_A`: sbi's own, with sbi's classifier and all of sbi's defaults.
- `equipped`: sbi's loss in our equipment. It has the smooth classifier, the schedule,
  the batched loader and the embedding computed once of `ScoreAugmentedNRE`, but no
  scores: what is left between the two is what scores do.
- `score`: `ScoreAugmentedNRE`. It also selects and stops by the score error.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any, Literal, NamedTuple

import torch
from sbi.inference import NRE_A
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn

from sbi_scoreaug.score_augmented import ScoreAugmentedNRE, smooth_classifier_nn
from sbi_scoreaug.score_augmented.nre import EmbedOnce
from sbi_scoreaug.score_augmented.schedule import SteadyTraining
from sbi_scoreaug.scores.loaders import STEPS_PER_EPOCH

METHODS = ("NRE_A", "equipped", "score")


class EquippedNRE(EmbedOnce, SteadyTraining, NRE_A):
    """sbi's NRE_A in the equipment of `ScoreAugmentedNRE`, without scores."""


class NoTracker:
    """A tracker that keeps nothing, so that no log folder is written."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Ignore a metric."""

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Ignore metrics."""

    def log_params(self, params: dict) -> None:
        """Ignore parameters."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Ignore a figure."""

    def flush(self) -> None:
        """Nothing is waiting."""


class Simulations(NamedTuple):
    """theta `(N, dim_theta)`, x `(N, *shape_x)`, score, and the CPU seconds spent."""

    theta: Tensor
    x: Tensor
    score: Tensor
    cpu_simulate: float
    cpu_score: float


def simulate(simulator: Any, num_simulations: int, seed: int) -> Simulations:
    """Simulate from the prior, timing simulations and scores apart."""
    torch.manual_seed(seed)
    start = time.process_time()
    theta = simulator.prior.sample((num_simulations,))
    x = simulator(theta)
    simulated = time.process_time()
    score = simulator.score(theta, x)
    scored = time.process_time()
    return Simulations(theta, x, score, simulated - start, scored - simulated)


def build_trainer(
    method: str,
    prior: Any,
    embedding_net: nn.Module,
    z_score_x: Literal["independent", "none"] = "independent",
    show_progress_bars: bool = False,
) -> NRE_A:
    """Return the trainer that `method` names, without simulations."""
    trainers = {"NRE_A": NRE_A, "equipped": EquippedNRE, "score": ScoreAugmentedNRE}
    build = classifier_nn if method == "NRE_A" else smooth_classifier_nn
    return trainers[method](
        prior,
        classifier=build("resnet", embedding_net_x=embedding_net, z_score_x=z_score_x),
        tracker=NoTracker(),
        show_progress_bars=show_progress_bars,
    )


def train(
    trainer: NRE_A, simulations: Simulations, **options: Any
) -> tuple[RatioEstimator, float, int]:
    """Return the trained network, CPU seconds of `train`, and optimiser steps."""
    scores: dict[str, Any] = {}
    if isinstance(trainer, ScoreAugmentedNRE):
        scores["score"] = simulations.score
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum number of epochs")
        trainer.append_simulations(simulations.theta, simulations.x, **scores)
        start = time.process_time()
        estimator = trainer.train(**options)
        seconds = time.process_time() - start
    steps = next(iter(trainer.optimizer.state.values()))["step"]
    return estimator.eval(), seconds, int(steps)


def epochs_for(steps: int, num_simulations: int, batch_size: int = 200) -> int:
    """Return the number of epochs of the steady schedule that makes `steps` steps."""
    num_train = int(0.9 * num_simulations)
    steps_a_pass = num_train // min(batch_size, num_train)
    passes = math.ceil(STEPS_PER_EPOCH / steps_a_pass)
    return max(1, round(steps / (passes * steps_a_pass)) - 1)
