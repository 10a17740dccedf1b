r"""Table 2 of `amortized_cost`: rules for beta where the exact answer is known.

With x = theta + shift + N(0, v I) and the mean squared distance in D dimensions, the
generalized posterior at beta = D / (2 v) is the usual posterior, at which both "ml" and
"coverage" must arrive: 4 on the isotropic Gaussian, 50 on `LinearGaussianCost`. Times a
factor of the distance, the answer falls by that factor.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator, calibrate_beta
from sbi_scoreaug.amortized_cost.point_distances import QuadraticDistance
from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.simulators import LinearGaussianCost

DEFAULT_HELD_OUT = 256  # observations that `calibrate_beta` uses at most


def isotropic() -> LinearGaussianCost:
    """Two dimensions with noise variance 1/4: the answer is 4."""
    return LinearGaussianCost(2, noise_variance=0.25, shift=torch.zeros(2))


PROBLEMS = {"isotropic": isotropic, "linear_gaussian": LinearGaussianCost}


class TimesFactor(QuadraticDistance):
    """The mean squared difference times a factor, still known to be quadratic."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def features(self, x: Tensor) -> Tensor:
        """Return the components of x times the root of the factor."""
        return self.factor**0.5 * x.flatten(1)


class ExactCost(nn.Module):
    """The closed-form cost times a factor, in the shape of a cost network."""

    needs_pairs = False

    def __init__(self, task: LinearGaussianCost, factor: float) -> None:
        super().__init__()
        self.task, self.factor = task, factor
        x = task(task.prior.sample((4000,)))
        distances = factor * task.distance(x, x.flip(0))
        self.cost_scale, self.cost_mean = distances.std(), distances.mean()

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return theta itself."""
        return (theta,)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the targets themselves."""
        return x_t

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return costs `(batch, T)`."""
        mean = encoded[0].unsqueeze(1) + self.task.shift.float()
        squares = (mean - embedded).square().mean(dim=2)
        return self.factor * (squares + self.task.noise_variance)


def cell(
    problem: str,
    network: str,
    factor: float,
    num_simulations: int,
    seed: int,
    num_held_out: int,
) -> Row:
    """Calibrate by both rules on simulations that training did not see."""
    task = PROBLEMS[problem]()
    torch.manual_seed(seed)
    theta = task.prior.sample((num_simulations,))
    x = task(theta)
    start = time.process_time()
    row: Row = {"exact_beta": task.calibrated_beta / factor}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if network == "exact":
            held_out = theta[:num_held_out], x[:num_held_out]
            cost = ExactCost(task, factor)
            for rule in ("ml", "coverage"):
                found = calibrate_beta(
                    cost,  # type: ignore[arg-type]
                    task.prior,
                    *held_out,
                    rule,
                    num_observations=num_held_out,
                )
                row.update({rule: found.beta, f"stderr_{rule}": found.stderr})
        else:
            trainer = AmortizedCostEstimator(
                task.prior, TimesFactor(factor), show_progress_bars=False
            )
            trainer.append_simulations(theta, x).train()
            for rule in ("ml", "coverage"):
                found = trainer.calibrate_beta(rule)
                row.update({rule: found.beta, f"stderr_{rule}": found.stderr})
    row = {key: round(value, 5) for key, value in row.items()}
    return {**row, "cpu": round(time.process_time() - start, 1)}


def cells_of(quick: bool, seeds: Sequence[int]) -> list[Row]:
    """Return the settings of the cells of table 2."""
    networks = [
        ("exact", 1000, DEFAULT_HELD_OUT),
        ("trained", 3000, DEFAULT_HELD_OUT),
        ("exact", 1000, 1000),
    ]
    names = ("problem", "network", "factor", "num_simulations", "seed", "num_held_out")
    return [
        dict(zip(names, settings, strict=True))
        for network, number, held_out in (networks[:1] if quick else networks)
        for seed in (seeds[:1] if quick else seeds)
        for problem in PROBLEMS
        for factor in ((1.0, 7.0) if seed == seeds[0] else (1.0,))
        for settings in [(problem, network, factor, number, seed, held_out)]
    ]


def _order(row: Row) -> tuple[str, str, int, int]:
    return row["problem"], row["network"], row["num_held_out"], row["seed"]


def table(rows: list[Row]) -> str:
    """Return table 2 in Markdown: found beta over the exact one."""
    lines = [
        "| problem | cost | held out | distance times | seed | exact beta | "
        "ml / exact | coverage / exact | standard errors of log beta |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=_order):
        ratios = [row[rule] / row["exact_beta"] for rule in ("ml", "coverage")]
        number = "" if row["network"] == "exact" else f", N = {row['num_simulations']}"
        lines.append(
            f"| {row['problem']} | {row['network']}{number} | {row['num_held_out']} | "
            f"{row['factor']:g} | "
            f"{row['seed']} | {row['exact_beta']:.3g} | {ratios[0]:.3f} | "
            f"{ratios[1]:.3f} | {row['stderr_ml']:.3f}, {row['stderr_coverage']:.3f} |"
        )
    return "\n".join(lines)
