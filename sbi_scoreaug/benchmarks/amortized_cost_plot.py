"""The figure of `amortized_cost`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from sbi_scoreaug.benchmarks.amortized_cost_report import (
    BETAS,
    KINDS,
    LABELS,
    PAPER_C2ST,
    mean,
    select,
)
from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.panels import save_figure


def plot(rows: list[Row], path: Path) -> None:
    """Draw the two-sample bound and the misspecified excess over N."""
    problems = [p for p in BETAS if select(rows, problem=p)]
    if not problems:
        return
    figure = Figure(figsize=(3.1 * len(problems), 5.6), layout="constrained")
    axes = figure.subplots(2, len(problems), squeeze=False)
    for (above, below), problem in zip(axes.T, problems, strict=True):
        some = select(rows, problem=problem)
        for level, color in enumerate(("tab:green", "tab:blue", "tab:orange")):
            for kind, style in zip(KINDS, ("-", "--"), strict=True):
                numbers, values = _curve(some, "ace", f"bound_{kind}_{level}")
                label = f"beta {BETAS[problem][level]:g}, {kind}"
                above.plot(numbers, values, style, marker="o", color=color, label=label)
                paper = PAPER_C2ST[problem][level][KINDS.index(kind)]
                above.plot(10000, paper, "x" if kind == "well" else "+", color=color)
        above.set(title=problem, xscale="log", ylim=(0.49, 1.01))
        for method, level in (("ace", 2), ("npe", 0), ("nle", 1), ("abc", 0)):
            numbers, values = _curve(some, method, f"excess_mis_{level}")
            below.plot(numbers, values, marker="o", label=LABELS[method][level])
        below.set(xscale="log", yscale="log", xlabel="simulations N")
    axes[0, 0].set_ylabel("1/2 + TV/2 (x, +: paper)")
    axes[1, 0].set_ylabel("excess distance, mis")
    axes[0, 0].legend(fontsize="x-small", frameon=False)
    axes[1, 0].legend(fontsize="x-small", frameon=False)
    save_figure(figure, path, dpi=150)


def _curve(rows: list[Row], method: str, column: str) -> tuple[list[int], list[float]]:
    some = select(rows, method=method)
    numbers = sorted({row["num_simulations"] for row in some})
    return numbers, [mean(select(some, num_simulations=n), column) for n in numbers]
