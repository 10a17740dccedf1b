r"""Table 4 of score_npe: CPU seconds and peak memory of 1000 samples of one set.

Every run has a process of its own: it trains a network for a moment on the 10-D
Gaussian task (cost does not depend on its quality), then samples once. *CPU* is that of
sampling alone. *Peak* is the largest resident memory of the whole process, *above*
what sampling added to the largest before it. sbi's networks are widened to about the
number of weights of ours. Runs of different methods take turns. A run that needs more
than `MAX_SECONDS` of CPU is stopped there, and its row says so: ">"; ours is not.

    python -m sbi_scoreaug.benchmarks.score_npe_cost METHOD N SAMPLES    # one run
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from sbi.inference import NPSE
from sbi.neural_nets import posterior_score_nn

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_trained import OWN, draw
from sbi_scoreaug.benchmarks.training import NoTracker
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.simulators import GaussianGaussian

METHODS = ("ScoreNPE", "NPSE fnpe", "NPSE auto_gauss")
MAX_SECONDS, MAX_GIGABYTES, HOST_WIDTH = 90, 12, 160
LARGEST_PEER = 64  # a peer that is stopped there would be at 1000 too


def peak_megabytes() -> float:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's memory before exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_once(method: str, num_observations: int, samples: int) -> Row:
    """Train for a moment, sample once, and return seconds, memory and weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet: dict[str, Any] = {"show_progress_bars": False, "tracker": NoTracker()}
    simulator = GaussianGaussian()
    theta = simulator.prior.sample(torch.Size([2000]))
    trainer: Any
    if method in OWN:
        trainer = ScoreNPE(simulator.prior, **quiet)
    else:
        wide = posterior_score_nn("mlp", sde_type="vp", hidden_features=HOST_WIDTH)
        trainer = NPSE(simulator.prior, wide, **quiet)
    x = simulator(theta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(theta, x)
        estimator = trainer.train(max_num_epochs=10)
        posterior = trainer.build_posterior(estimator)
        x_set = simulator(theta[:1].expand(num_observations, -1))
        before, start = peak_megabytes(), time.process_time()
        if method not in OWN:
            _limit()
        drawn = draw(method, posterior, x_set, samples)
        seconds = time.process_time() - start
    peak = peak_megabytes()
    weights = sum(p.numel() for p in estimator.parameters())
    return {
        "cpu": round(seconds, 2),
        "peak_mb": round(peak),
        "above_mb": round(peak - before),
        "weights": weights,
        "finite": bool(drawn.isfinite().all()),
    }


def _limit() -> None:
    """Have the system stop this process when sampling takes too much."""
    seconds = round(time.process_time()) + MAX_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    size = MAX_GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def cost_cell(method: str, num_observations: int, samples: int, turn: int) -> Row:
    """Run once in a fresh process; `turn` tells repetitions apart."""
    command = [sys.executable, "-m", __name__, method]
    command += [str(num_observations), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    failed = f">{MAX_SECONDS}" if done.returncode in (-9, -24) else "failed"
    memory = "allocate" in done.stderr or "MemoryError" in done.stderr
    peak = f">{MAX_GIGABYTES * 1024}" if memory else ""
    row = dict.fromkeys(("cpu", "peak_mb", "above_mb", "weights", "finite"), "")
    return {**row, "cpu": failed, "peak_mb": peak}


def cost_cells(quick: bool) -> list[Row]:
    """Return the settings of table 4, methods taking turns."""
    turns = {2: 1} if quick else {8: 2, 64: 2, 1000: 1}
    return [
        {"method": method, "num_observations": n, "samples": 1000, "turn": turn}
        for n, count in turns.items()
        for turn in range(count)
        for method in (METHODS[:2] if quick else METHODS)
        if method in OWN or (n <= LARGEST_PEER and turn == 0)
    ]


if __name__ == "__main__":
    print(json.dumps(run_once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
