r"""How much to trust the observation: the inverse temperature beta.

Four rules, all from simulations (theta_i, x_i), i = 1 .. B, that training did not see.
With pi_b(theta | x) ~ exp(-b f(theta, x)) p(theta) and E_{i,b} its mean at x_i:

    ml          maximise sum_i log pi_b(theta_i | x_i), which is concave in b:
                    sum_i E_{i,b} f(theta, x_i) = sum_i f(theta_i, x_i)
    coverage    the highest-density regions of pi_b contain the true parameters as often
                as they say: averaged over all levels, or at one `level`
    ess         the largest b at which prior draws keep, in the median over i, an
                effective sample size of `ess_fraction` of their number: what rejection
                and importance sampling can serve
    predictive  the smallest b whose mean excess cost, E_{i,b} f - min f, is at most
                `tolerance` of the prior's

For a well-specified model and a distance that is a negative log likelihood up to scale,
ml and coverage find the usual posterior. None knows whether an observation is
misspecified. All are unchanged when the distance is multiplied by a constant, beta
falling by the same factor; `scale_free` = beta times the mean distance tells it.

E_{i,b} comes from sequential Monte Carlo, annealed in b from the prior along a ladder:
reweight, resample, then differential-evolution Metropolis moves in which each half of
the particles moves along differences of the other half. Reweighted prior draws would do
in few dimensions; in ten, 6 of 5000 are effective. The figure of merit is the least
acceptance rate along the ladder. The normalisers Z_b come for free, and with them the
effective fraction of prior draws, Z_b^2 / Z_2b, however small it is.

References: Gao et al. (2023), arXiv 2305.15208; Del Moral, Doucet & Jasra (2006),
Sequential Monte Carlo samplers; ter Braak (2006), differential evolution MCMC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.amortized_cost.estimator import CostEstimator, PenalizedCost
from sbi_scoreaug.amortized_cost.target_range import ModelWarning
from sbi_scoreaug.errors import InvalidInputError, warn

METHODS = ("ml", "coverage", "ess", "predictive")
FIRST_RUNG, RATIO, MAX_RUNGS = 0.05, math.sqrt(2), 56
RUNGS_BEYOND = 3
MIN_OBSERVATIONS = 5
POOR_ACCEPTANCE = 0.05


@dataclass
class BetaCalibration:
    """An inverse temperature and how it was found.

    Attributes:
        beta: The value.
        method: The rule that gave it.
        scale_free: beta times the mean distance of random pairs.
        stderr: Standard error of log beta from the finite number of simulations, NaN
            for rules without one.
        betas: The ladder `(num_rungs,)`.
        coverage: Mean coverage over all levels (exact: .5), or at `level`.
        effective_fraction: Median effective fraction of prior draws.
        predictive_cost: Mean expected cost of posterior draws.
        true_cost: Mean expected cost at the true parameters.
        acceptance: Acceptance rate of the moves: the figure of merit.
    """

    beta: float
    method: str
    scale_free: float
    stderr: float
    betas: Tensor
    coverage: Tensor
    effective_fraction: Tensor
    predictive_cost: Tensor
    true_cost: float
    acceptance: Tensor
    target_coverage: float = 0.5
    warnings: list[str] = field(default_factory=list)

    def plot(self) -> Any:
        """Draw the three curves over beta; returns a matplotlib figure."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
        curves = {
            "coverage": (self.coverage, self.target_coverage),
            "effective fraction of prior draws": (self.effective_fraction, None),
            "predictive cost": (self.predictive_cost, self.true_cost),
        }
        for axis, (label, (curve, reference)) in zip(axes, curves.items(), strict=True):
            axis.semilogx(self.betas, curve)
            axis.axvline(self.beta, color="black", linestyle="--", linewidth=1)
            if reference is not None:
                axis.axhline(reference, color="gray", linewidth=1)
            axis.set(xlabel=r"$\beta$", ylabel=label)
        axes[1].set_yscale("log")
        figure.suptitle(f"beta = {self.beta:.3g} ({self.method})")
        return figure


