r"""How many simulations is an exact score worth?

For five problems with exact posteriors, ratio estimators are trained on N simulations
and compared with the exact posterior at fresh observations. `training` says what the
three methods are; `equipped` and `score` make the same number of optimiser steps at the
same rates; at N = 10000 and 30000, where so few steps are few passes over the data,
`equipped` is also trained three times as long. The *data-equivalence factor* at N is
M / N, where M is the number of simulations with which the best plain run has the error
that `score` has with N, by interpolation of log error over log N; "> X" where the grid
of N ends. The best plain run at M is the best of sbi's NRE_A to its own stop and of
`equipped` for either number of steps.

Further rows: CPU time per optimiser step against sbi's own NRE_A, interleaved in one
run; total time when training runs to its own stop with all defaults; and the best plain
result on the grid of N within the same total time (simulations, scores, training).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    read_rows,
    run_cells,
)
from sbi_scoreaug.benchmarks.keeping_score_report import (
    cost_table,
    error_table,
    plot,
    time_table,
)
from sbi_scoreaug.benchmarks.metrics import posterior_errors, ratio_log_posterior
from sbi_scoreaug.benchmarks.problems import PROBLEMS
from sbi_scoreaug.benchmarks.training import (
    build_trainer,
    epochs_for,
    simulate,
    train,
)

BUDGETS = (300, 1000, 3000, 10000)
PLAIN_BUDGETS = (*BUDGETS, 30000)
LONG = 3  # times the steps, for the equipped baseline at N = 10000 and 30000
FRESH = 1_000_000  # added to a seed for observations that no method was trained on
TIMED_PROBLEMS = {"small classifier": "LinearGaussian", "convolution": "StudentTField"}


def cell(
    problem: str, method: str, num_simulations: int, seed: int, steps: int, fresh: int
) -> Row:
    """Train once and compare with the exact posterior at `fresh` observations.

    `steps` is the number of optimiser steps; 0 for the defaults of `train` to the end.
    """
    setup = PROBLEMS[problem]
    simulator = setup.simulator()
    simulations = simulate(simulator, num_simulations, seed)
    torch.manual_seed(seed)
    trainer = build_trainer(
        method,
        simulator.prior,
        setup.embedding_net(simulator),
        setup.z_score_x,
    )
    options: dict[str, Any] = {}
    if steps:
        options = {
            "max_num_epochs": epochs_for(steps, num_simulations),
            "stop_after_epochs": 10**6,
            "learning_rate": setup.learning_rate,
        }
    estimator, cpu_train, taken = train(trainer, simulations, **options)
    observed = simulate(simulator, fresh, seed + FRESH).x
    errors = np.array(
        [
            posterior_errors(
                simulator.exact_posterior(x_o),
                ratio_log_posterior(estimator, simulator.prior, x_o),
            )
            for x_o in observed.unsqueeze(1)
        ]
    )
    kl, tv = errors.T
    return {
        "kl_median": round(float(np.median(kl)), 5),
        "kl_mean": round(float(kl.mean()), 5),
        "tv_median": round(float(np.median(tv)), 5),
        "tv_mean": round(float(tv.mean()), 5),
        "steps_taken": taken,
        "cpu_train": round(cpu_train, 2),
        "cpu_simulate": round(simulations.cpu_simulate, 3),
        "cpu_score": round(simulations.cpu_score, 3),
    }


def step_cost(problem: str, num_simulations: int, rounds: int) -> Row:
    """Return CPU milliseconds a step of sbi's NRE_A and of ours, interleaved."""
    setup = PROBLEMS[problem]
    simulator = setup.simulator()
    simulations = simulate(simulator, num_simulations, seed=0)
    every = {"NRE_A": None, "equipped": None, "score": 1, "score_every=4": 4}
    costs: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, score_every in every.items():
            trainer = build_trainer(
                name.split("_every")[0],
                simulator.prior,
                setup.embedding_net(simulator),
                setup.z_score_x,
            )
            options = {} if score_every is None else {"score_every": score_every}
            # sbi makes one epoch more than max_num_epochs, the steady schedule not.
            options["max_num_epochs"] = 1 if name == "NRE_A" else 2
            _, seconds, steps = train(trainer, simulations, **options)
            costs[name].append(1e3 * seconds / steps)
    ratios = {
        f"ratio {name}": round(
            median(a / b for a, b in zip(costs[name], costs["NRE_A"], strict=True)), 3
        )
        for name in every
    }
    return {**{name: round(median(c), 3) for name, c in costs.items()}, **ratios}


def cells_of(quick: bool, problems: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Return the settings of every cell, the most telling first."""
    steps, fresh = (600, 40) if quick else (2000, 60)
    score_budgets = (1000,) if quick else (1000, 300, 3000, 10000)
    plain_budgets = (1000, 10000) if quick else (1000, 10000, 30000, 300, 3000)
    long_budgets = () if quick else (10000, 30000)
    cells = [
        (problem, method, n, seed, steps_)
        for seed in seeds
        for method, budgets, steps_ in (
            ("score", score_budgets, steps),
            ("equipped", plain_budgets, steps),
            ("score", () if quick else (1000,), 0),
            ("NRE_A", (1000,) if quick else plain_budgets, 0),
            ("equipped", long_budgets, LONG * steps),
        )
        for n in budgets
        for problem in problems
    ]
    names = ("problem", "method", "num_simulations", "seed", "steps")
    return [{**dict(zip(names, c, strict=True)), "fresh": fresh} for c in cells]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    parser = benchmark_parser("keeping_score", __doc__, "less than two minutes")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    arguments = parser.parse_args(argv)
    quick: bool = arguments.quick
    problems = arguments.problems or (
        ["LinearGaussian", "SISNetwork"] if quick else list(PROBLEMS)
    )
    seeds = arguments.seeds or ([0] if quick else [2, 3, 4])
    start = time.time()
    out = arguments.out
    path = out / ("quick.csv" if quick else "cells.csv")
    if arguments.report:
        rows = read_rows(path)
    else:
        rows = run_cells(cells_of(quick, problems, seeds), cell, path, arguments.jobs)
    cost_cells = [
        {"problem": name, "num_simulations": 5000 if quick else 20000, "rounds": 3}
        for name in TIMED_PROBLEMS.values()
        if not quick or name in problems
    ]
    costs_path = out / ("quick_step_cost.csv" if quick else "step_cost.csv")
    costs = run_cells(cost_cells, step_cost, costs_path)
    report = "\n\n".join(
        [
            "# keeping_score",
            provenance("keeping_score", argv),
            f"Seeds {seeds}, {rows[0]['fresh']} fresh observations a seed; errors are "
            "medians over observations, then over seeds. `NRE_A` has all of sbi's "
            "defaults and trains to its own stop; `equipped` and `score` make the "
            "steps of the table at rate 2e-3, batches of 200.",
            error_table(rows),
            "## To the trainers' own stop, all defaults",
            time_table(rows) if not quick else "(not in the quick version)",
            "## CPU milliseconds a step, and ratios to sbi's NRE_A",
            cost_table(costs),
        ]
    )
    (out / ("quick.md" if quick else "README.md")).write_text(report + "\n")
    plot(rows, out / ("quick.png" if quick else "keeping_score.png"))
    print(f"\n{report}\n\nWritten to {out}/ after {time.time() - start:.0f} s.")
