r"""Draws and figures of a fitted method at given observations.

With one or two parameters an energy is tabulated on a grid: densities, their total
variation, means and draws are exact up to the width of a cell. With more, particles of
all observations are annealed together (`amortized_cost.annealing`), and the total
variation is a self-normalised sum over wide draws (`metrics`). The method `exact` goes
the same way: its figures tell what sampler and test add.

Figures of one observation, with f the learned and c the exact cost, p and q the
posteriors exp(-beta c) p(theta) and exp(-beta f) p(theta), E over draws of q:

    error     E_p |f - c| over the standard deviation of c among prior draws
    bound     1/2 + TV(p, q) / 2: what no classifier can exceed
    c2st      accuracy of a classifier that tells draws of p from draws of q
    distance  E_q c(theta, x_o): the expected distance of a predictive simulation
    excess    distance minus the least c at any theta
    coverage  share of parameters inside the central 90 % interval of q
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.amortized_cost.annealing import RATIO, AnnealedPosteriors
from sbi_scoreaug.benchmarks.amortized_cost_methods import Fit
from sbi_scoreaug.benchmarks.amortized_cost_two_sample import two_sample_accuracies
from sbi_scoreaug.benchmarks.metrics import posterior_errors
from sbi_scoreaug.simulators import CostSimulator
from sbi_scoreaug.simulators.grid import theta_grid

FIGURES = ("error", "bound", "c2st", "distance", "excess", "coverage")
Figures = dict[str, float]
POINTS_PER_AXIS = {1: 1000, 2: 200}
NUM_SAMPLES, NUM_PARTICLES = 1000, 500
NUM_TESTED = 3  # observations for the classifier; the bound is over all
NUM_MOVES = 4  # on every rung
REPEATS = 6  # of these moves at a temperature that is asked for
TEST_10D = {"num_steps": 200, "learning_rate": 2e-3}


def measure(
    task: CostSimulator, fit: Fit, x: Tensor, truth: Tensor, compare: bool
) -> list[Figures]:
    """Return mean figures for each temperature of `fit`.

    Args:
        task: The problem.
        fit: A trained method.
        x: Observations `(num_observations, *shape_x)`.
        truth: Their parameters `(num_observations, dim_theta)`, for the coverage.
        compare: Whether to compare with the exact generalized posteriors.
    """
    with torch.no_grad():
        if fit.draw is not None:
            draws = torch.stack([fit.draw(row[None], NUM_SAMPLES) for row in x])
            return [_predictive(task, draws, x, truth, least_costs(task, x))]
        if isinstance(task.prior, BoxUniform):
            return _on_grid(task, fit, x, truth, compare)
        return _of_particles(task, fit, x, truth, compare)


def _predictive(
    task: CostSimulator, draws: Tensor, x: Tensor, truth: Tensor, least: Tensor
) -> Figures:
    """Figures from draws `(num_observations, num_samples, dim_theta)` alone."""
    pairs = zip(draws, x, strict=True)
    cost = torch.stack([task.expected_cost(d, row[None]) for d, row in pairs])
    figures: Figures = dict.fromkeys(FIGURES, math.nan)
    figures["distance"] = cost.mean().item()
    figures["excess"] = (cost.mean(dim=1) - least).mean().item()
    figures["coverage"] = coverage(draws, truth)
    return figures


def coverage(draws: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """Share of `truth (B, dim)` in the central intervals of `draws (B, n, dim)`."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = draws.quantile(tails, dim=1)
    return ((truth >= low) & (truth <= high)).float().mean().item()


def least_costs(task: CostSimulator, x: Tensor) -> Tensor:
    """The least expected cost at any theta in the prior's support, `(len(x),)`."""
    if not isinstance(task.prior, BoxUniform):
        return torch.full((len(x),), task.noise_variance)  # type: ignore[attr-defined]
    grid = theta_grid(task.prior, task.points_per_axis)  # type: ignore[attr-defined]
    return torch.stack([task.expected_cost(grid, row[None]).min() for row in x])


def tabulate(energy, theta: Tensor, x: Tensor) -> Tensor:  # noqa: ANN001
    """Energies `(num_observations, num_theta)`."""
    encoded, embedded = energy.encode(theta), energy.embed(x)
    rows = [energy.cost(encoded, row[None, None]).squeeze(1) for row in embedded]
    return torch.stack(rows)


