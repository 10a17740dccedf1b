"""Tables and the figure of the keeping-score benchmark, from its finished cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.panels import save_figure


def equivalent_budget(
    budgets: Sequence[int], errors: Sequence[float], error: float
) -> tuple[float, str]:
    """Return M with the baseline's interpolated error equal to `error`, and a sign.

    The sign is ">" where even the largest budget is worse, "<" where the smallest is
    better, and "" in between. Errors are made monotone (running minimum) first.

    Example:
        >>> equivalent_budget([100, 1000], [0.4, 0.1], 0.2)
        (316.2..., '')
        >>> equivalent_budget([100, 1000], [0.4, 0.1], 0.05)
        (1000, '>')
    """
    falling = np.minimum.accumulate(errors)
    if error < falling[-1]:
        return budgets[-1], ">"
    if error > falling[0]:
        return budgets[0], "<"
    after = int(np.argmax(falling <= error))
    if after == 0 or falling[after] == falling[after - 1]:
        return budgets[after], ""
    x, y = np.log(budgets), np.log(falling)
    part = (np.log(error) - y[after - 1]) / (y[after] - y[after - 1])
    return float(np.exp(x[after - 1] + part * (x[after] - x[after - 1]))), ""


def _select(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _spread(rows: list[Row], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{median(values):.4f} [{min(values):.4f}, {max(values):.4f}]"


def _total(row: Row) -> float:
    scores = row["cpu_score"] if row["method"] == "score" else 0.0
    return row["cpu_train"] + row["cpu_simulate"] + scores


def error_table(rows: list[Row]) -> str:
    """Return the table of errors and data-equivalence factors in Markdown."""
    lines = [
        "| problem | N | method | steps | TV, median [min, max] over seeds | KL | "
        "factor (TV) | factor (KL) | CPU s: simulate, score, train |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    compared = [row for row in rows if row["method"] != "score" or row["steps"]]
    keys = ("problem", "num_simulations", "method", "steps")
    order = {
        name: i for i, name in enumerate(dict.fromkeys(r["problem"] for r in rows))
    }
    groups = sorted(
        {tuple(row[key] for key in keys) for row in compared},
        key=lambda group: (order[group[0]], *group[1:]),
    )
    for problem, n, method, steps in groups:
        wanted = dict(zip(keys, (problem, n, method, steps), strict=True))
        some = _select(compared, **wanted)
        factors = ["", ""]
        if method == "score":
            factors = [factor(compared, some, key) for key in ("tv", "kl")]
        seconds = ", ".join(
            f"{median(row[key] for row in some):.2f}"
            if key != "cpu_score" or method == "score"
            else "-"
            for key in ("cpu_simulate", "cpu_score", "cpu_train")
        )
        taken = f"{median(row['steps_taken'] for row in some):.0f}"
        lines.append(
            f"| {problem} | {n} | {method} | {taken}{'' if steps else ' (own stop)'} | "
            f"{_spread(some, 'tv_median')} | {_spread(some, 'kl_median')} | "
            f"{factors[0]} | {factors[1]} | {seconds} |"
        )
    return "\n".join(lines)


def factor(rows: list[Row], some: list[Row], metric: str) -> str:
    """Return the data-equivalence factor of the cells `some`, with its spread.

    The number is that of the medians over seeds, the brackets hold the smallest and
    largest of single seeds, each against the plain runs of its own seed.
    """
    pooled = _factor_number(rows, some, metric)
    single = [
        _factor_number(_select(rows, seed=row["seed"]), [row], metric) for row in some
    ]
    single.sort(key=lambda number: (number[1] == ">", number[0]))
    return f"{_number(pooled)} [{_number(single[0])}, {_number(single[-1])}]"


def _number(value: tuple[float, str]) -> str:
    return (
        f"{value[1]}{value[0]:.0f}" if value[0] >= 10 else f"{value[1]}{value[0]:.1f}"
    )


def _factor_number(rows: list[Row], some: list[Row], metric: str) -> tuple[float, str]:
    """Return M / N against the best plain run at each M, and a sign."""
    key = f"{metric}_median"
    problem, n = some[0]["problem"], some[0]["num_simulations"]
    plain = [row for row in _select(rows, problem=problem) if row["method"] != "score"]
    best: dict[int, float] = {}
    for m, method, steps in {
        (row["num_simulations"], row["method"], row["steps"]) for row in plain
    }:
        group = _select(plain, num_simulations=m, method=method, steps=steps)
        error = median(row[key] for row in group)
        best[m] = min(error, best.get(m, error))
    budgets = sorted(best)
    errors = [best[m] for m in budgets]
    budget, sign = equivalent_budget(budgets, errors, median(row[key] for row in some))
    return budget / n, sign


def time_table(rows: list[Row]) -> str:
    """Return total times to stop, and what equal total time buys, in Markdown."""
    lines = [
        "| problem | N | score: TV, total CPU s | NRE_A at the same N: TV, s | time "
        "ratio | best plain within that time: TV (method, N, s) |",
        "|---|---|---|---|---|---|",
    ]
    stopped = [r for r in rows if r["method"] == "score" and not r["steps"]]
    plain_budgets = sorted({r["num_simulations"] for r in rows})
    groups = dict.fromkeys((r["problem"], r["num_simulations"]) for r in stopped)
    for problem, n in groups:
        ours = _select(stopped, problem=problem, num_simulations=n)
        host = _select(rows, problem=problem, num_simulations=n, method="NRE_A")
        seconds = median(map(_total, ours))
        plain = [
            (median(r["tv_median"] for r in some), method, m, cost)
            for method in ("NRE_A", "equipped")
            for m in plain_budgets
            for steps in {row["steps"] for row in _select(rows, method=method)}
            if (
                some := _select(
                    rows,
                    problem=problem,
                    method=method,
                    num_simulations=m,
                    steps=steps,
                )
            )
            and (cost := median(map(_total, some))) <= seconds
        ]
        best = "-"
        if plain:
            tv, method, m, cost = min(plain)
            best = f"{tv:.4f} ({method}, {m}, {cost:.0f})"
        host_cell = ratio = "-"
        if host:
            host_seconds = median(map(_total, host))
            host_cell = f"{_spread(host, 'tv_median')}, {host_seconds:.0f}"
            ratio = f"{seconds / host_seconds:.2f}"
        lines.append(
            f"| {problem} | {n} | {_spread(ours, 'tv_median')}, {seconds:.0f} | "
            f"{host_cell} | {ratio} | {best} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draw total variation over N, a panel a problem, and write it to `path`."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(3.1 * len(problems), 3.2), layout="constrained")
    axes = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    labels = {
        "NRE_A": ("sbi NRE_A", "0.6", ":"),
        "equipped": ("NRE_A, equally equipped", "tab:blue", "--"),
        "score": ("ScoreAugmentedNRE", "tab:orange", "-"),
    }
    for ax, problem in zip(axes, problems, strict=True):
        for method, (label, color, style) in labels.items():
            some = _select(rows, problem=problem, method=method)
            if method != "NRE_A":
                steps = min(row["steps"] for row in some if row["steps"])
                some = _select(some, steps=steps)
            budgets = sorted({row["num_simulations"] for row in some})
            values = [
                sorted(r["tv_median"] for r in _select(some, num_simulations=n))
                for n in budgets
            ]
            if not values:
                continue
            ax.plot(
                budgets, [median(v) for v in values], style, color=color, label=label
            )
            low, high = [v[0] for v in values], [v[-1] for v in values]
            ax.fill_between(budgets, low, high, color=color, alpha=0.2, lw=0)
        ax.set(title=problem, xscale="log", yscale="log", xlabel="simulations N")
    axes[0].set_ylabel("total variation to the exact posterior")
    axes[0].legend(fontsize="small", frameon=False)
    save_figure(figure, path, dpi=150)


def cost_table(costs: list[Row]) -> str:
    """Return CPU time a step in Markdown."""
    if not costs:
        return "(not timed for these problems)"
    keys = [key for key in costs[0] if key not in ("num_simulations", "rounds")]
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in costs]
    return "\n".join(lines)
