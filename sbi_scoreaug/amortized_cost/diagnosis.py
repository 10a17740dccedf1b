r"""Whether network and model can be trusted at an observation.

R^2      1 - E (d - f)^2 / Var d on held-out pairs. It cannot exceed the share that
         theta and x_t determine; the noise beyond is estimated by the difference
         method (Rice 1984), half the mean squared difference of d between nearest
         neighbours in theta: an upper bound, tight where simulations are dense
beta     errors of f by e change log posteriors by beta e: trustworthy up to 1 / e,
         e the root mean squared error of f beyond the noise, or the resolution of
         that figure where it vanishes
cost     E_{pi_beta(theta | x_o)} f(theta, x_o), among the same for held-out
         simulations. Where nearly all simulations can be met more closely than
         x_o, the model is wrong about it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.annealing import (
    FIRST_RUNG,
    RATIO,
    AnnealedPosteriors,
)
from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.errors import InvalidInputError

MAX_SIMULATIONS = 200
SUSPICIOUS = 0.02


@dataclass
class CostDiagnosis:
    """What `AmortizedCostEstimator.diagnose` finds.

    Attributes:
        r_squared: Share of the distance's variance that the network explains.
        r_squared_ceiling: What the best network would reach, at least.
        beta: The inverse temperature that was asked about.
        largest_beta: The largest that the network's error allows.
        predictive_cost: Mean cost of posterior draws at `x_o`.
        simulated_costs: The same at held-out simulations, `(num_simulations,)`.
        p_value: Fraction of simulations with at least that cost.
        familiar: Whether `x_o` lies among the training targets.
    """

    r_squared: float
    r_squared_ceiling: float
    beta: float
    largest_beta: float
    predictive_cost: float
    simulated_costs: Tensor
    p_value: float
    familiar: bool

    @property
    def model_is_suspicious(self) -> bool:
        """Whether hardly any simulation is as hard to meet as the observation."""
        return self.p_value < SUSPICIOUS

    def __str__(self) -> str:
        verdict = (
            "the model cannot produce data this close to x_o: it is probably wrong"
            if self.model_is_suspicious
            else "the model can come as close to x_o as to its own simulations"
        )
        place = "among" if self.familiar else "outside"
        return (
            f"R^2 {self.r_squared:.3f} (reachable {self.r_squared_ceiling:.3f}); beta "
            f"{self.beta:.3g}, trustworthy up to about {self.largest_beta:.3g}; "
            f"x_o lies {place} the training targets; predictive cost "
            f"{self.predictive_cost:.3g}, p = {self.p_value:.3f}: {verdict}."
        )

    def plot(self) -> Any:
        """Draw the predictive cost among those of simulations; returns a figure."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
        axis.hist(self.simulated_costs.numpy(), bins=30, label="held-out simulations")
        axis.axvline(self.predictive_cost, color="black", label="x_o")
        axis.set(xlabel=f"predictive cost at beta = {self.beta:.3g}", ylabel="count")
        axis.set_title(f"p = {self.p_value:.3f}, R² = {self.r_squared:.3f}")
        axis.legend(frameon=False)
        return figure


@torch.no_grad()
def diagnose(
    potential: CostBasedPotential,
    distance: Distance,
    theta: Tensor,
    x: Tensor,
    x_o: Tensor,
) -> CostDiagnosis:
    """Compare an observation with held-out simulations.

    Args:
        potential: Network, prior and beta.
        distance: The distance, fitted.
        theta: Held-out parameters `(num_simulations, dim_theta)`.
        x: Their simulations `(num_simulations, *shape_x)`.
        x_o: One observation `(1, *shape_x)`.

    Returns:
        The findings.

    Raises:
        InvalidInputError: Several observations, or fewer than ten simulations.
    """
    if len(x_o) != 1:
        raise InvalidInputError(
            f"x_o: expected one observation, got {len(x_o)}. Diagnose them one by one."
        )
    if len(theta) < 10:
        raise InvalidInputError(
            f"diagnose: expected at least ten held-out simulations, got {len(theta)}. "
            "Append more simulations or raise validation_fraction."
        )
    estimator, prior = potential.estimator, potential.prior
    assert prior is not None
    variance, error, noise, resolution = _errors(potential, distance, theta, x)
    beyond_noise = max(error - noise, resolution)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if x_o.shape[1:] != x.shape[1:]:  # sets with fewer trials
            gap = torch.full((1, x.shape[1] - x_o.shape[1], x.shape[2]), torch.nan)
            both = torch.cat([torch.cat([x_o, gap], dim=1), x[:MAX_SIMULATIONS]])
        else:
            both = torch.cat([x_o, x[:MAX_SIMULATIONS]])
        particles = AnnealedPosteriors(estimator, prior, both)
        rung = FIRST_RUNG / float(estimator.cost_scale)
        while rung < potential.beta:
            particles.anneal_to(rung)
            rung *= RATIO
        particles.anneal_to(potential.beta)
    costs = particles.cost.mean(dim=1)
    known = potential.target_range
    return CostDiagnosis(
        r_squared=1 - error / variance,
        r_squared_ceiling=1 - noise / variance,
        beta=potential.beta,
        largest_beta=beyond_noise**-0.5,
        predictive_cost=costs[0].item(),
        simulated_costs=costs[1:],
        p_value=((costs[1:] >= costs[0]).sum().item() + 1) / len(costs),
        familiar=known is None or bool(known.is_familiar(x_o).all()),
    )


def _errors(
    potential: CostBasedPotential, distance: Distance, theta: Tensor, x: Tensor
) -> tuple[float, float, float, float]:
    """Variance of d, squared error of f, noise of d, and the error's resolution."""
    standardized = (theta - theta.mean(dim=0)) / theta.std(dim=0).clamp(min=1e-12)
    between = torch.cdist(standardized, standardized)
    nearest = between.fill_diagonal_(torch.inf).argmin(dim=1)
    values, errors, noises = [], [], []
    for shift in range(1, min(len(x), 9)):
        x_t = x.roll(shift, dims=0)
        d = distance(x, x_t)
        keep = nearest != (torch.arange(len(x)) - shift) % len(x)
        values.append(d)
        errors.append((d - potential.estimator(theta, x_t)).square())
        noises.append((d - distance(x[nearest], x_t)).square()[keep] / 2)
    squared = torch.cat(errors)
    resolution = float(torch.stack(errors).mean(dim=0).std() / len(x) ** 0.5)
    return (
        float(torch.cat(values).var()),
        float(squared.mean()),
        float(torch.cat(noises).mean()),
        max(resolution, 1e-30),
    )
