r"""Sets of observations: samplers with exact scores, trained networks, a box, cost.

Four tables, described in `score_npe_exact` (1), `score_npe_trained` (2, 3) and
`score_npe_cost` (4). Fresh sets have seeds 1, 2, ..: nothing was chosen on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sbi_scoreaug.benchmarks.cells import run_cells
from sbi_scoreaug.benchmarks.score_npe_exact import (
    EXACT_METHODS,
    ExactScores,
    exact_cell,
    exact_cells,
)
from sbi_scoreaug.benchmarks.score_npe_trained import (
    METHODS,
    bounded_cell,
    bounded_cells,
    trained_cell,
    trained_cells,
)

__all__ = ["ExactScores", "main"]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    parser = argparse.ArgumentParser("sbi_scoreaug.benchmarks score_npe")
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--out", type=Path, default=Path("score_npe"))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--tables", nargs="+", type=int, default=[1, 2, 3, 4])
    methods = [*EXACT_METHODS, *METHODS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    arguments = parser.parse_args(argv)
    quick, out, jobs = arguments.quick, arguments.out, arguments.jobs
    if 1 in arguments.tables:
        run_cells(
            exact_cells(quick, arguments.methods, 1),
            exact_cell,
            out / "exact.csv",
            jobs,
        )
    if 2 in arguments.tables:
        cells = trained_cells(quick, arguments.methods, 1)
        run_cells(cells, trained_cell, out / "trained.csv", jobs)
    if 3 in arguments.tables:
        run_cells(bounded_cells(quick), bounded_cell, out / "bounded.csv", jobs)
