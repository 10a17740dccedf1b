"""Tables and figures of the Hodgkin-Huxley benchmark, from its finished cells."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sbi_scoreaug.benchmarks.cells import Row, read_rows
from sbi_scoreaug.benchmarks.hodgkin_huxley_data import KINDS, Laboratory
from sbi_scoreaug.benchmarks.keeping_score_report import equivalent_budget
from sbi_scoreaug.panels import save_figure
from sbi_scoreaug.simulators import HodgkinHuxley

BETAS = [f"{beta:g}" for beta in HodgkinHuxley.betas]
TRACE_SEED, TRACE_BETA, TRACE_DRAWS, TRACE_NUMBER = 5, BETAS[-1], 2, 1000
STYLES = {
    ("npe", BETAS[0]): ("sbi NPE", "tab:blue", "--"),
    ("npe_logit", BETAS[0]): ("sbi NPE on logits", "0.6", ":"),
    ("abc", BETAS[0]): ("rejection ABC", "tab:green", "-."),
    ("ace", BETAS[0]): ("ACE, beta 25", "gold", "-"),
    ("ace", BETAS[1]): ("ACE, beta 50", "tab:orange", "-"),
    ("ace", BETAS[2]): ("ACE, beta 100", "tab:red", "-"),
}
Curve = dict[int, list[float]]


def report(path: Path, lab: Laboratory, provenance: str) -> str:
    """Return the tables as Markdown; write them and two figures beside the CSV file.

    Args:
        path: The CSV file.
        lab: Simulations and posterior draws that the cells have kept.
        provenance: A line that says when and how the cells were made.
    """
    rows = read_rows(path)
    if not rows:
        return "(no finished cells)"
    least = lab.least_distances(max(row["num_recordings"] for row in rows))
    found = ", ".join(f"{kind} {value.mean():.3f}" for kind, value in least.items())
    parts = [
        "# A spiking neuron: amortized cost estimation against NPE",
        "Mean absolute difference of seven standardized features between recordings "
        "and simulations at posterior draws: median [min, max] over networks of the "
        "mean over recordings. Coverage belongs to it: draws from a posterior that is "
        "too narrow for the truth also come near.",
        distance_table(rows),
        f"Least distances that a search of the simulator finds: {found}.",
        "How many simulations NPE needs for the same distance, over those of ACE: the "
        "better NPE at each N, medians over networks, log-log interpolation between "
        "the N that are in the table; "
        "> where even NPE's largest N is worse, < where its smallest is better.",
        factor_table(rows),
        provenance,
    ]
    text = "\n\n".join(parts)
    path.with_suffix(".md").write_text(text + "\n")
    plot_distances(rows, least, path.with_suffix(".png"))
    plot_traces(rows, lab, path.with_name(f"{path.stem}_traces.png"))
    return text


def curve(rows: list[Row], method: str, kind: str, level: str) -> Curve:
    """Return the distances of all networks by number of simulations."""
    some = [row for row in rows if row["method"] == method]
    return {
        n: [r[f"distance_{kind}_{level}"] for r in some if r["num_simulations"] == n]
        for n in sorted({row["num_simulations"] for row in some})
    }


def _spread(values: list[float]) -> str:
    return f"{median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def distance_table(rows: list[Row]) -> str:
    """Return distances, coverage and times, a line for each method, N and beta."""
    head = ["method", "N", "beta", "networks", *KINDS]
    head += ["coverage of 90 %, well", "CPU s: train, sample"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, number in sorted({(r["method"], r["num_simulations"]) for r in rows}):
        some = [
            row
            for row in rows
            if (row["method"], row["num_simulations"]) == (method, number)
        ]
        for level in [*BETAS, "ml"] if method == "ace" else BETAS[:1]:
            beta = level if method == "ace" else ""
            if level == "ml":
                beta = f"ml: {median(row['beta_ml'] for row in some):.0f}"
            cells: list[Any] = [method, number, beta, len(some)]
            cells += [
                _spread([r[f"distance_{k}_{level}"] for r in some]) for k in KINDS
            ]
            cells.append(f"{median(row[f'coverage_{level}'] for row in some):.2f}")
            seconds = (median(r[f"cpu_{k}"] for r in some) for k in ("train", "sample"))
            cells.append(", ".join(f"{value:.0f}" for value in seconds))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def npe_curve(rows: list[Row], kind: str) -> dict[int, float]:
    """Return the better median distance of both NPE at each N."""
    best: dict[int, float] = {}
    for method in ("npe", "npe_logit"):
        for number, values in curve(rows, method, kind, BETAS[0]).items():
            best[number] = min(best.get(number, median(values)), median(values))
    return dict(sorted(best.items()))


def factor_table(rows: list[Row]) -> str:
    """Return the factors in simulations at equal distance, by kind, N and beta."""
    lines = [
        "| recordings | N of ACE | beta 25 | beta 50 | beta 100 |",
        "|---" * 5 + "|",
    ]
    for kind in KINDS:
        npe = npe_curve(rows, kind)
        curves = [curve(rows, "ace", kind, level) for level in BETAS]
        for number in curves[0] if npe else ():
            cells = []
            for one in curves:
                budget, sign = equivalent_budget(
                    list(npe), list(npe.values()), median(one[number])
                )
                cells.append(f"{sign}{budget / number:.3g}")
            lines.append(f"| {kind} | {number} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_distances(rows: list[Row], least: dict[str, torch.Tensor], path: Path) -> None:
    """Draw distances over N, a panel for each kind of recording."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(KINDS), sharey=True)
    for ax, kind in zip(axes, KINDS, strict=True):
        for (method, level), (label, color, style) in STYLES.items():
            values = curve(rows, method, kind, level)
            if not values:
                continue
            middle = [median(v) for v in values.values()]
            low, high = ([f(v) for v in values.values()] for f in (min, max))
            ax.plot(list(values), middle, style, marker=".", color=color, label=label)
            ax.fill_between(list(values), low, high, color=color, alpha=0.2, lw=0)
        ax.axhline(float(least[kind].mean()), color="0.3", lw=0.8, label="search")
        ax.set(title=kind.replace("_", " "), xscale="log", yscale="log")
        numbers = sorted({row["num_simulations"] for row in rows})
        ax.set_xticks(numbers, list(map(str, numbers)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("simulations N")
    axes[0].set_ylabel("predictive feature distance")
    axes[0].legend(fontsize="x-small", frameon=False)
    save_figure(figure, path, dpi=150)


def plot_traces(rows: list[Row], lab: Laboratory, path: Path) -> None:
    """Draw recorded neurons and simulations at posterior draws, a column a kind."""
    numbers = sorted({row["num_simulations"] for row in rows})
    number = TRACE_NUMBER if TRACE_NUMBER in numbers else numbers[0]
    seed = min(row["seed"] for row in rows)
    num_recordings = max(row["num_recordings"] for row in rows)
    panels = [("ace", TRACE_BETA, number), ("npe", BETAS[0], number)]
    panels.append(("npe", BETAS[0], numbers[-1]))
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1 + len(panels), len(KINDS), sharex=True, sharey=True)
    for column, kind in enumerate(KINDS):
        change = None if kind == "well" else kind
        theta = lab.recordings(kind, 1).theta
        torch.manual_seed(TRACE_SEED)
        time, voltage = HodgkinHuxley(change=change).traces(theta)
        axes[0][column].plot(time, voltage[0], color="black", lw=0.6)
        axes[0][column].set_title(f"recording, {kind.replace('_', ' ')}")
    for row, (method, level, n) in enumerate(panels, start=1):
        kept = lab.cache / f"draws_{method}_{n}_{seed}.pt"
        if not kept.exists():
            continue
        draws = torch.load(kept)[level][::num_recordings, :TRACE_DRAWS]
        torch.manual_seed(TRACE_SEED)
        time, voltage = lab.neuron.traces(draws.flatten(0, 1))
        for column, pair in enumerate(voltage.split(TRACE_DRAWS)):
            axes[row][column].plot(time, pair.T, lw=0.6)
        axes[row][0].set_ylabel(f"{method}, N={n}")
    for ax in axes[-1]:
        ax.set_xlabel("t (ms)")
    figure.supylabel("V (mV)")
    save_figure(figure, path, dpi=130)
