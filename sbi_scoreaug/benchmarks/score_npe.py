r"""Samplers of sets with exact scores: what error is the sampler's alone?

For each problem and number n of observations, fresh sets are drawn, every sampler runs
on the exact scores of single observations, and its samples are held against exact ones:

    mean      mean over coordinates of |mean - exact mean| / exact sd
    sd        mean over coordinates of sd / exact sd
    MMD^2     unbiased, Gaussian kernel, median heuristic, 1000 against 1000 samples
    calls     evaluations of the composed score;    CPU    seconds

*Perfect draws* are a second exact sample: the floor of all figures. Peers are sbi's
iid methods with its Euler-Maruyama sampler (500 steps), given the same exact scores.

    python -m sbi_scoreaug.benchmarks score_npe [--quick]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator
from torch import Tensor, nn

from sbi_scoreaug.score_npe import ComposedScore, VPSchedule, sample_set
from sbi_scoreaug.simulators import (
    GaussianGaussian,
    GaussianMixtureLikelihood,
    LinearGaussianMixture,
    SignFlip,
)

SCHEDULE, NUM_SAMPLES = VPSchedule(), 1000
PROBLEMS: dict[str, Callable[[], LinearGaussianMixture]] = {
    "Gaussian": GaussianGaussian,
    "correlated": lambda: GaussianGaussian(correlation=0.8),
    "unequal": lambda: GaussianGaussian(variances=torch.logspace(-2, 2, 10)),
    "mixture": GaussianMixtureLikelihood,
    "flip .5": lambda: SignFlip(0.5),
    "flip .7": lambda: SignFlip(0.7),
}
OWN: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, polish": {"polish": True},
    "auto, polish, jump": {"polish": True, "jump": True},
    "gauss": {"sampler": "gauss"},
    "composed": {"sampler": "composed"},
    "langevin": {"sampler": "langevin"},
}
SLOW = {"gauss": 32, "langevin": 8}
PEERS, LARGEST_PEER = ("fnpe", "gauss", "auto_gauss"), 8

Result = tuple[Tensor, float, float]


class ExactScores(VPScoreEstimator):
    """A host's estimator whose scores are the simulator's."""

    def __init__(self, simulator: LinearGaussianMixture) -> None:
        dim = torch.Size([simulator.dim_theta])
        super().__init__(nn.Linear(1, 1), dim, simulator.shape_x)  # type: ignore[arg-type]
        self.simulator, self.calls = simulator, 0

    def forward(
        self, input: Tensor, condition: Tensor, time: Tensor, **_: Any
    ) -> Tensor:
        """Return the scores of theta_t `(..., dim)` given x, one time for all."""
        self.calls += 1
        batch = torch.broadcast_shapes(input.shape[:-1], condition.shape[:-1])
        theta = input.expand(*batch, -1).reshape(-1, input.shape[-1])
        x = condition.reshape(-1, condition.shape[-1])
        m = SCHEDULE.mean(float(time.flatten()[0]))
        scores = self.simulator.diffused_score(theta, m, x)
        # The observation of each row: the last batch dimension, or the only one.
        column = torch.arange(len(x)).expand(*batch).reshape(-1, 1, 1)
        index = column.expand(-1, 1, theta.shape[1])
        return scores.gather(1, index).reshape(*batch, -1).to(input)


def run_own(
    simulator: LinearGaussianMixture, x: Tensor, options: dict[str, Any]
) -> Result:
    """Return samples, evaluations and CPU seconds of one of our samplers."""

    def posterior_score(theta: Tensor, t: float, x: Tensor) -> Tensor:
        return simulator.diffused_score(theta, SCHEDULE.mean(t), x)

    score, start = ComposedScore(posterior_score, x), time.process_time()
    samples, diagnostics = sample_set(
        score, SCHEDULE, NUM_SAMPLES, simulator.dim_theta, **options
    )
    return samples, diagnostics.evaluations, time.process_time() - start


def run_peer(simulator: LinearGaussianMixture, x: Tensor, iid_method: str) -> Result:
    """Return samples, evaluations and CPU seconds of one of the host's methods."""
    estimator, start = ExactScores(simulator), time.process_time()
    posterior = VectorFieldPosterior(estimator, simulator.prior)
    samples = posterior.sample(
        (NUM_SAMPLES,),  # type: ignore[arg-type]
        x=x.float(),
        iid_method=iid_method,  # type: ignore[arg-type]
        show_progress_bars=False,
        reject_outside_prior=False,
    )
    return samples.double(), estimator.calls, time.process_time() - start


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two samples of equal size."""
    both, num = torch.cat([a, b]), len(a)
    squares = torch.cdist(both, both).square()
    kernel = (-squares / squares[squares > 0].median()).exp().fill_diagonal_(0)
    within = (kernel[:num, :num].sum() + kernel[num:, num:].sum()) / (num * (num - 1))
    return float(within - 2 * kernel[:num, num:].mean())


def errors(samples: Tensor, exact: Tensor) -> list[float]:
    """Error of the mean in sd, ratio of sd, and squared MMD."""
    mean, std = exact.mean(0), exact.std(0)
    shift = float(((samples.mean(0) - mean) / std).abs().mean())
    ratio = float((samples.std(0) / std).mean())
    return [shift, ratio, squared_mmd(samples, exact[: len(samples)])]


def run_cell(problem: str, num_observations: int, args: argparse.Namespace) -> None:
    """Print one row for each method."""
    simulator, rows = PROBLEMS[problem](), {}
    for k in range(args.sets):
        torch.manual_seed(args.seed + k)
        theta = simulator.prior.sample(torch.Size([1])).double()
        x = simulator(theta.expand(num_observations, -1))
        exact = simulator.reference_samples(2 * NUM_SAMPLES, x)
        runs: dict[str, Callable[[], Result]] = {}
        for name, options in OWN.items():
            if num_observations <= SLOW.get(name, 10_000) and name in args.methods:
                runs[name] = lambda o=options: run_own(simulator, x, o)  # noqa: B023
        if num_observations <= LARGEST_PEER and args.peers:
            for name in PEERS:
                runs[f"sbi {name}"] = lambda o=name: run_peer(simulator, x, o)  # noqa: B023
        perfect = simulator.reference_samples(NUM_SAMPLES, x)
        runs["perfect draws"] = lambda: (perfect, 0, 0.0)  # noqa: B023
        for name, run in runs.items():
            samples, calls, seconds = run()
            row = [*errors(samples, exact), float(calls), seconds]
            rows.setdefault(name, []).append(row)
    for name, values in rows.items():
        mean = torch.tensor(values).nanmean(0).tolist()
        print(
            f"{problem:11s} n={num_observations:<5d}{name:20s} mean {mean[0]:6.3f}  "
            f"sd {mean[1]:6.3f}  MMD^2 {mean[2]:8.4f}  calls {mean[3]:7.0f}  "
            f"CPU {mean[4]:7.2f}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; `--quick` takes about two minutes."""
    parser = argparse.ArgumentParser(prog="score_npe", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sets", type=int, default=None, help="sets a cell")
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    args = parser.parse_args(argv)
    args.sets = args.sets or (2 if args.quick else 10)
    args.methods = [m for m in OWN if not (args.quick and m == "langevin")]
    for problem in PROBLEMS:
        gaussian = problem in ("Gaussian", "correlated", "unequal")
        sizes = [1, 2, 8, 32, 100, 1000] if gaussian else [1, 2, 8, 32]
        for n in [2, 8] if args.quick else sizes:
            run_cell(problem, n, args)


if __name__ == "__main__":
    main()
