r"""The five methods of scores_everywhere, each with scores and without.

    name       with scores               without                    error (other)
    NRE        ScoreAugmentedNRE         NRE_A, equally equipped    TV (KL)
    NLE        ScoreAugmentedNLE         NLE_A, equally equipped    TV (KL)
    NPE        ScoreAugmentedNPE         NPE_C, equally equipped    TV (KL)
    ScoreNPE   ScoreNPE                  ScoreNPE                   MMD^2 n=8 (n=1)
    ACE        AmortizedCostEstimator    AmortizedCostEstimator     cost error (TV)

*Equally equipped*: sbi's loss with the network, the schedule (`SteadyTraining`), the
rate and the number of steps of the other column: what is left between them is the
score. `own` is sbi's trainer with all defaults, to its own stop.

With p the exact and q the estimated posterior at a fresh observation:

    TV, KL       1/2 sum |p - q| and KL(p, q) on the points of `scores_everywhere_task`
    MMD^2        of samples of q given a fresh set of n (`score_npe_metrics`)
    cost error   E_p |f - c| over the standard deviation of c among prior draws, where
                 p ~ exp(-beta c) p(theta); TV is that of exp(-beta f) p(theta) to p
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sbi.inference import NLE_A, NPE_C
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn

from sbi_scoreaug import (
    AmortizedCostEstimator,
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreNPE,
)
from sbi_scoreaug.benchmarks.metrics import kl_and_tv, ratio_log_posterior
from sbi_scoreaug.benchmarks.score_npe_metrics import Reference
from sbi_scoreaug.benchmarks.scores_everywhere_task import Points, Task
from sbi_scoreaug.benchmarks.training import (
    NoTracker,
    Simulations,
    build_trainer,
    epochs_for,
)
from sbi_scoreaug.score_augmented.schedule import SteadyTraining

NEVER = 10**6  # epochs without progress
SET_SIZES = (8, 1)
NUM_SAMPLES, NUM_EXACT = 300, 1000


class Recipe(NamedTuple):
    """Optimiser steps and rate of a method, the same with scores and without."""

    steps: int
    learning_rate: float


RECIPES = {
    "NRE": Recipe(500, 2e-3),
    "NLE": Recipe(400, 2e-3),
    "NPE": Recipe(400, 2e-3),
    "ScoreNPE": Recipe(500, 1e-3),
    "ACE": Recipe(400, 1e-4),
}


class EquippedNLE(SteadyTraining, NLE_A):
    """sbi's NLE_A in the equipment of `ScoreAugmentedNLE`, without scores."""


class EquippedNPE(SteadyTraining, NPE_C):
    """sbi's NPE_C in the equipment of `ScoreAugmentedNPE`, without scores."""


class Fit(NamedTuple):
    """A trained estimator, its trainer, CPU seconds and optimiser steps."""

    estimator: Any
    trainer: Any
    cpu: float
    steps: int


def build(method: str, arm: str, task: Task) -> Any:
    """Return the untrained trainer of a method ("score", "plain" or "own")."""
    quiet: dict[str, Any] = {"tracker": NoTracker(), "show_progress_bars": False}
    net = task.embedding_net()
    z_score_x = "independent" if net is None else "none"
    if method == "NRE":
        name = {"score": "score", "plain": "equipped", "own": "NRE_A"}[arm]
        return build_trainer(name, task.prior, net or nn.Identity(), z_score_x)
    if method == "NLE":
        kinds = {"score": ScoreAugmentedNLE, "plain": EquippedNLE, "own": NLE_A}
        return kinds[arm](task.prior, **quiet)
    if method == "NPE":
        kinds = {"score": ScoreAugmentedNPE, "plain": EquippedNPE, "own": NPE_C}
        flow: Any = "maf"
        if net is not None:
            flow = posterior_nn("maf", embedding_net=net, z_score_x="none")
        return kinds[arm](task.prior, density_estimator=flow, **quiet)
    if method == "ScoreNPE":
        return ScoreNPE(task.prior, embedding_net=net, **quiet)
    return AmortizedCostEstimator(task.prior, "mse", **quiet)


