r"""Predictive distance against coverage in `amortized_cost`, over a ladder of beta.

The three betas of a problem are the paper's; predictive distance at any one of them is
a matter of beta. Here one trained cost is followed beyond the highest of the three, and
to the beta that the rule "ml" finds on held-out simulations, beside the exact cost at
the same beta: what is lost to beta, and what to the network.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping

import torch

from sbi_scoreaug.benchmarks.amortized_cost_figures import measure
from sbi_scoreaug.benchmarks.amortized_cost_methods import Fit, ace_trainer, exact
from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.simulators import CostSimulator

FACTORS = (1, 4, 16, 64)
FIGURES = ("excess_mis", "excess_well", "coverage_well")
NUM_OBSERVATIONS, FRESH = 10, 1_000_000  # as in `amortized_cost`


def ladder_cell(
    task: CostSimulator, num_simulations: int, seed: int, num_held_out: int
) -> Row:
    """Return figures of the learned and of the exact cost at each rung."""
    torch.manual_seed(seed)
    theta = task.prior.sample((num_simulations,))
    x = task(theta)
    torch.manual_seed(seed + FRESH)
    truth = task.prior.sample((NUM_OBSERVATIONS,))
    well = task(truth)
    mis = task.observations(NUM_OBSERVATIONS, misspecified=True)
    torch.manual_seed(seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = ace_trainer(task)
        estimator = trainer.append_simulations(theta, x).train()
        found = trainer.calibrate_beta(
            "ml", num_observations=num_held_out, num_particles=60
        )
    rungs = {f"x{factor}": factor * task.betas[2] for factor in FACTORS}
    rungs["ml"] = found.beta
    betas = tuple(sorted(rungs.values()))
    row: Row = {"beta_ml": round(found.beta, 3)}
    for method, energy in (
        ("ace", estimator),
        ("exact", exact(task, theta, x).energy),
    ):
        fit = Fit(betas, energy)
        results = {
            "mis": dict(zip(betas, measure(task, fit, mis, truth, False), strict=True)),
            "well": dict(
                zip(betas, measure(task, fit, well, truth, False), strict=True)
            ),
        }
        for name, beta in rungs.items():
            for figure in FIGURES:
                what, kind = figure.split("_")
                value = results[kind][beta][what]
                row[f"{method}_{name}_{figure}"] = round(value, 5)
    return {**row, "cpu": round(time.process_time() - start, 1)}


def table(rows: list[Row], problems: Mapping[str, Callable[[], CostSimulator]]) -> str:
    """Return Markdown, a line for each rung."""
    lines = [
        "| problem | N | beta | excess mis: ACE | exact cost | excess well: ACE | "
        "exact cost | coverage of 90 %, well: ACE | exact cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        high = problems[row["problem"]]().betas[2]
        rungs = {f"x{factor}": factor * high for factor in FACTORS}
        rungs["ml"] = row["beta_ml"]
        for name, beta in rungs.items():
            values = [
                row.get(f"{method}_{name}_{figure}", math.nan)
                for figure in FIGURES
                for method in ("ace", "exact")
            ]
            label = f"{beta:.4g}" + (" (ml)" if name == "ml" else "")
            cells = [row["problem"], str(row["num_simulations"]), label]
            cells += [f"{value:.4f}" for value in values]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
