"""Table 4 of `amortized_cost`: time of sampling, and memory of training.

Training times stand in the cells of table 1. Here are the CPU seconds of 1000 slice
samples from our posterior and from NLE's with the same settings of sbi's sampler, in
turn, and the peak memory of training in a fresh process, above what it had with the
simulations at hand (read from Linux's /proc).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings

import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters

from sbi_scoreaug.benchmarks.amortized_cost_methods import ace_trainer
from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.simulators import TwoMoons

CHAINS = MCMCPosteriorParameters(num_chains=20, warmup_steps=20, thin=1)

MEMORY_PROGRAM = """
import json, sys, warnings
from pathlib import Path
import torch
from sbi_scoreaug.amortized_cost import AmortizedCostEstimator
from sbi_scoreaug.simulators import TwoMoons

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
warnings.simplefilter("ignore")
number, targets, cost_net = json.loads(sys.argv[1])
task = TwoMoons()

def train(number, targets):
    theta = task.prior.sample((number,))
    trainer = AmortizedCostEstimator(
        task.prior, "mse", cost_net=cost_net, show_progress_bars=False
    )
    trainer.append_simulations(theta, task(theta))
    if targets:
        trainer.append_targets(task(task.prior.sample((targets,))))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak()
    trainer.train(max_num_epochs=2)
    return before

train(200, 0)  # loads what is loaded once
before = train(number, targets)
print(json.dumps([before, peak()]))
"""


def sampling_cell(num_simulations: int, seed: int, num_samples: int) -> Row:
    """Return CPU seconds of slice samples, ours and NLE's, on TwoMoons."""
    from sbi.inference import NLE_A

    task = TwoMoons()
    torch.manual_seed(seed)
    theta = task.prior.sample((num_simulations,))
    x = task(theta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = ace_trainer(task)
        ours.append_simulations(theta, x).train(max_num_epochs=10)
        theirs = NLE_A(task.prior, show_progress_bars=False)
        theirs.append_simulations(theta, x).train(max_num_epochs=10)
        posteriors = {
            "ace": ours.build_posterior(beta=100.0, posterior_parameters=CHAINS),
            "nle": theirs.build_posterior(posterior_parameters=CHAINS),
        }
        row: Row = {}
        for name, posterior in posteriors.items():
            start = time.process_time()
            posterior.sample((num_samples,), x=x[:1], show_progress_bars=False)
            row[f"cpu_{name}"] = round(time.process_time() - start, 2)
    return row


def sampling_cells(quick: bool) -> list[Row]:
    """Return the settings of the timed runs of the slice sampler."""
    samples = 100 if quick else 1000
    seeds = (1,) if quick else (1, 2)
    return [
        {"num_simulations": 1000, "seed": seed, "num_samples": samples}
        for seed in seeds
    ]


def memory_cell(num_simulations: int, num_targets: int, cost_net: str) -> Row:
    """Return MiB at the peak, before and during training, of a fresh process."""
    settings = json.dumps([num_simulations, num_targets, cost_net])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, settings],
        check=True,
        capture_output=True,
        text=True,
    )
    before, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return {"peak_before": round(before, 1), "peak": round(peak, 1)}


def memory_cells(quick: bool) -> list[Row]:
    """Return the settings of the runs whose memory is measured."""
    sizes = (
        ((1000, 0),) if quick else ((1000, 0), (10000, 0), (50000, 0), (50000, 50000))
    )
    return [
        {"num_simulations": number, "num_targets": targets, "cost_net": "net"}
        for number, targets in sizes
    ]


def table(sampling: list[Row], memory: list[Row]) -> str:
    """Return both in Markdown."""
    lines = [
        "| slice samples | seed | ACE, CPU s | NLE, CPU s | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['num_samples']} | {r['seed']} | {r['cpu_ace']} | {r['cpu_nle']} | "
        f"{r['cpu_ace'] / r['cpu_nle']:.2f} |"
        for r in sampling
    ]
    lines += [
        "",
        "| N | appended targets | cost network | MiB before training | at the peak | "
        "added | a table of all pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in memory:
        number, targets = r["num_simulations"], r["num_targets"]
        full = 4 * number * (number + targets) / 2**20
        lines.append(
            f"| {number} | {targets} | {r['cost_net']} | {r['peak_before']} | "
            f"{r['peak']} | {r['peak'] - r['peak_before']:.1f} | {full:.0f} |"
        )
    return "\n".join(lines)
