"""The table, the bars and the figure of scores_everywhere, from its finished cells."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.keeping_score_report import equivalent_budget
from sbi_scoreaug.benchmarks.score_npe_report import select
from sbi_scoreaug.panels import save_figure

# What is called the error of each method, and the other figure of a cell.
ERRORS = {
    "NRE": ("TV", "KL"),
    "NLE": ("TV", "KL"),
    "NPE": ("TV", "KL"),
    "ScoreNPE": ("MMD^2, n=8", "MMD^2, n=1"),
    "ACE": ("cost error", "TV"),
}
# MMD^2 is unbiased and may be negative; less than this is noise (see `bars`).
FLOOR = 5e-4
BARS = {"NRE": 10, "NPE": 10, "ScoreNPE": 10, "NLE": 5, "ACE": 5}
NEVER_BELOW = 0.9
Factor = tuple[float, str]  # a number, and ">" where it is a bound


def middle(rows: list[Row], key: str = "error") -> float:
    """Return the median over seeds of an error, not below the floor."""
    value = median(row[key] for row in rows)
    return max(value, FLOOR) if rows[0]["method"] == "ScoreNPE" else value


def data_factor(rows: list[Row], scored: list[Row], key: str = "error") -> Factor:
    """Return M / N of the cells `scored`, all of one N, against the best plain runs.

    MMD^2 goes as 1 / N, not N^-1/2: below the grid its factor is rather too small.

    Args:
        rows: Cells of one task and method.
        scored: Those with scores whose factor is asked for, one a seed.
        key: "error" or "other".
    """
    best: dict[int, float] = {}
    plain = [row for row in rows if row["arm"] != "score"]
    for m, arm, steps in {
        (row["num_simulations"], row["arm"], row["steps"]) for row in plain
    }:
        error = middle(select(plain, num_simulations=m, arm=arm, steps=steps), key)
        best[m] = min(error, best.get(m, error))
    budgets = sorted(best)
    errors = [best[m] for m in budgets]
    error, n = middle(scored, key), scored[0]["num_simulations"]
    budget, sign = equivalent_budget(budgets, errors, error)
    if sign == "<":  # even the fewest are better: by the rate of N^-1/2
        return budgets[0] * (errors[0] / error) ** 2 / n, ""
    return budget / n, sign


def number(factor: Factor) -> str:
    """Return a factor as text, e.g. ">33" or "4.1"."""
    value, sign = factor
    return f"{sign}{value:.0f}" if value >= 10 else f"{sign}{value:.1f}"


def _groups(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """Return (task, method, cells), in the order of the methods."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    pairs = [(task, method) for method in ERRORS for task in tasks]
    groups = [(t, m, select(rows, task=t, method=m)) for t, m in pairs]
    return [group for group in groups if group[2]]


def _equal_steps(rows: list[Row], arm: str) -> list[Row]:
    some = select(rows, arm=arm)
    least = min((row["steps"] for row in some), default=0)
    return select(some, steps=least)


