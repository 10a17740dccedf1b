r"""Whether network and model can be trusted at an observation.

With r_i(x_t) = d(x_i, x_t) - f(theta_i, x_t) on held-out pairs, e the error of f, and j
the nearest neighbour of i in theta (difference method, Rice 1984, applied to residuals)

    E r_i^2           = noise + E e_i^2
    E (r_i - r_j)^2/2 = noise + E (e_i - e_j)^2/2   >= noise
    E r_i r_j         = E e_i e_j                   the error that neighbours share

R^2      1 - E r^2 / Var d. The noise is beyond any network, so that the best reaches at
         least 1 - E (r_i - r_j)^2/2 / Var d: a lower bound, tight where simulations are
         dense or the network is good
beta     errors of f by e change log posteriors by beta e: trustworthy up to about
         1 / sqrt(E r_i r_j + its standard error), on average over the prior. The
         standard error makes it cautious, the less so the more simulations there
         are. Errors that neighbours do not share are not seen, which makes it
         optimistic where simulations are sparse
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
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.panels import panels

MAX_SIMULATIONS = 200
MIN_SIMULATIONS = 10
SUSPICIOUS = 0.02
PAIRS_A_ROW = 8
MAX_ROWS = 4000


@dataclass
class CostDiagnosis:
    """What `AmortizedCostEstimator.diagnose` finds.

    Attributes:
        r_squared: Share of the distance's variance that the network explains.
        r_squared_ceiling: What the best network reaches, at least.
        beta: The inverse temperature that was asked about.
        largest_beta: The largest that the network's error allows.
        predictive_cost: Mean cost of posterior draws at `x_o`.
        simulated_costs: The same at held-out simulations, `(num_simulations,)`.
        p_value: Fraction of simulations with at least that cost, `x_o` among them:
            uniform from 1 / (num_simulations + 1) to 1 where the model is right.
        familiar: Whether `x_o` lies among the training targets.
        num_simulations: Held-out simulations behind R^2 and `largest_beta`.

    Example:
        >>> from sbi_scoreaug import AmortizedCostEstimator
        >>> from sbi_scoreaug.simulators import TwoMoons
        >>> problem = TwoMoons()
        >>> theta = problem.prior.sample((300,))
        >>> x = problem(theta)
        >>> trainer = AmortizedCostEstimator(problem.prior, show_progress_bars=False)
        >>> _ = trainer.append_simulations(theta, x).train(max_num_epochs=2)
        >>> diagnosis = trainer.diagnose(x[:1], beta=1.0)
        >>> 0 < diagnosis.p_value <= 1, diagnosis.familiar
        (True, True)
    """

    r_squared: float
    r_squared_ceiling: float
    beta: float
    largest_beta: float
    predictive_cost: float
    simulated_costs: Tensor
    p_value: float
    familiar: bool
    num_simulations: int

    @property
    def can_tell(self) -> bool:
        """Whether there are enough simulations for a p-value below 2 %."""
        return 1 / (len(self.simulated_costs) + 1) < SUSPICIOUS

    @property
    def model_is_suspicious(self) -> bool:
        """Whether hardly any simulation is as hard to meet as the observation.

        False for at least 98 % of observations of a right model; always False where
        `can_tell` is False.
        """
        return self.p_value < SUSPICIOUS

    def __str__(self) -> str:
        if self.model_is_suspicious:
            verdict = "the model cannot come this close to x_o: it is probably wrong"
        elif self.can_tell:
            verdict = "the model can come as close to x_o as to its own simulations"
        else:
            verdict = (
                f"{len(self.simulated_costs)} held-out simulations are too few to tell "
                "whether the model is wrong; pass 50 or more to diagnose(theta=, x=)"
            )
        place = "among" if self.familiar else "outside"
        room = "the rest may all be the simulator's noise"
        if self.r_squared < self.r_squared_ceiling:
            room = f"a better network would reach {self.r_squared_ceiling:.3f} or more"
        return (
            f"R^2 {self.r_squared:.3f} ({room}); beta {self.beta:.3g}, trustworthy up "
            f"to about {self.largest_beta:.3g} (cautious, from {self.num_simulations} "
            "held-out simulations; pass more to diagnose(theta=, x=) to sharpen it); "
            f"x_o lies {place} the training targets; predictive cost "
            f"{self.predictive_cost:.3g}, p = {self.p_value:.3f}: {verdict}."
        )

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the predictive cost among those of simulations.

        Args:
            ax: Matplotlib axes; None for new ones.

        Returns:
            The figure and the axes.
        """
        figure, (axis,) = panels(ax, 1, size=(5.0, 3.0))
        costs = self.simulated_costs.cpu().numpy()
        axis.hist(costs, bins=30, label="held-out simulations")
        axis.axvline(self.predictive_cost, color="black", label="x_o")
        axis.set(xlabel=f"predictive cost at beta = {self.beta:.3g}", ylabel="count")
        axis.set_title(f"p = {self.p_value:.3f}, R² = {self.r_squared:.3f}")
        axis.legend(frameon=False)
        return figure, axis


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
    if len(theta) < MIN_SIMULATIONS:
        raise InvalidInputError(
            f"diagnose: expected at least {MIN_SIMULATIONS} held-out simulations, got "
            f"{len(theta)}. Pass fresh ones to diagnose(theta=..., x=...)."
        )
    with torch.no_grad():
        rows = (theta[:MAX_ROWS], x[:MAX_ROWS])
        variance, error, noise, shared = _errors(potential, distance, *rows)
        together = _stack_events(x_o, x[:MAX_SIMULATIONS])
        costs = predictive_costs(potential, together).cpu()
    known = potential.target_range
    return CostDiagnosis(
        r_squared=1 - error / variance,
        r_squared_ceiling=1 - noise / variance,
        beta=potential.beta,
        largest_beta=shared**-0.5,
        predictive_cost=costs[0].item(),
        simulated_costs=costs[1:],
        p_value=float(p_values(costs[:1], costs[1:])),
        familiar=known is None or bool(known.is_familiar(x_o).all()),
        num_simulations=len(rows[0]),
    )


