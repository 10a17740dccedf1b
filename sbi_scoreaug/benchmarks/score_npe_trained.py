r"""Table 2 of score_npe: samplers on trained networks.

`ScoreNPE` and sbi's `NPSE` (VP, otherwise defaults) are trained on N single
simulations, NPSE for as many epochs as ScoreNPE took until its own stop: the same
number of optimiser steps. A flow, sbi's NPE with a spline flow and a permutation-
invariant embedding, is trained for every n anew, on N / n sets. All are held against
exact samples of fresh sets. On the bimodal task, `modes` is the error of the share of
samples on one side: 0.5 if a mode is lost. *Network alone*: without the mixture of
Gaussians that stands beside it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from sbi.inference import NPE, NPSE
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding, PermutationInvariantEmbedding
from torch import Tensor

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_exact import PROBLEMS, draw_set, or_nan
from sbi_scoreaug.benchmarks.score_npe_metrics import METRICS, Reference, join
from sbi_scoreaug.benchmarks.training import NoTracker
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.simulators import BoundedLinearGaussian

NETWORK = "ScoreNPE, network alone"
OWN = ("ScoreNPE", NETWORK)
FLOW = "NPE on sets"
TRAINED = ("Gaussian", "mixture", "flip .5")
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 32)


class Share(NamedTuple):
    """How much of the table a method gets; peers cost up to 100 times as much."""

    sizes: tuple[int, ...] = SIZES
    sets: int = 20
    samples: int = 300


# One observation needs no iid method: "NPSE fnpe" at n = 1 stands for all of NPSE.
METHODS: dict[str, tuple[Share, ...]] = {
    "ScoreNPE": (Share(),),
    "NPE on sets": (Share((1, 2, 4, 8, 32)), Share((3, 5, 6, 7))),
    "NPSE fnpe": (Share((2, 8, 1), sets=10), Share((3, 4, 5, 6, 7, 32), sets=3)),
    "NPSE gauss": (Share((2, 8), sets=10), Share((3, 4, 5, 6, 7, 32), sets=3)),
    "NPSE auto_gauss": (Share((2, 8), sets=2), Share((4, 32), sets=1)),
    "NPSE jac_gauss": (Share((2, 8), sets=1),),
    NETWORK: (Share((1, 2, 8, 32)),),
}
PEERS = tuple(name for name in METHODS if name not in OWN)
# Methods, budgets and seeds, the most telling first.
PLAN: tuple[tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    (("ScoreNPE",), (1000, 10_000), (1, 2, 3)),
    (PEERS[:3], (1000,), (1,)),
    (("ScoreNPE",), (3000, 30_000), (1,)),
    (PEERS[:3], (10_000,), (1,)),
    ((NETWORK,), (1000, 10_000), (1,)),
    (PEERS[3:], (1000, 10_000), (1,)),
    (("ScoreNPE",), (3000, 30_000), (2, 3)),
    (PEERS, (1000, 10_000), (2,)),
    (PEERS, (3000, 30_000), (1,)),
)
BOUNDED = "bounded"
SIMULATIONS = 10_000  # added to a network's seed: never the seed of a fresh set


def simulator_of(problem: str) -> Any:
    """Return the problem's simulator."""
    return BoundedLinearGaussian() if problem == BOUNDED else PROBLEMS[problem]()