def _on_grid(
    task: CostSimulator, fit: Fit, x: Tensor, truth: Tensor, compare: bool
) -> list[Figures]:
    assert isinstance(task.prior, BoxUniform)
    points = POINTS_PER_AXIS[task.dim_theta]
    theta = theta_grid(task.prior, points)
    width = (task.prior.base_dist.high - task.prior.base_dist.low) / points  # type: ignore[union-attr]
    energy = tabulate(fit.energy, theta, x).double()
    cost = torch.stack([task.expected_cost(theta, row[None]) for row in x]).double()
    least, results = least_costs(task, x), []
    for temperature in fit.temperatures:
        q = (-temperature * energy).softmax(dim=1)
        draws = draw_cells(q, theta, width)
        figures = _predictive(task, draws, x, truth, least)
        distance = (q * cost).sum(dim=1)  # without the noise of draws
        figures["distance"] = distance.mean().item()
        figures["excess"] = (distance - least).mean().item()
        if compare:
            p = (-temperature * cost).softmax(dim=1)
            error = (p * (energy - cost).abs()).sum(dim=1) / cost.std(dim=1)
            figures["error"] = error.mean().item()
            figures["bound"] = 0.5 + 0.25 * (p - q).abs().sum(dim=1).mean().item()
            others = draw_cells(p[:NUM_TESTED], theta, width)
            accuracies = two_sample_accuracies(others, draws[:NUM_TESTED])
            figures["c2st"] = accuracies.mean().item()
        results.append(figures)
    return results


def draw_cells(probs: Tensor, theta: Tensor, width: Tensor) -> Tensor:
    """Draw `(num_observations, NUM_SAMPLES, dim)` from cells, uniformly inside each."""
    # multinomial sums in single precision: use the inverse of the distribution
    cumulative = probs.cumsum(dim=1)
    uniform = torch.rand(len(probs), NUM_SAMPLES, dtype=probs.dtype)
    cells = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
    centres = theta[cells.clamp(max=len(theta) - 1)]
    return centres + (torch.rand_like(centres) - 0.5) * width


def annealed_draws(
    energy,  # noqa: ANN001
    prior: torch.distributions.Distribution,
    x: Tensor,
    temperatures: tuple[float, ...],
    num_particles: int = NUM_PARTICLES,
) -> list[Tensor]:
    """Particles `(num_observations, num_particles, dim)` at rising temperatures."""
    particles = AnnealedPosteriors(energy, prior, x, num_particles, NUM_MOVES)
    rung = 0.05 / particles.cost.std(dim=1).mean().item()
    draws = []
    for temperature in temperatures:
        while rung < temperature:
            particles.anneal_to(rung)
            rung *= RATIO
        for _ in range(REPEATS):
            particles.anneal_to(temperature)
        draws.append(particles.theta.clone())
    return draws


def _of_particles(
    task: CostSimulator, fit: Fit, x: Tensor, truth: Tensor, compare: bool
) -> list[Figures]:
    particles = NUM_PARTICLES if compare else NUM_PARTICLES // 5
    least = least_costs(task, x)
    every = annealed_draws(fit.energy, task.prior, x, fit.temperatures, particles)
    results = []
    for temperature, draws in zip(fit.temperatures, every, strict=True):
        figures = _predictive(task, draws, x, truth, least)
        if compare:
            figures.update(_against_gaussian(task, fit, x, draws, temperature))
        results.append(figures)
    return results


def _against_gaussian(
    task: CostSimulator, fit: Fit, x: Tensor, draws: Tensor, beta: float
) -> Figures:
    """Compare with the exact posteriors where these are Gaussian."""
    errors, bounds, exact_draws = [], [], []
    anywhere = task.prior.sample((20_000,))
    for row in x:
        exact = task.exact_posterior(row, beta)
        theta = exact.sample((NUM_PARTICLES,))
        exact_draws.append(theta)
        energy = _energy_at(fit, row[None])
        cost = task.expected_cost(theta, row[None])
        scale = task.expected_cost(anywhere, row[None]).std()
        errors.append((energy(theta) - cost).abs().mean() / scale)

        def log_q(theta: Tensor, energy: Callable[[Tensor], Tensor] = energy) -> Tensor:
            return task.prior.log_prob(theta) - beta * energy(theta)

        bounds.append(0.5 + posterior_errors(exact, log_q)[1] / 2)  # type: ignore[arg-type]
    tested = torch.stack(exact_draws[:NUM_TESTED]), draws[:NUM_TESTED]
    return {
        "error": torch.stack(errors).mean().item(),
        "bound": sum(bounds) / len(bounds),
        "c2st": two_sample_accuracies(*tested, **TEST_10D).mean().item(),  # type: ignore[arg-type]
    }


def _energy_at(fit: Fit, x_o: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda theta: tabulate(fit.energy, theta, x_o)[0]
