r"""How many simulations is amortized cost estimation worth on a spiking neuron?

`AmortizedCostEstimator` and sbi's NPE learn from the same N simulations of
`simulators.HodgkinHuxley` and are asked for parameters behind the same recordings: of
the model, and of neurons that lack a mechanism (`hodgkin_huxley_data`). A cell is one
network; its figures, by kind of recording and by beta, are means over recordings:

    distance   mean absolute difference of standardized features between the recording
               and a simulation at a posterior draw
    median     the same, median over recordings of the mean over draws
    coverage   how often the central 90 % interval of a parameter holds the truth, well-
               specified recordings only: distance alone is a matter of beta
    outside    fraction of NPE's draws outside the prior, which are drawn again

Targets in training are the simulations, those with 5 to 40 spikes once more, and
widened versions of both. Posteriors of the cost network are drawn by annealed particles
(`amortized_cost.annealing`), one run for all recordings and betas.

Peers: "npe", sbi's NPE_C as it comes; "npe_logit", the same on parameters mapped to the
real line, so that no draw leaves the box; "abc", rejection ABC with the same distance,
the nearest hundredth of the simulations, at least ten.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sbi.inference import NPE_C
from torch import Tensor

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator
from sbi_scoreaug.amortized_cost.annealing import RATIO, AnnealedPosteriors
from sbi_scoreaug.benchmarks.cells import (
    Row,
    benchmark_parser,
    provenance,
    run_cells,
)
from sbi_scoreaug.benchmarks.hodgkin_huxley_data import KINDS, Laboratory, Recordings
from sbi_scoreaug.simulators import HodgkinHuxley

LEVELS = (*(f"{beta:g}" for beta in HodgkinHuxley.betas), "ml")
NUMBERS = (300, 1000, 3000, 10_000)
NUM_PARTICLES, NUM_MOVES, MOVES_AT_THE_END = 200, 4, 20
FEWEST_ACCEPTED = 10
Draws = dict[str, Tensor]
Sampler = Callable[[Tensor, int], Draws]


def main(argv: list[str] | None = None) -> None:
    """Fill in the missing cells of a CSV file, print the tables and draw the figures.

    Args:
        argv: Command line arguments, see `--help`.
    """
    from sbi_scoreaug.benchmarks.hodgkin_huxley_report import report

    parser = benchmark_parser(
        "amortized_cost_hodgkin_huxley", __doc__, "one seed, few numbers"
    )
    parser.set_defaults(out=Path("hodgkin_huxley.csv"))
    parser.add_argument("--cache", type=Path, default=Path("hodgkin_huxley_cache"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--numbers", type=int, nargs="+", default=[*NUMBERS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--no-report", action="store_true", help="only the cells")
    options = parser.parse_args(argv)
    settings = itertools.product(
        options.seeds[:1] if options.quick else options.seeds,
        options.numbers[:1] if options.quick else options.numbers,
        options.methods,
        (2 if options.quick else 10,),
    )
    keys = ("seed", "num_simulations", "method", "num_recordings")
    cells: list[Row] = [dict(zip(keys, values, strict=True)) for values in settings]
    if not options.report:
        Laboratory(options.cache).pool()
        function = partial(run_cell, cache=options.cache)
        run_cells(cells, function, options.out, options.jobs)
    if options.no_report:
        return
    made = provenance("amortized_cost_hodgkin_huxley")
    print(report(options.out, Laboratory(options.cache), made))


def run_cell(
    seed: int,
    num_simulations: int,
    method: str,
    num_recordings: int,
    cache: Path,
    num_draws: int = 16,
) -> Row:
    """Train one network and return its figures, one column each."""
    lab = Laboratory(cache)
    theta, x = lab.training_set(num_simulations, seed)
    recordings = {kind: lab.recordings(kind, num_recordings) for kind in KINDS}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        sample = METHODS[method](lab, theta, x)
        trained = time.process_time()
        x_o = torch.cat([recorded.x for recorded in recordings.values()])
        draws = sample(x_o, 100)
    row: Row = {"cpu_train": trained - start, "cpu_sample": time.process_time() - start}
    row["cpu_sample"] -= row["cpu_train"]
    row["beta_ml"] = float(draws.pop("beta_ml", torch.tensor(math.nan)))
    row["outside"] = float(draws.pop("outside", torch.tensor(math.nan)))
    torch.save(draws, cache / f"draws_{method}_{num_simulations}_{seed}.pt")
    distances = _distances(lab, draws, x_o, num_draws)
    for level in LEVELS:
        row |= _figures(level, draws, distances, recordings)
    return row


def _distances(lab: Laboratory, draws: Draws, x_o: Tensor, num_draws: int) -> Draws:
    """Simulate at some draws of each level; return distances `(num, num_draws)`."""
    some = torch.stack([theta[:, :num_draws] for theta in draws.values()])
    x = lab.simulate(some.flatten(0, 2)).unflatten(0, some.shape[:3])
    distance = (x - x_o[:, None]).abs().mean(dim=3)
    return dict(zip(draws, distance, strict=True))


def _figures(
    level: str, draws: Draws, distances: Draws, recordings: dict[str, Recordings]
) -> Row:
    """Return the columns of one level, NaN for what the method does not have."""
    row: Row = {}
    start = 0
    for kind, recorded in recordings.items():
        rows = slice(start, start + len(recorded.x))
        start += len(recorded.x)
        mean = median = coverage = math.nan
        if level in draws:
            each = distances[level][rows].mean(dim=1)
            mean, median = each.mean().item(), each.median().item()
            low, high = draws[level][rows].quantile(torch.tensor([0.05, 0.95]), dim=1)
            inside = (recorded.theta >= low) & (recorded.theta <= high)
            coverage = inside.float().mean().item()
        row |= {f"distance_{kind}_{level}": mean, f"median_{kind}_{level}": median}
        if kind == "well":
            row[f"coverage_{level}"] = coverage
    return row


def train_ace(lab: Laboratory, theta: Tensor, x: Tensor) -> Sampler:
    """Train a cost network; its sampler returns a level for each beta."""
    trainer = AmortizedCostEstimator(lab.prior, "mae", show_progress_bars=False)
    trainer.append_simulations(theta, x).append_targets(x[lab.is_target(x)])
    estimator = trainer.train()
    beta_ml = trainer.calibrate_beta("ml").beta

    @torch.no_grad()
    def sample(x_o: Tensor, num_draws: int) -> Draws:
        levels = [*HodgkinHuxley.betas, beta_ml]
        found = {}
        num_particles = max(num_draws, NUM_PARTICLES)
        particles = AnnealedPosteriors(
            estimator, lab.prior, x_o, num_particles, NUM_MOVES
        )
        for beta, level in sorted(zip(levels, LEVELS, strict=True)):
            steps = math.ceil(math.log(beta / (particles.beta or 0.1), RATIO))
            start = particles.beta or 0.1
            for step in range(1, steps):
                particles.anneal_to(start * (beta / start) ** (step / steps))
            particles.num_moves = MOVES_AT_THE_END
            particles.anneal_to(beta)
            particles.num_moves = NUM_MOVES
            order = torch.randperm(num_particles)[:num_draws]
            found[level] = particles.theta[:, order].clone()
        return {**found, "beta_ml": torch.tensor(beta_ml)}

    return sample


def train_npe(lab: Laboratory, theta: Tensor, x: Tensor) -> Sampler:
    """Train sbi's NPE; draws outside the prior are drawn again, as the host does."""
    trainer = NPE_C(lab.prior, show_progress_bars=False)
    flow = trainer.append_simulations(theta, x).train()

    @torch.no_grad()
    def sample(x_o: Tensor, num_draws: int) -> Draws:
        theta = flow.sample(torch.Size([20 * num_draws]), x_o).transpose(0, 1)
        inside = lab.prior.log_prob(theta).isfinite()
        # inside first; where too few are, the rest is moved to the nearest edge
        order = inside.float().argsort(dim=1, descending=True, stable=True)
        theta = theta.gather(1, order.unsqueeze(2).expand_as(theta))[:, :num_draws]
        theta = theta.clamp(lab.prior.base_dist.low, lab.prior.base_dist.high)  # type: ignore[attr-defined]
        return {LEVELS[0]: theta, "outside": 1 - inside.float().mean()}

    return sample