def table(rows: list[Row]) -> str:
    """Return the table: a row a method and task, and each of its two errors."""
    budgets = sorted({row["num_simulations"] for row in rows})
    header = ["method", "task", "error", *(f"N = {n}" for n in budgets), "step"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for task, method, some in _groups(rows):
        for key, name in zip(("error", "other"), ERRORS[method], strict=True):
            entries = [_entry(some, n, key) for n in budgets]
            ratio = _step_ratio(some) if key == "error" else ""
            line = [method, task, name, *entries, ratio]
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _entry(rows: list[Row], n: int, key: str) -> str:
    sides = [
        select(_equal_steps(rows, arm), num_simulations=n) for arm in ("score", "plain")
    ]
    shown = [f"{middle(side, key):.4f}" if side else "-" for side in sides]
    if not sides[0] or not select(rows, arm="plain"):
        return " / ".join(shown)
    return " / ".join(shown) + f", **{number(data_factor(rows, sides[0], key))}**"


def _step_ratio(rows: list[Row]) -> str:
    """Return CPU time a step with scores over that without, same N and seed."""
    costs: dict[str, dict[tuple[int, int], float]] = {"score": {}, "plain": {}}
    for arm, found in costs.items():
        for row in _equal_steps(rows, arm):
            place = row["num_simulations"], row["seed"]
            found[place] = row["cpu_train"] / row["steps_taken"]
    both = costs["score"].keys() & costs["plain"].keys()
    at_1000 = [place for place in both if place[0] == 1000] or list(both)
    if not at_1000:
        return "-"
    ratio = median(costs["score"][place] / costs["plain"][place] for place in at_1000)
    return f"{ratio:.2f}"


def bars(rows: list[Row]) -> str:
    """Return what was asked for and what was reached, a line each."""
    lines = []
    for task, method, some in _groups(rows):
        scored = _equal_steps(some, "score")
        if not scored or not select(some, arm="plain"):
            continue
        if task == "Gaussian":
            lines += _bar(method, some, select(scored, num_simulations=1000))
        for n in sorted({row["num_simulations"] for row in scored}):
            lines += _below(task, method, some, select(scored, num_simulations=n))
    if not any("missed" in line for line in lines):
        lines.append(f"- Every factor is at least {NEVER_BELOW}: met")
    return "\n".join([*lines, *_few_beat_many(rows)])


def _bar(method: str, rows: list[Row], scored: list[Row]) -> list[str]:
    """Return whether the 10-D Gaussian's factor is what was asked for."""
    if not scored:
        return []
    factor = data_factor(rows, scored)
    single = [
        number(data_factor(select(rows, seed=row["seed"]), [row])) for row in scored
    ]
    return [
        f"- {method}, Gaussian, N = 1000: factor at least {BARS[method]}: "
        f"{number(factor)} (single seeds {', '.join(single)}): "
        f"{_verdict(factor[0] >= BARS[method])}"
    ]


def _below(task: str, method: str, rows: list[Row], scored: list[Row]) -> list[str]:
    """Return where scores did harm at equal steps, by either of the two errors."""
    lines, steps = [], scored[0]["steps"]
    rows = [row for row in rows if row["arm"] != "plain" or row["steps"] == steps]
    for key, name in zip(("error", "other"), ERRORS[method], strict=True):
        factor = data_factor(rows, scored, key)
        if factor[0] < NEVER_BELOW:
            n = scored[0]["num_simulations"]
            both = scored, select(rows, arm="plain", num_simulations=n)
            here = [f"{middle(side, key):.4f}" if side else "-" for side in both]
            lines.append(
                f"- {method}, {task}, N = {n}, {name}: at equal steps {NEVER_BELOW}: "
                f"{factor[0]:.2f}: missed (at this N {here[0]} with, {here[1]} without)"
            )
    return lines


def _few_beat_many(rows: list[Row]) -> list[str]:
    """Return ScoreNPE's bar: 1000 simulations with scores against 10000 without."""
    lines = []
    some = select(rows, method="ScoreNPE")
    for task in dict.fromkeys(row["task"] for row in some):
        few = select(some, task=task, arm="score", num_simulations=1000)
        many = select(some, task=task, arm="plain", num_simulations=10000)
        if few and many:
            by_steps = [select(many, steps=s) for s in {row["steps"] for row in many}]
            best = min(median(row["error"] for row in group) for group in by_steps)
            ours = median(row["error"] for row in few)
            lines.append(
                f"- ScoreNPE, {task}, n = 8: MMD^2 with scores at N = 1000 below that "
                f"without at N = 10000: {ours:.4f} against {best:.4f}: "
                f"{_verdict(ours < best)}"
            )
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def plot(rows: list[Row], path: Path) -> None:
    """Draw errors over N, a row of panels a method, and write them to `path`."""
    methods = [m for m in ERRORS if select(rows, method=m)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    size = (2.7 * len(tasks) + 0.6, 2.2 * len(methods) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(methods), len(tasks), squeeze=False, sharex=True, sharey="row"
    )
    for i, method in enumerate(methods):
        for j, task in enumerate(tasks):
            some = select(rows, method=method, task=task)
            axes[i, j].set_visible(bool(some))
            _panel(axes[i, j], some)
        axes[i, 0].set_ylabel(f"{method}\n{ERRORS[method][0]}")
    for j, task in enumerate(tasks):
        axes[0, j].set_title(task)
        axes[-1, j].set_xlabel("simulations N")
    axes[0, 0].legend(fontsize="x-small", frameon=False)
    save_figure(figure, path, dpi=130)


def _panel(ax: Axes, rows: list[Row]) -> None:
    styles = {
        "score": ("with scores", "tab:orange", "o-"),
        "plain": ("without", "tab:blue", "s--"),
    }
    for arm, (label, color, style) in styles.items():
        some = _equal_steps(rows, arm)
        budgets = sorted({row["num_simulations"] for row in some})
        groups = [select(some, num_simulations=n) for n in budgets]
        ax.plot(budgets, list(map(middle, groups)), style, c=color, label=label, ms=3)
        ends = [[middle([row]) for row in group] for group in groups]
        low, high = list(map(min, ends)), list(map(max, ends))
        ax.fill_between(budgets, low, high, color=color, alpha=0.2, lw=0)
    most = max((row["steps"] for row in select(rows, arm="plain")), default=0)
    others = {
        "without, 3 x steps": ("plain", most, "^"),
        "without, own": ("own", 0, "x"),
    }
    for label, (arm, steps, marker) in others.items():
        some = select(rows, arm=arm, steps=steps)
        if arm == "plain" and some == _equal_steps(rows, arm):
            continue
        budgets = sorted({row["num_simulations"] for row in some})
        values = [middle(select(some, num_simulations=n)) for n in budgets]
        ax.plot(budgets, values, marker, c="0.4", label=label, ms=4)
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
