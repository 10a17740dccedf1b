r"""Sets of observations: samplers with exact scores, trained networks, a box, cost.

Four tables, described in `score_npe_exact` (1), `score_npe_trained` (2),
`score_npe_bounded` (3) and `score_npe_cost` (4). Fresh sets have seeds 1, 2, .. unless
`--first-set` says others, networks 1, 2, 3 unless `--networks` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sbi_scoreaug.benchmarks import (
    score_npe_bounded,
    score_npe_cost,
    score_npe_exact,
    score_npe_trained,
)
from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    read_rows,
    run_cells,
)
from sbi_scoreaug.benchmarks.score_npe_bounded import bounded_cell, bounded_cells
from sbi_scoreaug.benchmarks.score_npe_cost import cost_cell, cost_cells
from sbi_scoreaug.benchmarks.score_npe_exact import (
    EXACT_METHODS,
    ExactScores,
    exact_cell,
    exact_cells,
)
from sbi_scoreaug.benchmarks.score_npe_plots import (
    plot_bounded,
    plot_cost,
    plot_exact,
    plot_trained,
)
from sbi_scoreaug.benchmarks.score_npe_report import (
    bounded_table,
    cost_table,
    exact_table,
    modes_table,
    trained_table,
)
from sbi_scoreaug.benchmarks.score_npe_trained import (
    METHODS,
    trained_cell,
    trained_cells,
)

__all__ = ["ExactScores", "main"]


class Table(NamedTuple):
    """What computes and shows one of the four tables."""

    name: str
    title: str
    cells: Callable[[bool, Sequence[str], int], list[Row]]
    cell: Callable[..., Row]
    show: Callable[[list[Row]], str]
    plot: Callable[[list[Row], Path], None]
    about: Any


def _show_trained(rows: list[Row]) -> str:
    modes = "Error of the share of samples on one side, bimodal task:"
    return f"{trained_table(rows)}\n\n{modes}\n\n{modes_table(rows)}"


TABLES = {
    1: Table(
        "exact",
        "1. Exact scores",
        exact_cells,
        exact_cell,
        exact_table,
        plot_exact,
        score_npe_exact,
    ),
    2: Table(
        "trained",
        "2. Trained networks",
        trained_cells,
        trained_cell,
        _show_trained,
        plot_trained,
        score_npe_trained,
    ),
    3: Table(
        "bounded",
        "3. Box prior",
        lambda quick, *_: bounded_cells(quick),
        bounded_cell,
        bounded_table,
        plot_bounded,
        score_npe_bounded,
    ),
    4: Table(
        "cost",
        "4. Cost",
        lambda quick, *_: cost_cells(quick),
        cost_cell,
        cost_table,
        plot_cost,
        score_npe_cost,
    ),
}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    parser = benchmark_parser("score_npe", __doc__, "a few minutes")
    parser.add_argument(
        "--tables", nargs="+", type=int, choices=TABLES, default=list(TABLES)
    )
    methods = [*EXACT_METHODS, *METHODS]
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, help="of tables 1, 2"
    )
    parser.add_argument(
        "--first-set", type=int, default=1, help="seed of the first set of tables 1, 2"
    )
    parser.add_argument(
        "--networks", nargs="+", type=int, help="seeds of those of tables 2, 3"
    )
    arguments = parser.parse_args(argv)
    quick, out, start = arguments.quick, arguments.out, time.time()
    parts = ["# score_npe", provenance("score_npe", argv)]
    notes = out / "notes.md"
    if notes.exists() and not quick:
        parts.append(notes.read_text().strip())
    for number in arguments.tables:
        table = TABLES[number]
        path = out / f"{'quick_' if quick else ''}{table.name}.csv"
        if arguments.report:
            rows = read_rows(path)
        else:
            jobs = 1 if number == 4 else arguments.jobs
            cells = table.cells(quick, arguments.methods, arguments.first_set)
            if arguments.networks and number in (2, 3):
                cells = [
                    {**cell, "seed": seed}
                    for seed in arguments.networks
                    for cell in cells
                    if cell["seed"] == 1
                ]
            rows = run_cells(cells, table.cell, path, jobs)
        if rows:
            table.plot(rows, path.with_suffix(".png"))
            about = table.about.__doc__.split("\n\n", 1)[1].strip()
            parts += [
                f"## {table.title}",
                about,
                f"![{table.title}]({path.stem}.png)",
                table.show(rows),
            ]
    report = "\n\n".join(parts)
    (out / ("quick.md" if quick else "README.md")).write_text(report + "\n")
    print(f"\n{report}\n\nWritten to {out}/ after {time.time() - start:.0f} s.")
