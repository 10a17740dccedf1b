r"""Does amortized cost estimation find the generalized posterior, and does that help?

Four problems with exact expected costs, three temperatures, well- and misspecified
observations. A cell is one method trained on one problem; its figures are means over
observations:

    error     mean |f - c| over draws of the exact generalized posterior, over the
              standard deviation of c among prior draws
    c2st      classifier two-sample test against that posterior (.5: equal)
    distance  mean distance between x_o and simulations from the samples
    excess    the same over its least value at any theta: what the method loses
    coverage  how often the central 90 % interval of a parameter holds the truth, well-
              specified observations only: predictive distance alone is a matter of beta
    cpu       seconds of training

Peers, from sbi on the same simulations: NPE, NLE, and rejection ABC with the task's
distance (the nearest hundredth, at least 50). They know no beta.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208, whose two-sample figures at
10,000 simulations stand in `PAPER_C2ST`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sbi.inference import NLE_A, NPE_C
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils.metrics import c2st
from torch import Tensor

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator, MMDDistance
from sbi_scoreaug.benchmarks.cells import Row, provenance, run_cells
from sbi_scoreaug.simulators import (
    CostSimulator,
    GaussianMixtureTrials,
    LinearGaussianCost,
    TwoMoons,
    UniformPolynomial,
)

PROBLEMS: dict[str, Callable[[], CostSimulator]] = {
    "uniform": UniformPolynomial,
    "moons": TwoMoons,
    "linear_gaussian": LinearGaussianCost,
    "gaussian_mixture": GaussianMixtureTrials,
}
PAPER_C2ST = {  # (well-specified, misspecified) at low, middle and high beta
    "uniform": ((0.502, 0.521), (0.507, 0.514), (0.547, 0.528)),
    "moons": ((0.502, 0.504), (0.543, 0.646), (0.724, 0.888)),
    "linear_gaussian": ((0.513, 0.553), (0.721, 0.874), (0.990, 0.999)),
    "gaussian_mixture": ((0.500, 0.546), (0.511, 0.614), (0.548, 0.719)),
}
KINDS = ("well", "mis")
FIGURES = ("error", "c2st", "distance", "excess", "coverage")
CHAINS = MCMCPosteriorParameters(num_chains=100, warmup_steps=20, thin=1)
Sampler = Callable[[Tensor, float, int], Tensor]


def main(argv: list[str] | None = None) -> None:
    """Fill in the missing cells of a CSV file and print the table.

    Args:
        argv: Command line arguments, see `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sbi_scoreaug.benchmarks amortized_cost",
        description="Amortized cost estimation against exact generalized posteriors.",
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few numbers")
    parser.add_argument("--out", type=Path, default=Path("amortized_cost.csv"))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=[*PROBLEMS])
    options = parser.parse_args(argv)
    keys = ("problem", "num_simulations", "seed", "method", "num_observations")
    numbers = (1000,) if options.quick else (200, 1000, 10000)
    settings = itertools.product(
        options.problems,
        numbers,
        range(1 if options.quick else 3),
        METHODS,
        (2 if options.quick else 10,),
    )
    cells: list[Row] = [dict(zip(keys, values, strict=True)) for values in settings]
    rows = run_cells(cells, run_cell, options.out, options.jobs)
    print(table(rows))
    print(provenance("python -m sbi_scoreaug.benchmarks amortized_cost"))


def run_cell(
    problem: str, num_simulations: int, seed: int, method: str, num_observations: int
) -> Row:
    """Train one method and return its figures, one column each."""
    task = PROBLEMS[problem]()
    torch.manual_seed(1000 * seed + num_simulations)
    theta = task.prior.sample((num_simulations,))
    x = task(theta)
    torch.manual_seed(77 + seed)
    truth = task.prior.sample((num_observations,))
    observed = {
        "well": task(truth),
        "mis": task.observations(num_observations, misspecified=True),
    }
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        sample, cost = METHODS[method](task, theta, x)
        row: Row = {"cpu": time.process_time() - start}
        for kind, level in itertools.product(KINDS, range(3)):
            if cost is None and level > 0:
                results = [dict.fromkeys(FIGURES, math.nan)]
            else:
                results = [
                    _measure(task, sample, cost, x_o[None], task.betas[level], t)
                    for x_o, t in zip(observed[kind], truth, strict=True)
                ]
            for figure in FIGURES:
                mean = sum(result[figure] for result in results) / len(results)
                row[f"{figure}_{kind}_{level}"] = mean
    return row


def _measure(
    task: CostSimulator,
    sample: Sampler,
    cost: Callable[[Tensor, Tensor], Tensor] | None,
    x_o: Tensor,
    beta: float,
    truth: Tensor,
    num_samples: int = 300,
) -> dict[str, float]:
    samples = sample(x_o, beta, num_samples)
    draws = task.distance(task(samples), x_o.expand(len(samples), *x_o.shape[1:]))
    anywhere = task.expected_cost(task.prior.sample((50_000,)), x_o)
    exact = task.exact_posterior(x_o, beta).sample((num_samples,))
    exact_cost = task.expected_cost(exact, x_o)
    least = min(anywhere.min().item(), exact_cost.min().item())
    low, high = samples.quantile(0.05, dim=0), samples.quantile(0.95, dim=0)
    result = {
        "error": math.nan,
        "c2st": math.nan,
        "distance": draws.mean().item(),
        "excess": draws.mean().item() - least,
        "coverage": ((truth >= low) & (truth <= high)).float().mean().item(),
    }
    if cost is not None:
        error = (cost(exact, x_o) - exact_cost).abs().mean()
        result["error"] = (error / anywhere.std()).item()
        result["c2st"] = float(c2st(exact, samples))
    return result


def _train_ace(task: CostSimulator, theta: Tensor, x: Tensor) -> tuple[Sampler, Any]:
    distance: Any = task.distance_name
    if isinstance(task, GaussianMixtureTrials):
        distance = MMDDistance(task.bandwidth)
    trainer = AmortizedCostEstimator(task.prior, distance, show_progress_bars=False)
    estimator = trainer.append_simulations(theta, x).train()
    posterior = trainer.build_posterior(beta=1.0, posterior_parameters=CHAINS)

    def sample(x_o: Tensor, beta: float, num_samples: int) -> Tensor:
        posterior.beta = beta
        return posterior.sample((num_samples,), x=x_o, show_progress_bars=False)

    def cost(theta: Tensor, x_o: Tensor) -> Tensor:
        with torch.no_grad():
            return estimator(theta, x_o.expand(len(theta), *x_o.shape[1:]))

    return sample, cost


def _train_npe(task: CostSimulator, theta: Tensor, x: Tensor) -> tuple[Sampler, None]:
    trainer = NPE_C(task.prior, show_progress_bars=False)
    trainer.append_simulations(theta, x.flatten(1)).train()
    # rejection may never end for misspecified observations: draw from the flow once
    posterior: Any = trainer.build_posterior()
    flow = posterior.posterior_estimator

    def sample(x_o: Tensor, beta: float, num_samples: int) -> Tensor:
        with torch.no_grad():
            draws = flow.sample((20 * num_samples,), x_o.flatten(1))[:, 0]
        inside = draws[task.prior.log_prob(draws).isfinite()]
        return (inside if len(inside) >= num_samples else draws)[:num_samples]

    return sample, None


def _train_nle(task: CostSimulator, theta: Tensor, x: Tensor) -> tuple[Sampler, None]:
    trainer = NLE_A(task.prior, show_progress_bars=False)
    trainer.append_simulations(theta, x.flatten(1)).train()
    posterior = trainer.build_posterior(posterior_parameters=CHAINS)

    def sample(x_o: Tensor, beta: float, num_samples: int) -> Tensor:
        x_o = x_o.flatten(1)
        return posterior.sample((num_samples,), x=x_o, show_progress_bars=False)

    return sample, None


def _train_abc(task: CostSimulator, theta: Tensor, x: Tensor) -> tuple[Sampler, None]:
    accepted = max(50, len(theta) // 100)

    def sample(x_o: Tensor, beta: float, num_samples: int) -> Tensor:
        distances = task.distance(x, x_o.expand_as(x))
        nearest = theta[distances.argsort()[:accepted]]
        return nearest[torch.randint(accepted, (num_samples,))]

    return sample, None


METHODS: dict[str, Callable[[CostSimulator, Tensor, Tensor], tuple[Sampler, Any]]] = {
    "ace": _train_ace,
    "npe": _train_npe,
    "nle": _train_nle,
    "abc": _train_abc,
}


def table(rows: list[Row]) -> str:
    """Return the means over seeds as Markdown, a line for each method and beta."""
    head = ("problem", "N", "method", "beta", "error", "c2st (paper, N=10k)")
    head = (*head, "distance well", "distance mis", "excess mis", "coverage", "cpu")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    keys = sorted({(r["problem"], r["num_simulations"], r["method"]) for r in rows})
    for (problem, number, method), level in itertools.product(keys, range(3)):
        if method != "ace" and level > 0:
            continue
        group = [
            row
            for row in rows
            if (row["problem"], row["num_simulations"], row["method"])
            == (problem, number, method)
        ]

        def mean(column: str, group: list[Row] = group) -> float:
            return sum(row[column] for row in group) / len(group)

        beta, error, test = "", "", ""
        if method == "ace":
            beta = f"{PROBLEMS[problem].betas[level]:g}"  # type: ignore[attr-defined]
            error = " / ".join(f"{mean(f'error_{k}_{level}'):.3f}" for k in KINDS)
            test = " / ".join(f"{mean(f'c2st_{k}_{level}'):.3f}" for k in KINDS)
            test += " ({:.3f} / {:.3f})".format(*PAPER_C2ST[problem][level])
        figures = ("distance_well", "distance_mis", "excess_mis", "coverage_well")
        cells = [f"{mean(f'{name}_{level}'):.3f}" for name in figures]
        cells = [problem, str(number), method, beta, error, test, *cells]
        lines.append("| " + " | ".join([*cells, f"{mean('cpu'):.1f}"]) + " |")
    return "\n".join(lines)
