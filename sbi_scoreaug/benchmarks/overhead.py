"""CPU time of an optimiser step and peak memory of every trainer, against sbi's.

Three variants take turns, round by round, on the same simulations: the class of sbi,
ours without scores, and ours with them. A step's time is the CPU time of the host's
`_train_epoch` (fetching, loss, backward pass, Adam) over the optimiser's steps; `train`
adds validation and everything else. Ratios are of the medians over rounds. Where a
step's time goes is shown by torch's profiler. Memory is the peak of a process of its
own during training above what it had before (read from Linux's /proc).

Bars: without scores at most 1.0 of the host; with scores at most 1.3 with a small MLP
and 1.1 with an embedding net.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    read_rows,
    run_cells,
)
from sbi_scoreaug.benchmarks.overhead_trainers import PAIRS
from sbi_scoreaug.benchmarks.problems import PROBLEMS
from sbi_scoreaug.benchmarks.training import Simulations, simulate

SETTINGS = {"mlp": "LinearGaussian", "convolution": "StudentTField"}
VARIANTS = {"host": (False, False), "plain": (True, False), "score": (True, True)}
BARS = {"plain": {"mlp": 1.0, "convolution": 1.0}}
BARS["score"] = {"mlp": 1.3, "convolution": 1.1}


def prepared(
    name: str, setting: str, variant: str, simulations: Simulations, prior: Any
) -> Any:
    """Return a trainer that has its simulations, and an empty list of times."""
    ours, with_scores = VARIANTS[variant]
    problem = PROBLEMS[SETTINGS[setting]]
    net = None if setting == "mlp" else problem.embedding_net(None)
    torch.manual_seed(0)
    trainer = PAIRS[name].build(ours, prior, net)
    scores = {"score": simulations.score} if with_scores else {}
    trainer.append_simulations(simulations.theta, simulations.x, **scores)
    return trainer


def run_training(trainer: Any, num_epochs: int) -> tuple[float, float]:
    """Return CPU milliseconds of a step, alone and with all that `train` does."""
    seconds, train_epoch = [], trainer._train_epoch

    def timed(*args: Any, **kwargs: Any) -> float:
        start = time.process_time()
        loss = train_epoch(*args, **kwargs)
        seconds.append(time.process_time() - start)
        return loss

    trainer._train_epoch = timed
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum number of epochs")
        trainer.train(max_num_epochs=num_epochs)
    total = time.process_time() - start
    del trainer._train_epoch
    steps = int(next(iter(trainer.optimizer.state.values()))["step"])
    return 1e3 * sum(seconds) / steps, 1e3 * total / steps


def cell(trainer: str, setting: str, num_simulations: int, rounds: int) -> Row:
    """Return milliseconds a step, ratios to the host, and megabytes."""
    simulator = PROBLEMS[SETTINGS[setting]].simulator()
    simulations = simulate(simulator, num_simulations, seed=0)
    steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    totals: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            made = prepared(trainer, setting, variant, simulations, simulator.prior)
            step, total = run_training(made, num_epochs=2)
            steps[variant].append(step)
            totals[variant].append(total)
    row: Row = {}
    for variant in VARIANTS:
        ratios = [a / b for a, b in zip(steps[variant], steps["host"], strict=True)]
        row[f"{variant} ms"] = round(median(steps[variant]), 3)
        row[f"{variant} ratio"] = round(median(ratios), 3)
        row[f"{variant} spread"] = round(max(ratios) - min(ratios), 3)
        row[f"{variant} train ms"] = round(median(totals[variant]), 3)
        make = partial(
            prepared, trainer, setting, variant, simulations, simulator.prior
        )
        row[f"{variant} MB"] = peak_memory(make)
    return row


def peak_memory(make: Callable[[], Any]) -> float:
    """Return the peak in MB of a process while it trains; NaN beyond Linux.

    The process is forked, so what libraries load once is there already.
    """
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(make, sender))
    child.start()
    sender.close()
    megabytes = receiver.recv()
    child.join()
    return round(megabytes, 1)


def _report_peak(make: Callable[[], Any], sender: Any) -> None:
    trainer = make()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak()
    run_training(trainer, num_epochs=1)
    sender.send(_peak() - before)


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def profile(trainer: str, setting: str, variant: str, num_simulations: int) -> str:
    """Return the operations that take most of a training's CPU time, in per cent."""
    simulator = PROBLEMS[SETTINGS[setting]].simulator()
    simulations = simulate(simulator, num_simulations, seed=0)
    made = prepared(trainer, setting, variant, simulations, simulator.prior)
    with torch.profiler.profile(acc_events=True) as profiler:
        run_training(made, num_epochs=1)
    events = list(profiler.key_averages())
    total = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: -event.self_cpu_time_total)
    shares = (f"{e.key} {100 * e.self_cpu_time_total / total:.0f} %" for e in events)
    return f"- {trainer}, {setting}, {variant}: {', '.join(list(shares)[:8])}"


def table(rows: list[Row]) -> str:
    """Return the table of times; a ratio above its bar is bold."""
    lines = [
        "| trainer | network | sbi, ms | without scores | with scores "
        "| all of train: without, with | MB: sbi, without, with |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = []
        for variant in ("plain", "score"):
            ratio = row[f"{variant} ratio"]
            text = f"{ratio:.2f} (spread {row[f'{variant} spread']:.2f})"
            bar = BARS[variant][row["setting"]]
            ratios.append(f"**{text}**" if ratio > bar else text)
        totals = (
            f"{row[f'{variant} train ms'] / row['host train ms']:.2f}"
            for variant in ("plain", "score")
        )
        memory = ", ".join(f"{row[f'{variant} MB']:.0f}" for variant in VARIANTS)
        cells = [row["trainer"], row["setting"], f"{row['host ms']:.2f}", *ratios]
        lines.append(f"| {' | '.join([*cells, ', '.join(totals), memory])} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see `--help`."""
    parser = benchmark_parser("overhead", __doc__, "a minute or two")
    parser.add_argument("--trainers", nargs="+", choices=PAIRS, default=list(PAIRS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = {"mlp": (4000, 9), "convolution": (2000, 9)}
    if options.quick:
        sizes = {"mlp": (1000, 1), "convolution": (500, 1)}
    cells = [
        {"trainer": name, "setting": setting, "num_simulations": n, "rounds": rounds}
        for setting, (n, rounds) in sizes.items()
        for name in options.trainers
        if setting == "mlp" or PAIRS[name].embeds
    ]
    stem = "quick" if options.quick else "overhead"
    path = options.out / f"{stem}.csv"
    if options.report:
        rows = read_rows(path)
    else:
        rows = run_cells(cells, cell, path, options.jobs)
    shown = [name for name in ("NRE_A", "NLE_A", "NPE_C") if name in options.trainers]
    profiles = [profile(name, "mlp", "score", sizes["mlp"][0] // 2) for name in shown]
    report = "\n\n".join(
        [
            "# overhead",
            provenance("overhead", argv),
            str(__doc__).split("\n\n", 1)[1].strip(),
            "Ratios are to sbi's class in the same run; bold is above the bar. Spread: "
            "largest less smallest ratio over 9 rounds.",
            table(rows),
            "## Where the time goes\n\nShares of CPU time by operation of torch.",
            "\n".join(profiles),
        ]
    )
    (options.out / ("quick.md" if options.quick else "README.md")).write_text(
        report + "\n"
    )
    print(report)