@lru_cache(maxsize=4)
def trained(problem: str, trainer: str, budget: int, n: int, seed: int) -> Any:
    """Return a posterior, CPU seconds, optimiser steps and epochs of training.

    Args:
        problem: Name of the problem.
        trainer: "ScoreNPE", that with its network alone, "NPSE" or "NPE on sets".
        budget: Simulations of single observations.
        n: Size of the sets; 1 but for the flow.
        seed: Of simulations and networks.
    """
    simulator = simulator_of(problem)
    torch.manual_seed(SIMULATIONS + seed)
    theta = simulator.prior.sample((budget // n,))
    x = simulator(theta.repeat_interleave(n, 0))
    inference, options = _build(trainer, simulator.prior, x.shape[-1]), {}
    if trainer == "NPSE":
        epochs = trained(problem, "ScoreNPE", budget, 1, seed)[3]
        options = {"max_num_epochs": epochs - 1, "stop_after_epochs": 10**6}
    if trainer == NETWORK:
        options = {"mixture": False}
    if trainer == FLOW:
        x = x.reshape(len(theta), n, -1)
        # sbi's 200 would leave a step or two an epoch where there are few sets.
        options = {"training_batch_size": min(200, max(20, len(theta) // 20))}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference.append_simulations(theta, x)
        start = time.process_time()
        estimator = inference.train(**options)
        seconds = time.process_time() - start
        posterior = inference.build_posterior(estimator)
    steps = int(next(iter(inference.optimizer.state.values()))["step"])
    return posterior, seconds, steps, inference.epoch


def _build(trainer: str, prior: Any, size: int) -> Any:
    quiet: dict[str, Any] = {"tracker": NoTracker(), "show_progress_bars": False}
    if trainer in ("ScoreNPE", NETWORK):
        return ScoreNPE(prior, **quiet)
    if trainer == "NPSE":
        return NPSE(prior, sde_type="vp", **quiet)
    embedding = PermutationInvariantEmbedding(
        FCEmbedding(size, output_dim=40, num_hiddens=64),
        trial_net_output_dim=40,
        aggregation_fn="mean",
        num_hiddens=64,
        output_dim=2 * size,
    )
    flow = posterior_nn("nsf", embedding_net=embedding, z_score_x="none")
    return NPE(prior, density_estimator=flow, **quiet)


def draw(method: str, posterior: Any, x: Tensor, num_samples: int) -> Tensor:
    """Return samples of one method given a set `(n, dim)`."""
    options: dict[str, Any] = {"show_progress_bars": False}
    x = x.float()
    if method == FLOW:
        x = x.unsqueeze(0)
    elif method not in OWN:
        # The time is for box priors, where the host rejects what lies outside.
        options |= {"iid_method": method.split()[1], "max_sampling_time": 600.0}
        options |= {"return_partial_on_timeout": True}
    return or_nan(posterior.sample, (num_samples,), x=x, **options)


def network_of(method: str) -> str:
    """Return the trainer that a method samples from."""
    if method in (FLOW, NETWORK):
        return method
    return "ScoreNPE" if method in OWN else "NPSE"


def trained_cell(
    problem: str,
    method: str,
    budget: int,
    num_observations: int,
    seed: int,
    sets: int,
    samples: int,
    first_set: int,
) -> Row:
    """Sample `sets` fresh sets from one trained network; per-set figures are joined."""
    trainer, found = network_of(method), []
    size = num_observations if trainer == FLOW else 1
    posterior, cpu_train, steps, _ = trained(problem, trainer, budget, size, seed)
    for k in range(sets):
        x, reference = draw_set(problem, num_observations, first_set + k)
        torch.manual_seed(first_set + k)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = draw(method, posterior, x, samples)
        seconds = time.process_time() - start
        found.append({**_errors(drawn, reference), "cpu": seconds})
    row = {key: join([one[key] for one in found]) for key in found[0]}
    return {**row, "steps": steps, "cpu_train": round(cpu_train, 1)}


def _errors(drawn: Tensor, reference: Reference) -> dict[str, float]:
    if not drawn.isfinite().all():
        return dict.fromkeys((*METRICS, "modes"), float("nan"))
    modes = abs(reference.share(drawn) - reference.share(reference.exact))
    return {**reference.errors(drawn), "modes": modes}


def trained_cells(quick: bool, methods: Sequence[str], first_set: int) -> list[Row]:
    """Return the settings of table 2 in the order of `PLAN`.

    Cells of one network follow each other, so that it is trained once.
    """
    if quick:
        share = Share((2, 8), sets=2, samples=200)
        return [
            _cell("Gaussian", m, 1000, n, 1, share, first_set)
            for m in ("ScoreNPE", "NPSE fnpe", FLOW)
            for n in share.sizes
            if m in methods
        ]
    return [
        _cell(problem, method, budget, n, seed, share, first_set)
        for names, budgets, seeds in PLAN
        for seed in seeds
        for budget in budgets
        for problem in TRAINED
        for method in names
        for share in METHODS[method]
        for n in share.sizes
        if method in methods
    ]


def _cell(
    problem: str, method: str, budget: int, n: int, seed: int, share: Share, first: int
) -> Row:
    cell: Row = {"problem": problem, "method": method, "budget": budget}
    cell |= {"num_observations": n, "seed": seed, "sets": share.sets}
    return cell | {"samples": share.samples, "first_set": first}
