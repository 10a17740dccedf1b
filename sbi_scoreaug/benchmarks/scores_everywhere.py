r"""What does an exact score buy, in every method of this package?

Five methods (`scores_everywhere_methods`) are trained on N simulations of four tasks
(`scores_everywhere_tasks`), with scores and without, by the same number of optimiser
steps at the same rate, and held against exact references at fresh observations. The
*data-equivalence factor* at N is M / N, where M is the number of simulations with which
the best plain run has the error that N simulations with scores have, by interpolation
of log error over log N; "> X" where even N = 10000 does not reach it. Below N = 300 the
plain error is taken to grow as N^-1/2. The best plain run at M is the best of equal
steps, of three times the steps (N = 10000, where few steps are few passes), and, where
there is a host, of sbi's trainer with all defaults to its own stop (N = 300 and 1000).

One cell is left out: NLE on the field. sbi's NLE has no embedding of x; a flow over 64
pixels would have to learn the field itself, with or without scores.

Settings were chosen on seeds from 100; seeds 1 to 3 are reported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    read_rows,
    run_cells,
)
from sbi_scoreaug.benchmarks.scores_everywhere_methods import RECIPES, errors, fit
from sbi_scoreaug.benchmarks.scores_everywhere_report import bars, plot, table
from sbi_scoreaug.benchmarks.scores_everywhere_tasks import TASKS, task_of

BUDGETS = (300, 1000, 3000, 10000)
LONG = 3  # times the steps, for a plain baseline at the largest N
FRESH = 1_000_000  # added to a seed for observations that no method was trained on
LEFT_OUT = {("NLE", "field")}
FRESH_SETS = 8  # of ScoreNPE, each sampled for two sizes
Setting = tuple[str, int, int]  # arm, N, times the steps
# The most telling first; the arm "own" makes as many steps as it likes.
TELLING: tuple[Setting, ...] = (("score", 1000, 1), ("plain", 1000, 1))
TELLING += (("plain", 10000, 1),)
LONG_PLAIN: tuple[Setting, ...] = (("plain", 10000, LONG),)
CURVES: tuple[Setting, ...] = (("score", 300, 1), ("plain", 300, 1))
CURVES += (("score", 3000, 1), ("plain", 3000, 1), ("score", 10000, 1))
OWN: tuple[Setting, ...] = (("own", 300, 0), ("own", 1000, 0))
WITH_HOST = ("NRE", "NLE", "NPE")  # sbi has no trainer of the others' losses
QUICK: tuple[Setting, ...] = (("score", 300, 1), ("plain", 300, 1), ("plain", 1000, 1))
QUICK_STEPS = 150


def cell(
    task: str,
    method: str,
    arm: str,
    num_simulations: int,
    seed: int,
    steps: int,
    fresh: int,
) -> Row:
    """Train once and compare with exact references; see `scores_everywhere_methods`.

    Args:
        task: Name of the task.
        method: Name of the method.
        arm: "score", "plain" or "own".
        num_simulations: N.
        seed: Of simulations, network and, far from these, of fresh observations.
        steps: Optimiser steps; 0 for "own".
        fresh: Observations, or sets of observations.
    """
    problem = task_of(task)
    data = problem.simulate(num_simulations, seed)
    torch.manual_seed(seed)
    rate = RECIPES[method].learning_rate
    fitted = fit(method, arm, problem, data, steps, rate)
    error, other = errors(method, problem, fitted, fresh, seed * FRESH)
    return {
        "error": round(error, 6),
        "other": round(other, 6),
        "steps_taken": fitted.steps,
        "cpu_train": round(fitted.cpu, 2),
    }


def cells_of(
    quick: bool, methods: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]
) -> list[Row]:
    """Return the settings of every cell, the most telling first."""
    if quick:
        stages = [(seed, QUICK) for seed in seeds]
    else:
        first, others = seeds[:1], seeds[1:]
        order = [(first, TELLING), (first, LONG_PLAIN), (first, CURVES)]
        order += [(others, TELLING), (others, LONG_PLAIN), (seeds, OWN)]
        order += [(others, CURVES)]
        stages = [(seed, stage) for some, stage in order for seed in some]
    return [
        {
            "task": task,
            "method": method,
            "arm": arm,
            "num_simulations": n,
            "seed": seed,
            "steps": times * (QUICK_STEPS if quick else RECIPES[method].steps),
            "fresh": _fresh(method, quick),
        }
        for seed, stage in stages
        for task in tasks
        for method in methods
        for arm, n, times in stage
        if (method, task) not in LEFT_OUT and (arm != "own" or method in WITH_HOST)
    ]


def _fresh(method: str, quick: bool) -> int:
    if method == "ScoreNPE":
        return 3 if quick else FRESH_SETS
    return 10 if quick else 40


def report(rows: list[Row], argv: Sequence[str], notes: Path) -> str:
    """Return the whole report in Markdown, with what the file `notes` says if any."""
    recipes = "; ".join(
        f"{name} {recipe.steps} at {recipe.learning_rate:g}"
        for name, recipe in RECIPES.items()
    )
    return "\n\n".join(
        [
            "# scores_everywhere",
            provenance("scores_everywhere", argv),
            f"Seeds {sorted({row['seed'] for row in rows})}, {len(rows)} cells. "
            f"Optimiser steps and rate, in batches of 200: {recipes}. An entry is "
            "*error with scores / without, factor*: medians over the seeds; the factor "
            "is against the best plain run, at N = 10000 with up to three times the "
            "steps, so that it can fall below 1 there. Errors of different "
            "methods are different quantities. Step: CPU time of an optimiser step "
            "with scores over that in the same equipment without, at N = 1000, in the "
            "same run.",
            *([notes.read_text().strip()] if notes.exists() else []),
            table(rows),
            "## Bars",
            bars(rows),
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    parser = benchmark_parser("scores_everywhere", __doc__, "less than two minutes")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    arguments = parser.parse_args(argv)
    quick: bool = arguments.quick
    tasks = arguments.tasks or (["Gaussian"] if quick else list(TASKS))
    seeds = arguments.seeds or ([1] if quick else [1, 2, 3])
    start, out = time.time(), arguments.out
    path = out / ("quick.csv" if quick else "cells.csv")
    if arguments.report:
        rows = read_rows(path)
    else:
        cells = cells_of(quick, arguments.methods, tasks, seeds)
        rows = run_cells(cells, cell, path, arguments.jobs)
    text = report(rows, argv, out / "notes.md")
    (out / ("quick.md" if quick else "README.md")).write_text(text + "\n")
    plot(rows, out / ("quick.png" if quick else "scores_everywhere.png"))
    print(f"\n{text}\n\nWritten to {out}/ after {time.time() - start:.0f} s.")