class AnnealedPosteriors:
    """Particles of B generalized posteriors, annealed together.

    Args:
        estimator: The cost network.
        prior: The prior.
        x: Observations `(B, *shape_x)`.
        num_particles: Particles P an observation.
        num_moves: Sweeps of moves after each change of beta.

    Attributes:
        theta: Particles `(B, P, dim_theta)`.
        cost: Their costs `(B, P)`.
        log_prior: Their log prior densities `(B, P)`.
        beta: The present inverse temperature, 0 at first.
        log_normalizer: Log E_prior exp(-beta f), `(B,)`.
    """

    def __init__(
        self,
        estimator: CostEstimator | PenalizedCost,
        prior: Distribution,
        x: Tensor,
        num_particles: int = 100,
        num_moves: int = 4,
    ) -> None:
        self.estimator, self.prior, self.num_moves = estimator, prior, num_moves
        self.embedded = estimator.embed(x)
        self.shape = (len(x), num_particles)
        self.theta = prior.sample((len(x) * num_particles,)).unflatten(0, self.shape)
        self.cost, self.log_prior = self.evaluate(self.theta)
        self.beta, self.jump = 0.0, 1.0
        self.log_normalizer = torch.zeros(len(x))

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return cost and log prior `(B, Q)` of `theta (B, Q, dim_theta)`."""
        num_rows = theta.shape[1]
        flat = theta.flatten(0, 1)
        embedded = self.embedded.repeat_interleave(num_rows, dim=0).unsqueeze(1)
        cost = self.estimator.cost(self.estimator.encode(flat), embedded)
        shape = theta.shape[:2]
        return cost.reshape(shape), self.prior.log_prob(flat).reshape(shape)

    def anneal_to(self, beta: float) -> float:
        """Reweight, resample and move to `beta`; return the acceptance rate."""
        log_weights = -(beta - self.beta) * self.cost
        total = log_weights.logsumexp(dim=1)
        self.log_normalizer += total - math.log(self.shape[1])
        chosen = _systematic((log_weights - total.unsqueeze(1)).exp())
        self.theta = self.theta.gather(
            1, chosen.unsqueeze(2).expand(-1, -1, self.theta.shape[2])
        )
        self.cost = self.cost.gather(1, chosen)
        self.log_prior = self.log_prior.gather(1, chosen)
        self.beta = beta
        rates = [self._move() for _ in range(self.num_moves)]
        return sum(rates) / len(rates)

    def _move(self) -> float:
        half = self.shape[1] // 2
        order = torch.randperm(self.shape[1])
        rate = 0.0
        halves = order[:half], order[half:]
        for moving, resting in (halves, halves[::-1]):
            rate += self._move_half(moving, resting) / 2
        self.jump = min(2.0, max(0.05, self.jump * math.exp(rate - 0.3)))
        return rate

    def _move_half(self, moving: Tensor, resting: Tensor) -> float:
        """Move some particles along differences of two others each."""
        here = self.theta[:, moving]
        size = (len(here), len(moving))
        first = torch.randint(len(resting), size)
        second = (first + torch.randint(1, len(resting), size)) % len(resting)
        index = (a.unsqueeze(2).expand_as(here) for a in (first, second))
        others = self.theta[:, resting]
        one, two = (others.gather(1, rows) for rows in index)
        length = self.jump * 2.38 / math.sqrt(2 * here.shape[2])
        spread = self.theta.std(dim=1, keepdim=True)
        jitter = 0.02 * spread * torch.randn_like(here)
        there = here + length * (one - two) + jitter
        cost, log_prior = self.evaluate(there)
        ratio = log_prior - self.log_prior[:, moving]
        ratio = ratio - self.beta * (cost - self.cost[:, moving])
        accept = torch.rand(size).log() < ratio
        self.theta[:, moving] = torch.where(accept.unsqueeze(2), there, here)
        self.cost[:, moving] = torch.where(accept, cost, self.cost[:, moving])
        self.log_prior[:, moving] = torch.where(
            accept, log_prior, self.log_prior[:, moving]
        )
        return accept.float().mean().item()


def _systematic(weights: Tensor) -> Tensor:
    """Systematic resampling: row numbers `(B, P)` for `weights (B, P)`."""
    num_particles = weights.shape[1]
    positions = torch.arange(num_particles) + torch.rand(len(weights), 1)
    cumulative = weights.cumsum(dim=1)
    cumulative = cumulative / cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, positions / num_particles)
    return chosen.clamp(max=num_particles - 1)


@torch.no_grad()
def calibrate_beta(
    estimator: CostEstimator | PenalizedCost,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    method: str = "ml",
    *,
    level: float | None = None,
    ess_fraction: float = 0.01,
    tolerance: float = 0.05,
    num_observations: int = 256,
    num_particles: int = 100,
) -> BetaCalibration:
    """Find the inverse temperature by one of the rules above.

    Args:
        estimator: The cost network.
        prior: The prior.
        theta: Parameters from the prior `(num_simulations, dim_theta)`, not seen in
            training.
        x: Their simulations `(num_simulations, *shape_x)`.
        method: "ml", "coverage", "ess" or "predictive".
        level: For "coverage": the level, in (0, 1); by default all levels on average.
        ess_fraction: For "ess".
        tolerance: For "predictive".
        num_observations: Simulations that are used, at most.
        num_particles: Particles an observation.

    Returns:
        The value and its curves.

    Raises:
        InvalidInputError: An option out of range, or fewer than five simulations.
    """
    if method not in METHODS:
        raise InvalidInputError(f"method: expected one of {METHODS}, got {method!r}.")
    fractions = {"level": level, "ess_fraction": ess_fraction, "tolerance": tolerance}
    for name, value in fractions.items():
        if value is not None and not 0 < value < 1:
            raise InvalidInputError(f"{name}: expected between 0 and 1, got {value}.")
    if len(theta) < MIN_OBSERVATIONS or len(theta) != len(x):
        raise InvalidInputError(
            f"theta, x: expected at least {MIN_OBSERVATIONS} simulations from the "
            f"prior that training did not see, got {len(theta)} and {len(x)}. Pass "
            "fresh ones to calibrate_beta(theta=..., x=...), or a number for beta."
        )
    theta, x = theta[:num_observations], x[:num_observations]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ladder = _climb(estimator, prior, theta, x, method, fractions, num_particles)
    return _read(ladder, estimator, method, fractions)


def _climb(
    estimator: CostEstimator | PenalizedCost,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    method: str,
    fractions: dict[str, float | None],
    num_particles: int,
) -> dict[str, Tensor]:
    """Anneal until the rule is satisfied and a few rungs beyond."""
    particles = AnnealedPosteriors(estimator, prior, x, num_particles)
    true_cost, true_log_prior = (
        value.squeeze(1) for value in particles.evaluate(theta.unsqueeze(1))
    )
    prior_cost = particles.cost.mean(dim=1)
    lowest = particles.cost.amin(dim=1)
    rungs: dict[str, list[Tensor]] = {
        name: [] for name in ("beta", "cost", "inside", "log_z", "accept", "excess")
    }
    beyond = 0
    for rung in range(MAX_RUNGS):
        beta = FIRST_RUNG * RATIO**rung / float(estimator.cost_scale)
        accept = particles.anneal_to(beta)
        lowest = torch.minimum(lowest, particles.cost.amin(dim=1))
        log_density = particles.log_prior - beta * particles.cost
        own = (true_log_prior - beta * true_cost).unsqueeze(1)
        # the level of the smallest highest-density region with the true parameter
        level = ((log_density > own).float().mean(dim=1)).clamp(0, 1)
        asked = fractions["level"]
        inside = 1 - level if asked is None else (level < asked).float()
        rungs["beta"].append(torch.tensor(beta, dtype=torch.float64))
        rungs["cost"].append(particles.cost.mean(dim=1))
        rungs["inside"].append(inside)
        rungs["log_z"].append(particles.log_normalizer.clone())
        rungs["accept"].append(torch.tensor(accept))
        excess = (particles.cost.mean(dim=1) - lowest).mean()
        rungs["excess"].append(excess / (prior_cost - lowest).mean().clamp(min=1e-30))
        beyond += _satisfied(rungs, true_cost, method, fractions)
        if beyond > RUNGS_BEYOND:
            break
    ladder = {name: torch.stack(values) for name, values in rungs.items()}
    return {**ladder, "true_cost": true_cost}


def _effective_fraction(log_z: Tensor) -> Tensor:
    """Median of Z_b^2 / Z_2b; NaN on the last rungs, where Z_2b is not known."""
    octave = round(math.log(2) / math.log(RATIO))
    fraction = torch.full((len(log_z),), math.nan)
    if len(log_z) > octave:
        log_ratio = 2 * log_z[:-octave] - log_z[octave:]
        fraction[:-octave] = log_ratio.median(dim=1).values.exp().clamp(max=1)
    return fraction


def _satisfied(
    rungs: dict[str, list[Tensor]],
    true_cost: Tensor,
    method: str,
    fractions: dict[str, float | None],
) -> bool:
    """Whether the last rung lies beyond the rule's value."""
    if method == "ml":
        return bool(rungs["cost"][-1].mean() < true_cost.mean())
    if method == "coverage":
        target = fractions["level"] or 0.5
        coverage = torch.stack(rungs["inside"]).mean(dim=1)
        # the prior is calibrated as well: wait until coverage has left it upwards
        return bool(coverage[-1] < target and coverage.max() > target + 0.02)
    if method == "ess":
        known = _effective_fraction(torch.stack(rungs["log_z"])).nan_to_num(1.0)
        return bool(known.min() < (fractions["ess_fraction"] or 0))
    return bool(rungs["excess"][-1] < (fractions["tolerance"] or 0))