def predictive_costs(potential: CostBasedPotential, x: Tensor) -> Tensor:
    """Return E_{pi_beta(theta | x)} f(theta, x) `(batch,)` of `x (batch, *shape_x)`."""
    assert potential.prior is not None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        particles = AnnealedPosteriors(potential.estimator, potential.prior, x)
        rung = FIRST_RUNG / float(potential.estimator.cost_scale)
        while rung < potential.beta:
            particles.anneal_to(rung)
            rung *= RATIO
        particles.anneal_to(potential.beta)
    return particles.cost.mean(dim=1)


def p_values(costs: Tensor, simulated_costs: Tensor) -> Tensor:
    """Return ranks from above, in (0, 1], of `costs (batch,)` among simulations'."""
    at_least = (simulated_costs >= costs.unsqueeze(1)).sum(dim=1)
    return (at_least + 1) / (len(simulated_costs) + 1)


def _stack_events(x_o: Tensor, x: Tensor) -> Tensor:
    """Return `x_o` followed by `x`; sets get missing trials to be of one size."""
    if x_o.shape[1:] == x.shape[1:]:
        return torch.cat([x_o, x])
    size = max(x_o.shape[1], x.shape[1])
    padded = [
        torch.cat(
            [e, e.new_full((len(e), size - e.shape[1], e.shape[2]), torch.nan)], 1
        )
        for e in (x_o, x)
    ]
    return torch.cat(padded)


def _errors(
    potential: CostBasedPotential, distance: Distance, theta: Tensor, x: Tensor
) -> tuple[float, float, float, float]:
    """Var d, E r_i^2, E (r_i - r_j)^2/2, and E r_i r_j plus its standard error."""
    estimator = potential.estimator
    if isinstance(estimator, PenalizedCost):  # held-out simulations are valid
        estimator = estimator.valid_cost
    standardized = (theta - theta.mean(dim=0)) / theta.std(dim=0).clamp(min=1e-12)
    between = torch.cdist(standardized, standardized)
    nearest = between.fill_diagonal_(torch.inf).argmin(dim=1)
    rows = torch.arange(len(x), device=x.device)
    values, errors, noises, products = [], [], [], []
    for shift in range(1, min(len(x), PAIRS_A_ROW + 1)):
        x_t = x.roll(shift, dims=0)
        d = distance(x, x_t)
        own = d - estimator(theta, x_t)
        near = distance(x[nearest], x_t) - estimator(theta[nearest], x_t)
        keep = nearest != (rows - shift) % len(x)  # no simulation meets itself
        values.append(d)
        errors.append(own.square())
        noises.append((own - near).square()[keep] / 2)
        products.append(torch.where(keep, own * near, 0.0))
    product = torch.stack(products).mean(dim=0)
    shared = product.mean().clamp(min=0) + product.std() / len(x) ** 0.5
    return (
        float(torch.cat(values).var()),
        float(torch.cat(errors).mean()),
        float(torch.cat(noises).mean()),
        max(float(shared), 1e-30),
    )