def train_npe_logit(lab: Laboratory, theta: Tensor, x: Tensor) -> Sampler:
    """Train sbi's NPE on logits of the box, where no draw can leave it."""
    low, high = lab.prior.base_dist.low, lab.prior.base_dist.high  # type: ignore[attr-defined]
    trainer = NPE_C(show_progress_bars=False)
    trainer.append_simulations(((theta - low) / (high - low)).logit(eps=1e-6), x)
    flow = trainer.train()

    @torch.no_grad()
    def sample(x_o: Tensor, num_draws: int) -> Draws:
        logits = flow.sample(torch.Size([num_draws]), x_o).transpose(0, 1)
        return {LEVELS[0]: low + (high - low) * logits.sigmoid()}

    return sample


def keep_nearest(lab: Laboratory, theta: Tensor, x: Tensor) -> Sampler:
    """Rejection ABC: parameters of the nearest simulations, nothing is trained."""
    accepted = max(FEWEST_ACCEPTED, len(x) // 100)

    def sample(x_o: Tensor, num_draws: int) -> Draws:
        rows = torch.cdist(x_o, x, p=1).topk(accepted, largest=False).indices
        chosen = torch.randint(accepted, (len(x_o), num_draws))
        return {LEVELS[0]: theta[rows.gather(1, chosen)]}

    return sample


METHODS: dict[str, Callable[[Laboratory, Tensor, Tensor], Sampler]] = {
    "ace": train_ace,
    "npe": train_npe,
    "npe_logit": train_npe_logit,
    "abc": keep_nearest,
}