def _read(
    ladder: dict[str, Tensor],
    estimator: CostEstimator | PenalizedCost,
    method: str,
    fractions: dict[str, float | None],
) -> BetaCalibration:
    """Solve the rule on the ladder and warn where the answer is doubtful."""
    betas, true_cost = ladder["beta"], ladder["true_cost"]
    effective = _effective_fraction(ladder["log_z"])
    target = fractions["level"] or 0.5
    conditions = {
        "ml": ladder["cost"] - true_cost,
        "coverage": ladder["inside"] - target,
        "ess": (effective.nan_to_num(0.0) - fractions["ess_fraction"]).unsqueeze(1),  # type: ignore[operator]
        "predictive": (ladder["excess"] - fractions["tolerance"]).unsqueeze(1),  # type: ignore[operator]
    }
    beta, stderr, solved = _root(betas, conditions[method])
    mean_distance = float(estimator.cost_mean)
    calibration = BetaCalibration(
        beta=beta,
        method=method,
        scale_free=beta * mean_distance,
        stderr=stderr,
        betas=betas,
        coverage=ladder["inside"].mean(dim=1),
        effective_fraction=effective,
        predictive_cost=ladder["cost"].mean(dim=1),
        true_cost=true_cost.mean().item(),
        acceptance=ladder["accept"],
        target_coverage=target,
    )
    if not solved:
        calibration.warnings.append(
            f"the rule {method!r} has no solution on the ladder from {betas[0]:.2g} to "
            f"{betas[-1]:.2g}; the nearest end was taken. The network may have learned "
            "nothing, or the simulator may be nearly deterministic"
        )
    if ladder["accept"].min() < POOR_ACCEPTANCE:
        calibration.warnings.append(
            f"the annealed particles hardly move (acceptance "
            f"{ladder['accept'].min():.2g}); compare with MCMC at this beta"
        )
    if stderr > 0.3:
        calibration.warnings.append(
            f"log beta has a standard error of {stderr:.2g} from {len(true_cost)} "
            "held-out simulations; pass more to calibrate_beta(theta=..., x=...)"
        )
    for message in calibration.warnings:
        warn(f"beta = {beta:.3g} is doubtful: {message}.", ModelWarning)
    return calibration


def _root(betas: Tensor, values: Tensor) -> tuple[float, float, bool]:
    """Where the mean of `values (num_rungs, B)` last crosses zero from above.

    Returns:
        The crossing, interpolated in log beta; the standard error of its logarithm;
        and whether there is one.
    """
    mean = values.mean(dim=1).double()
    log_betas = betas.log()
    crossings = ((mean[:-1] > 0) & (mean[1:] <= 0)).nonzero().flatten()
    if len(crossings) == 0:
        return float(betas[-1 if mean[-1] > 0 else 0]), math.nan, False
    k = int(crossings[-1]) + 1
    slope = (mean[k] - mean[k - 1]) / (log_betas[k] - log_betas[k - 1])
    root = log_betas[k - 1] - mean[k - 1] / slope
    num_observations = values.shape[1]
    stderr = math.nan
    if num_observations > 1:
        stderr = float(values[k].std() / num_observations**0.5 / slope.abs())
    return float(root.exp()), stderr, True
