"""The figures of the score_npe benchmark, one a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_bounded import PLACES
from sbi_scoreaug.benchmarks.score_npe_metrics import split
from sbi_scoreaug.benchmarks.score_npe_report import per_set, select
from sbi_scoreaug.panels import save_figure

STYLES = {
    "perfect draws": ("0.5", ":"),
    "auto": ("tab:orange", "-"),
    "auto, no jump": ("tab:red", "-"),
    "auto, no polish": ("tab:brown", "-"),
    "gauss": ("tab:olive", "-"),
    "composed": ("tab:purple", "-."),
    "langevin": ("tab:pink", "-."),
    "sbi fnpe": ("tab:blue", "--"),
    "sbi gauss": ("tab:cyan", "--"),
    "sbi auto_gauss": ("tab:green", "--"),
    "sbi jac_gauss": ("black", "--"),
    "NPE on sets": ("0.4", "-."),
    "ScoreNPE": ("tab:orange", "-"),
    "ScoreNPE, network alone": ("tab:brown", "-"),
}
SMALLEST = 1e-4  # the noise of an unbiased MMD^2 with 1000 samples


def _style(method: str) -> dict[str, Any]:
    color, line = STYLES[method.replace("NPSE", "sbi")]
    return {"color": color, "linestyle": line, "marker": ".", "label": method}


def _methods(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _finish(figure: Figure, axes: Iterable[Any], path: Path) -> None:
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside right upper",
        fontsize="small",
        frameon=False,
    )
    save_figure(figure, path, dpi=130)


def plot_exact(rows: list[Row], path: Path) -> None:
    """Draw mean MMD^2 over n, a panel a problem."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).flatten()
    for ax, problem in zip(axes, problems, strict=False):
        for method in _methods(rows):
            some = select(rows, problem=problem, method=method)
            some.sort(key=lambda row: row["num_observations"])
            if some:
                sizes = [row["num_observations"] for row in some]
                values = [max(mean(split(row["mmd2"])), SMALLEST) for row in some]
                ax.plot(sizes, values, **_style(method))
        ax.axhline(0.002, color="0.8", lw=0.8)
        ax.set(title=problem, xscale="log", yscale="log")
    for ax in axes[3:]:
        ax.set_xlabel("observations n")
    for ax in axes[::3]:
        ax.set_ylabel("MMD² (grey line: the bar)")
    _finish(figure, axes, path)


def plot_trained(rows: list[Row], path: Path) -> None:
    """Draw MMD^2 over n: a row a problem, a column a budget."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    budgets = sorted({row["budget"] for row in rows})
    size = (2.6 * len(budgets) + 2.2, 2.3 * len(problems) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(problems), len(budgets), sharex=True, sharey="row", squeeze=False
    )
    for line, problem in zip(axes, problems, strict=True):
        for ax, budget in zip(line, budgets, strict=True):
            for method in _methods(rows):
                some = select(rows, problem=problem, budget=budget, method=method)
                sizes = sorted({row["num_observations"] for row in some})
                groups = [select(some, num_observations=n) for n in sizes]
                values = [mean(per_set(group).values()) for group in groups]
                if sizes:
                    values = [max(value, SMALLEST) for value in values]
                    ax.plot(sizes, values, **_style(method))
            ax.set(xscale="log", yscale="log", title=f"{problem}, N = {budget}")
        line[0].set_ylabel("MMD²")
    for ax in axes[-1]:
        ax.set_xlabel("observations n")
    _finish(figure, axes.flatten(), path)


def plot_bounded(rows: list[Row], path: Path) -> None:
    """Draw MMD^2 and CPU seconds by place."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, key, title in zip(axes, ("mmd2", "cpu"), ("MMD²", "CPU s"), strict=True):
        for method in _methods(rows):
            for place in PLACES:
                some = select(rows, method=method, place=place)
                values = [v for row in some for v in split(row[key])]
                style = {**_style(method), "linestyle": ""}
                ax.plot([place] * len(values), values, **style)
        ax.set(title=f"{title}, each set", yscale="log" if key == "cpu" else "linear")
    _finish(figure, axes, path)


def plot_cost(rows: list[Row], path: Path) -> None:
    """Draw CPU seconds and peak memory over n; arrows are lower bounds."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, key in zip(axes, ("cpu", "peak_mb"), strict=True):
        for method in _methods(rows):
            some = [row for row in select(rows, method=method) if row[key] != ""]
            done = [row for row in some if isinstance(row[key], int | float)]
            sizes = sorted({row["num_observations"] for row in done})
            groups = [select(done, num_observations=n) for n in sizes]
            values = [mean(row[key] for row in group) for group in groups]
            ax.plot(sizes, values, **_style(method))
            bounds = [row for row in some if str(row[key]).startswith(">")]
            style = {**_style(method), "linestyle": "", "marker": "^", "label": None}
            where = [row["num_observations"] for row in bounds]
            ax.plot(where, [float(row[key][1:]) for row in bounds], **style)
        ax.set(xscale="log", yscale="log", xlabel="observations n")
    axes[0].set_ylabel("CPU s (triangle: more than)")
    axes[1].set_ylabel("peak MB")
    _finish(figure, axes, path)
