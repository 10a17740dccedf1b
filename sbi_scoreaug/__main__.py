"""The demonstration: the same simulations, without and with their scores.

A Gaussian random field on a 16 x 16 grid, with unknown variance and correlation range,
is simulated 1000 times. sbi's `NRE_A` learns from the fields, with sbi's defaults;
`equipped` is sbi's loss with the smooth classifier, schedule and steps of
`ScoreAugmentedNRE`, which learns from the fields and their exact scores. All have the
same embedding net and are compared with the exact posterior.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sbi_scoreaug import simulate_with_score
from sbi_scoreaug.benchmarks.metrics import posterior_errors, ratio_log_posterior
from sbi_scoreaug.benchmarks.problems import FieldEmbedding
from sbi_scoreaug.benchmarks.training import (
    Simulations,
    build_trainer,
    epochs_for,
    train,
)
from sbi_scoreaug.panels import save_figure
from sbi_scoreaug.simulators import GaussianProcessField

LABELS = {
    "NRE_A": "sbi NRE_A",
    "equipped": "equipped, no scores",
    "score": "ScoreAugmentedNRE",
}
NUM_FRESH, NUM_SHOWN = 20, 3


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demonstration; see `python -m sbi_scoreaug --help`."""
    parser = argparse.ArgumentParser(
        "python -m sbi_scoreaug",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smaller, under 40 s")
    parser.add_argument("--out", type=Path, default=Path("."), help="for the picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    grid_size, num_simulations, steps = (
        (8, 500, 1000)
        if options.quick
        else (
            16,
            1000,
            1500,
        )
    )

    torch.set_num_threads(1)  # the networks are small: more threads are slower
    simulator = GaussianProcessField(grid_size)
    print(f"Simulating {num_simulations} fields of {grid_size} x {grid_size} ...")
    start = time.process_time()
    theta, x, score = simulate_with_score(
        simulator,
        simulator.prior,
        num_simulations,
        simulation_batch_size=100,
        seed=options.seed,
    )
    cpu_simulate = time.process_time() - start
    simulations = Simulations(theta, x, score, cpu_simulate, 0.0)

    estimators, seconds = {}, {}
    for method, label in LABELS.items():
        print(f"Training {label} ...")
        torch.manual_seed(options.seed)
        trainer = build_trainer(
            method,
            simulator.prior,
            FieldEmbedding(),
            "none",
            show_progress_bars=True,
        )
        settings: dict[str, Any] = {}
        if method != "NRE_A":
            epochs = epochs_for(steps, num_simulations)
            settings = {"max_num_epochs": epochs, "learning_rate": 2e-3}
        estimators[method], seconds[method], _ = train(trainer, simulations, **settings)
        print()

    torch.manual_seed(options.seed + 1)
    theta_o = simulator.prior.sample((NUM_FRESH,))
    x_o = simulator(theta_o)
    exact = [simulator.exact_posterior(row) for row in x_o]
    surrogates = {
        method: [ratio_log_posterior(net, simulator.prior, row) for row in x_o]
        for method, net in estimators.items()
    }
    kl = {
        method: np.array(
            [posterior_errors(p, q)[0] for p, q in zip(exact, all_q, strict=True)]
        )
        for method, all_q in surrogates.items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sbi_scoreaug_demo.png"
    save_figure(draw(theta_o, x_o, exact, surrogates), path, dpi=130)
    print(table(kl, seconds, cpu_simulate))
    print(f"\nThe exact posterior and both estimates are drawn in {path}.")


def table(
    kl: dict[str, np.ndarray], seconds: dict[str, float], cpu_simulate: float
) -> str:
    """Return the table of errors and times."""
    lines = [
        f"\nOver {NUM_FRESH} fresh observations; simulating with scores took "
        f"{cpu_simulate:.1f} CPU s.\n",
        f"{'':20s} {'KL from exact (mean +- s.e.)':>30s} {'training, CPU s':>16s}",
    ]
    for method, label in LABELS.items():
        mean = kl[method].mean()
        error = kl[method].std(ddof=1) / len(kl[method]) ** 0.5
        lines.append(
            f"{label:20s} {f'{mean:.3f} +- {error:.3f}':>30s} {seconds[method]:16.1f}"
        )
    ratio = kl["NRE_A"].mean() / kl["score"].mean()
    times = seconds["score"] / seconds["NRE_A"]
    name = "first over last"
    lines.append(f"{name:20s} {f'{ratio:.1f} times smaller':>30s} {times:14.2f} x")
    return "\n".join(lines)


def draw(
    theta_o: Tensor, x_o: Tensor, exact: list[Any], surrogates: dict[str, list[Any]]
) -> Figure:
    """Draw field, exact posterior and both estimates for the first observations."""
    columns = ["observed field", "exact posterior", *LABELS.values()]
    figure = Figure(figsize=(12.5, 2.5 * NUM_SHOWN), layout="constrained")
    axes = figure.subplots(NUM_SHOWN, len(columns))
    for i in range(NUM_SHOWN):
        p = exact[i]
        low, high = p.theta.min(0).values, p.theta.max(0).values
        images = [p.probs]
        images += [(q[i](p.theta)).double().softmax(0) for q in surrogates.values()]
        axes[i, 0].imshow(x_o[i], cmap="RdBu_r")
        axes[i, 0].set(xticks=[], yticks=[])
        for ax, image in zip(axes[i, 1:], images, strict=True):
            ax.imshow(
                image.reshape(tuple(p.shape)).T,
                origin="lower",
                extent=(low[0], high[0], low[1], high[1]),
                aspect="auto",
                cmap="magma",
                vmin=0,
                vmax=float(p.probs.max()),
            )
            ax.plot(*theta_o[i], "+", color="cyan", markersize=9)
            ax.tick_params(labelleft=ax is axes[i, 1])
        axes[i, 1].set_ylabel("log range")
    for ax, title in zip(axes[0], columns, strict=True):
        ax.set_title(title)
    for ax in axes[-1, 1:]:
        ax.set_xlabel("log variance")
    return figure


if __name__ == "__main__":
    main()