def fit(
    method: str, arm: str, task: Task, data: Simulations, steps: int, rate: float
) -> Fit:
    """Train once; the score's check when data are appended is not timed.

    Args:
        method: One of the five.
        arm: "score", "plain" or "own".
        task: The problem.
        data: Its simulations.
        steps: Optimiser steps, to which epochs are rounded; not for "own".
        rate: Learning rate; not for "own".
    """
    trainer, scores = build(method, arm, task), {}
    if arm == "score":
        scores = {"score": data.score, "score_kind": task.score_kind}
    options: dict[str, Any] = {}
    if arm != "own":
        options = {"stop_after_epochs": NEVER, "learning_rate": rate}
        if method == "ScoreNPE":
            options["num_steps"] = steps
        else:
            options["max_num_epochs"] = epochs_for(steps, len(data.theta))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(data.theta, data.x, **scores)
        start = time.process_time()
        estimator = trainer.train(**options)
        cpu = time.process_time() - start
    taken = int(next(iter(trainer.optimizer.state.values()))["step"])
    return Fit(estimator.eval(), trainer, cpu, taken)


LogPosterior = Callable[[Tensor], Tensor]


def log_posterior(method: str, task: Task, fitted: Fit, x_o: Tensor) -> LogPosterior:
    """Return theta `(points, dim_theta)` -> log q `(points,)`, up to a constant."""
    net, prior = fitted.estimator, task.prior
    if method == "NRE":
        return ratio_log_posterior(net, prior, x_o[None])
    if method == "NPE":
        return lambda theta: net.log_prob(theta.unsqueeze(1), x_o[None]).squeeze(1)

    def likelihood(theta: Tensor) -> Tensor:
        x = x_o.expand(1, len(theta), *x_o.shape)
        return net.log_prob(x, theta)[0] + prior.log_prob(theta)

    def cost(theta: Tensor) -> Tensor:
        return prior.log_prob(theta) - task.beta * learned_cost(fitted, theta, x_o)

    return likelihood if method == "NLE" else cost


def learned_cost(fitted: Fit, theta: Tensor, x_o: Tensor) -> Tensor:
    """Return f(theta, x_o) `(batch,)`."""
    return fitted.estimator(theta, x_o.expand(len(theta), *x_o.shape))


@torch.no_grad()
def errors(
    method: str, task: Task, fitted: Fit, fresh: int, seed: int
) -> tuple[float, float]:
    """Return the two errors of the table above, over `fresh` new observations.

    Medians over observations, for MMD^2 means over `fresh` sets (it may be negative).
    """
    if method == "ScoreNPE":
        return _set_errors(task, fitted, fresh, seed)
    found = []
    for x_o in task.simulate(fresh, seed).x:
        q = log_posterior(method, task, fitted, x_o)
        points = task.points(x_o) if method != "ACE" else task.cost_points(x_o)
        log_q = q(points.theta).double()
        kl, tv = kl_and_tv(points.log_p - points.log_g, log_q - points.log_g)
        if method != "ACE":
            found.append((tv, kl))
            continue
        found.append((cost_error(task, fitted, x_o, points), tv))
    return tuple(torch.tensor(found).double().median(0).values.tolist())  # type: ignore


def cost_error(task: Task, fitted: Fit, x_o: Tensor, points: Points) -> float:
    """Return E_p |f - c| over the standard deviation of c among prior draws."""
    theta, p = points.theta, (points.log_p - points.log_g).double().softmax(0)
    gap = learned_cost(fitted, theta, x_o) - task.expected_cost(theta, x_o)
    anywhere = task.expected_cost(task.prior.sample((5000,)), x_o)
    return float((p * gap.abs()).sum() / anywhere.std())


def _set_errors(task: Task, fitted: Fit, fresh: int, seed: int) -> tuple[float, float]:
    posterior, means = fitted.trainer.build_posterior(fitted.estimator), []
    for n in SET_SIZES:
        found = []
        for k in range(fresh):
            x, exact = task.draw_set(n, seed + k, NUM_EXACT)
            drawn = posterior.sample((NUM_SAMPLES,), x=x, show_progress_bars=False)
            found.append(Reference(exact).errors(drawn)["mmd2"])
        means.append(sum(found) / fresh)
    return means[0], means[1]
