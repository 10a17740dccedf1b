r"""Does amortized cost estimation find the generalized posterior, and does that help?

Table 1. Four problems with exact expected costs, three temperatures, well- and
misspecified observations. A cell is one method (`amortized_cost_methods`) trained on N
simulations of one seed; its figures (`amortized_cost_figures`) are means over
observations. Peers on the same simulations: sbi's NPE, NLE, tempered NLE and rejection
ABC; SMCABC has N simulations for every observation, and few observations.

Table 2. The rules "ml" and "coverage" for beta where the exact answer is known, and
with the distance multiplied by 7 (`amortized_cost_temperature`).

Table 4. Time of training and sampling, memory (`amortized_cost_expense`).

Table 3, Hodgkin-Huxley, has a file of its own.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208, whose two-sample figures at
10,000 simulations stand in `amortized_cost_report.PAPER_C2ST`.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sbi_scoreaug.benchmarks import amortized_cost_expense as expense
from sbi_scoreaug.benchmarks import amortized_cost_ladder as ladder
from sbi_scoreaug.benchmarks import amortized_cost_temperature as temperature
from sbi_scoreaug.benchmarks.amortized_cost_figures import FIGURES, measure
from sbi_scoreaug.benchmarks.amortized_cost_methods import METHODS
from sbi_scoreaug.benchmarks.amortized_cost_plot import plot
from sbi_scoreaug.benchmarks.amortized_cost_report import report
from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    read_rows,
    run_cells,
)
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
KINDS = ("well", "mis")
LEVELS = range(3)
FRESH = 1_000_000  # added to a seed for observations
MOST_OBSERVATIONS = 10
KEYS = ("problem", "method", "num_simulations", "seed")


def cell(
    problem: str, method: str, num_simulations: int, seed: int, num_observations: int
) -> Row:
    """Train one method and return its figures, one column each; NaN where none is."""
    task = PROBLEMS[problem]()
    torch.manual_seed(seed)
    theta = task.prior.sample((max(1, num_simulations),))  # `exact` needs none
    x = task(theta)
    torch.manual_seed(seed + FRESH)
    truth = task.prior.sample((MOST_OBSERVATIONS,))
    observed = {  # the same for all methods, of which some see the first few only
        "well": task(truth),
        "mis": task.observations(MOST_OBSERVATIONS, misspecified=True),
    }
    torch.manual_seed(seed)
    row: Row = {"cpu_train": 0.0, "cpu_measure": 0.0}
    for kind in KINDS:
        for level in LEVELS:
            row.update({f"{name}_{kind}_{level}": math.nan for name in FIGURES})
    _load_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = METHODS[method](task, theta, x)
        start = time.process_time()
        for kind, x_o in observed.items():
            compare = method in ("ace", "exact")
            given = x_o[:num_observations], truth[:num_observations]
            for level, values in enumerate(measure(task, fit, *given, compare)):
                for name, value in values.items():
                    row[f"{name}_{kind}_{level}"] = round(value, 5)
    row["cpu_train"] = round(fit.cpu, 2)
    row["cpu_measure"] = round(time.process_time() - start, 2)
    return row


def _load_optimizer() -> None:
    """Let torch import what its first optimiser needs, outside of timed training."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def cells_of(quick: bool, problems: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Return the settings of the cells of table 1, the most telling first."""
    first, later = seeds[:1], seeds[1:]
    plan = [  # methods, numbers of simulations, seeds, observations
        (("ace",), (10000, 1000), first, 10),
        (("npe", "abc"), (1000,), first, 10),
        (("nle",), (1000,), first, 10),
        (("npe", "abc"), (10000,), first, 10),
        (("ace",), (10000,), later, 10),
        (("nle",), (10000,), first, 10),
        (("exact",), (0,), first, 10),
        (("ace",), (1000,), later, 10),
        (("ace",), (200,), first, 10),
        (("smcabc",), (1000,), first, 2),
        (("abc",), (1000, 10000), later, 10),
        (("npe", "nle"), (1000,), later, 10),
        (("npe", "nle", "abc"), (200,), first, 10),
        (("ace",), (200,), later, 10),
        (("npe", "nle", "abc"), (200,), later, 10),
        (("smcabc",), (10000,), first, 2),
        (("npe", "nle"), (10000,), later, 10),
    ]
    if quick:
        plan = [
            (("exact",), (0,), first, 3),
            (("ace", "npe", "nle", "abc", "smcabc"), (200,), first, 3),
        ]
    return [
        dict(zip((*KEYS, "num_observations"), settings, strict=True))
        for methods, numbers, some, observations in plan
        for number in numbers
        for seed in some
        for problem in problems
        for method in methods
        for settings in [(problem, method, number, seed, observations)]
    ]


def ladder_cell(
    problem: str, num_simulations: int, seed: int, num_held_out: int
) -> Row:
    """Follow one trained cost over a ladder of beta; see `amortized_cost_ladder`."""
    return ladder.ladder_cell(PROBLEMS[problem](), num_simulations, seed, num_held_out)


def ladder_cells(
    quick: bool, problems: Sequence[str], seeds: Sequence[int]
) -> list[Row]:
    """Return the settings of the ladders, in the order of `problems`."""
    names = ("problem", "num_simulations", "seed", "num_held_out")
    number = 200 if quick else 1000
    some = problems[:1] if quick else problems
    return [dict(zip(names, (p, number, seeds[0], 100), strict=True)) for p in some]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    options = _parse(argv)
    start, out = time.time(), options.out
    problems = options.problems or (
        ["uniform", "linear_gaussian"] if options.quick else list(PROBLEMS)
    )
    seeds = options.seeds or ([1] if options.quick else [1, 2, 3])
    tables: dict[str, tuple[list[Row], Any]] = {
        "figures": (cells_of(options.quick, problems, seeds), cell),
        "ladder": (ladder_cells(options.quick, problems, seeds), ladder_cell),
        "temperature": (temperature.cells_of(options.quick, seeds), temperature.cell),
        "sampling": (expense.sampling_cells(options.quick), expense.sampling_cell),
        "memory": (expense.memory_cells(options.quick), expense.memory_cell),
    }
    rows: dict[str, list[Row]] = {}
    for name, (cells, function) in tables.items():
        path = out / f"{'quick_' if options.quick else ''}{name}.csv"
        if options.report or name not in options.tables:
            rows[name] = read_rows(path)
        else:
            rows[name] = run_cells(cells, function, path, options.jobs)
    ladders = ladder.table(rows["ladder"], PROBLEMS)
    text = report(rows, ladders, provenance("amortized_cost", argv), _notes(out))
    (out / ("quick.md" if options.quick else "README.md")).write_text(text + "\n")
    plot(
        rows["figures"], out / ("quick.png" if options.quick else "amortized_cost.png")
    )
    print(f"\n{text}\n\nWritten to {out}/ after {time.time() - start:.0f} s.")


def _parse(argv: Iterable[str]) -> argparse.Namespace:
    parser = benchmark_parser("amortized_cost", __doc__, "a few minutes")
    names = ("figures", "ladder", "temperature", "sampling", "memory")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    parser.add_argument(
        "--tables", nargs="+", choices=names, default=names, help="what to compute"
    )
    return parser.parse_args(list(argv))


def _notes(out: Path) -> str:
    """What a person wrote about the cells of this folder, if anything."""
    path = out / "NOTES.md"
    return path.read_text().strip() if path.exists() else ""
