"""The four tables of the score_npe benchmark in Markdown, from finished cells."""

from __future__ import annotations

from math import isfinite
from statistics import mean, median, stdev
from typing import Any

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_bounded import PLACES
from sbi_scoreaug.benchmarks.score_npe_exact import FLOOR
from sbi_scoreaug.benchmarks.score_npe_exact import OWN as OWN_EXACT
from sbi_scoreaug.benchmarks.score_npe_metrics import split, summary
from sbi_scoreaug.benchmarks.score_npe_trained import OWN

DEFAULT = "ScoreNPE"
BUILT_LIKE_PEERS = ("composed", "langevin")  # the paper's: no bar is set for them


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _unique(rows: list[Row], *keys: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def _lines(header: str, rows: list[list[str]]) -> str:
    lines = [f"| {header} |", "|---" * (header.count("|") + 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


# table 1


def exact_misses(row: Row, floor: Row | None) -> list[str]:
    """Return which bars of table 1 the means over sets of a row miss.

    The mean error may exceed that of perfect draws by .05 sd; sd ratios lie within .03
    of 1, .05 for 1000 observations; MMD^2 is at most .002.

    Example:
        >>> row = {"num_observations": 8, "mean": "0.1 0.1", "sd": "1 1.1", "mmd2": 0}
        >>> exact_misses(row, {"mean": "0.04 0.02"})
        ['mean', 'sd']
    """
    means = {key: mean(split(row[key])) for key in ("mean", "sd", "mmd2")}
    least = mean(split(floor["mean"])) if floor else 0.0
    width = 0.05 if row["num_observations"] == 1000 else 0.03
    met = {  # comparisons with NaN are false: not met
        "mean": means["mean"] <= least + 0.05,
        "sd": abs(means["sd"] - 1) <= width,
        "mmd2": means["mmd2"] <= 0.002,
    }
    return [key for key in met if not met[key]]


def exact_table(rows: list[Row]) -> str:
    """Return table 1: "mean (median; worst)" over sets."""
    table = []
    for problem, n in _unique(rows, "problem", "num_observations"):
        some = select(rows, problem=problem, num_observations=n)
        floor = next(iter(select(some, method=FLOOR)), None)
        for row in some:
            bar = ""
            if row["method"] in OWN_EXACT and row["method"] not in BUILT_LIKE_PEERS:
                bar = ", ".join(exact_misses(row, floor)) or "met"
            table.append(
                [problem, str(n), row["method"], str(row["sets"])]
                + [summary(row["mean"]), summary(row["sd"], centre=1.0)]
                + [summary(row["mmd2"], 4)]
                + [f"{mean(split(row['evaluations'])):.0f}"]
                + [f"{mean(split(row['cpu'])):.2f}", bar]
            )
    table.sort(key=lambda line: (line[0], int(line[1])))
    header = "problem | n | method | sets | mean error / sd | sd ratio | MMD^2 | "
    return _lines(header + "evaluations | CPU s | bar", table)


# table 2


def per_set(rows: list[Row], key: str = "mmd2") -> dict[tuple[int, int], float]:
    """Return a figure of every network (its seed) and fresh set."""
    found = {}
    for row in rows:
        for k, value in enumerate(split(row[key])):
            found[row["seed"], row["first_set"] + k] = value
    return found


def excess(default: list[Row], peer: list[Row]) -> tuple[float, float, int]:
    """Return mean and standard error of default - peer over shared networks and sets.

    The standard error is infinite for fewer than two shared ones. Sets on which the
    peer diverged are left out; where the default did, the difference is infinite.
    """
    ours, theirs = per_set(default), per_set(peer)
    both = ours.keys() & {key for key in theirs if isfinite(theirs[key])}
    shared = [ours[key] - theirs[key] for key in both]
    if not all(map(isfinite, shared)):
        return float("inf"), 0.0, len(shared)
    if not shared:
        return float("nan"), float("inf"), 0
    error = stdev(shared) / len(shared) ** 0.5 if len(shared) > 1 else float("inf")
    return mean(shared), error, len(shared)


def _mean_error(values: list[float], digits: int = 4) -> str:
    if not values:
        return "-"
    finite, text = [value for value in values if isfinite(value)], "diverged"
    if finite:
        text = f"{mean(finite):.{digits}f}"
    if len(finite) > 1:
        text += f" ± {stdev(finite) / len(finite) ** 0.5:.{digits}f}"
    of = f"{len(finite)} of " if len(finite) < len(values) else ""
    return f"{text} ({of}{len(values)})"


def trained_table(rows: list[Row]) -> str:
    """Return table 2: MMD^2 ± standard error (number of networks x sets)."""
    methods = [m for (m,) in _unique(rows, "method")]
    order = sorted(methods, key=lambda m: (m not in OWN, m != DEFAULT))
    peers, table = [m for m in order if m not in OWN], []
    keys = ("problem", "budget", "num_observations")
    for cell in sorted(_unique(rows, *keys)):
        some = select(rows, **dict(zip(keys, cell, strict=True)))
        line = [str(value) for value in cell]
        groups = {m: select(some, method=m) for m in order}
        line += [_mean_error(list(per_set(groups[m]).values())) for m in order]
        gaps = {m: excess(groups[DEFAULT], groups[m]) for m in peers if groups[m]}
        better = [
            f"{m} by {gap:.4f} ± {error:.4f}"
            for m, (gap, error, shared) in gaps.items()
            if shared and gap > (error if shared > 1 else 0.0)
        ]
        verdict = "-" if not groups[DEFAULT] or not gaps else "met"
        table.append([*line, "; ".join(better) or verdict])
    header = " | ".join(["problem", "N", "n", *order, "better than the default"])
    return _lines(header, table)


def modes_table(rows: list[Row]) -> str:
    """Return the errors of mode weights on the bimodal task."""
    flips = [row for row in rows if row["problem"].startswith("flip")]
    table = []
    for n, budget, method in sorted(
        _unique(flips, "num_observations", "budget", "method")
    ):
        some = select(flips, num_observations=n, budget=budget, method=method)
        values = list(per_set(some, "modes").values())
        bar = ""
        if method in OWN:
            bar = "met" if max(values) <= 0.1 else f"{max(values):.2f} > .1"
        within = mean(float(value <= 0.1) for value in values)
        table.append(
            [str(budget), str(n), method, f"{mean(values):.3f}", f"{max(values):.3f}"]
            + [f"{within:.0%} of {len(values)}", bar]
        )
    return _lines("N | n | method | mean error | worst | within .1 | bar", table)


# tables 3 and 4


def bounded_table(rows: list[Row]) -> str:
    """Return table 3, with the time as a multiple of the centre's."""
    table = []
    for (method,) in _unique(rows, "method"):
        centre = [v for r in select(rows, method=method, place="centre") for v in
                  split(r["cpu"])]  # fmt: skip
        for place in PLACES:
            some = select(rows, method=method, place=place)
            if not some:
                continue
            values = {
                key: [v for row in some for v in split(row[key])]
                for key in ("inside", "mean", "sd", "mmd2", "cpu")
            }
            ratio = mean(values["cpu"]) / mean(centre) if centre else float("nan")
            bars = {
                "inside": min(values["inside"]) < 1,
                "mmd2": mean(values["mmd2"]) > 0.02,
                "time": ratio > 2,
            }
            bar = ", ".join(key for key, missed in bars.items() if missed) or "met"
            table.append(
                [method, place, f"{len(values['cpu'])}", f"{min(values['inside']):.4f}"]
                + [f"{mean(values['mmd2']):.4f}", f"{max(values['mmd2']):.4f}"]
                + [f"{mean(values['mean']):.3f}", f"{mean(values['sd']):.3f}"]
                + [f"{mean(values['cpu']):.2f}", f"{ratio:.2f}"]
                + [bar if method in OWN else ""]
            )
    header = "method | true theta | networks x sets | inside, least | MMD^2 | worst | "
    return _lines(header + "mean error | sd ratio | CPU s | of centre's | bar", table)


def cost_table(rows: list[Row]) -> str:
    """Return table 4: medians [least, most] over turns."""
    table = []
    for n, method in sorted(_unique(rows, "num_observations", "method")):
        some = select(rows, num_observations=n, method=method)
        default = select(rows, num_observations=n, method=DEFAULT)
        ours = median(row["cpu"] for row in default) if default else float("nan")
        seconds = [row["cpu"] for row in some]
        if all(isinstance(value, int | float) for value in seconds):
            least, most = min(seconds), max(seconds)
            cpu = f"{median(seconds):.2f} [{least:.2f}, {most:.2f}]"
            ratio = f"{median(seconds) / ours:.1f}"
        else:
            cpu = str(seconds[0])
            over = cpu.startswith(">")
            ratio = f">{float(cpu[1:]) / ours:.1f}" if over else "-"
        memory = [str(some[0][key]) for key in ("peak_mb", "above_mb", "weights")]
        table.append([str(n), method, cpu, ratio, *memory, str(len(some))])
    header = "n | method | CPU s | times the default's | peak MB | above MB | "
    return _lines(header + "weights | turns", table)
