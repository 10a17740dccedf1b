r"""How much to trust the observation: the inverse temperature beta.

Posteriors at simulations that training did not see are annealed along a ladder of beta
(`annealing`) until one of four rules (`temperature_rules`) is met. There beta is read.
The curves along the ladder stay with the answer (`calibration`). A rule without a
solution on the ladder warns with the reason.

For a well-specified model and a distance that is a negative log likelihood up to scale,
ml and coverage find the usual posterior. None knows whether an observation is
misspecified. All are unchanged when the distance is multiplied by a constant, beta
falling by the same factor; `scale_free` = beta times the mean distance tells it.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_scoreaug.amortized_cost.annealing import (
    FIRST_RUNG,
    RATIO,
    AnnealedPosteriors,
)
from sbi_scoreaug.amortized_cost.calibration import BetaCalibration
from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.temperature_rules import (
    METHODS,
    condition_of,
    effective_fraction,
    is_beyond,
    solve,
)
from sbi_scoreaug.errors import InvalidInputError

MAX_RUNGS = 56
RUNGS_BEYOND = 3
MIN_OBSERVATIONS = 5
MIN_PARTICLES = 10
POOR_ACCEPTANCE = 0.05


def calibrate_beta(
    estimator: ExpectedCost,
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
    show_progress_bar: bool = False,
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
        show_progress_bar: Whether to show a bar over the ladder.

    Returns:
        The value and its curves.

    Raises:
        InvalidInputError: An option out of range, or fewer than five simulations.

    Example:
        >>> import torch
        >>> from sbi_scoreaug.amortized_cost import CostNet
        >>> from sbi_scoreaug.amortized_cost.point_distances import QuadraticDistance
        >>> from sbi_scoreaug.simulators import TwoMoons
        >>> problem = TwoMoons()
        >>> theta = problem.prior.sample((60,))
        >>> x = problem(theta)
        >>> net = CostNet(theta[:50], x[:50], QuadraticDistance())  # not trained
        >>> calibrate_beta(net, problem.prior, theta[50:], x[50:], "ess").beta > 0
        True
    """
    if method not in METHODS:
        raise InvalidInputError(f"method: expected one of {METHODS}, got {method!r}.")
    fractions = {"level": level, "ess_fraction": ess_fraction, "tolerance": tolerance}
    for name, value in fractions.items():
        if value is None and name == "level":
            continue
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            raise InvalidInputError(f"{name}: expected between 0 and 1, got {value!r}.")
    if len(theta) < MIN_OBSERVATIONS or len(theta) != len(x):
        raise InvalidInputError(
            f"theta, x: expected at least {MIN_OBSERVATIONS} simulations from the "
            f"prior that training did not see, got {len(theta)} and {len(x)}. Pass "
            "fresh ones to calibrate_beta(theta=..., x=...), or a number for beta."
        )
    if num_observations < MIN_OBSERVATIONS or num_particles < MIN_PARTICLES:
        raise InvalidInputError(
            f"num_observations, num_particles: expected at least {MIN_OBSERVATIONS} "
            f"and {MIN_PARTICLES}, got {num_observations} and {num_particles}."
        )
    theta, x = theta[:num_observations], x[:num_observations]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        particles = AnnealedPosteriors(estimator, prior, x, num_particles)
        bar = tqdm(range(MAX_RUNGS), "Calibrating beta", disable=not show_progress_bar)
        ladder = _climb(particles, theta, method, fractions, bar)
    calibration = _read_off(ladder, estimator, method, fractions)
    calibration.warn()
    return calibration


def _climb(
    particles: AnnealedPosteriors,
    theta: Tensor,
    method: str,
    fractions: dict[str, float | None],
    ladder: Iterable[int],
) -> dict[str, Tensor]:
    """Anneal until the rule is satisfied and a few rungs beyond."""
    true_cost, true_log_prior = (
        value.squeeze(1) for value in particles.evaluate(theta.unsqueeze(1))
    )
    fixed = {"true_cost": true_cost, "prior_cost": particles.cost.mean(dim=1)}
    lowest = particles.cost.amin(dim=1)
    rungs: list[dict[str, Tensor]] = []
    beyond = 0
    for rung in ladder:
        beta = FIRST_RUNG * RATIO**rung / float(particles.estimator.cost_scale)
        accept = particles.anneal_to(beta)
        lowest = torch.minimum(lowest, particles.cost.amin(dim=1))
        log_density = particles.log_prior - beta * particles.cost
        own = (true_log_prior - beta * true_cost).unsqueeze(1)
        # the level of the smallest highest-density region with the true parameter
        level = (log_density > own).float().mean(dim=1)
        asked = fractions["level"]
        rungs.append(
            {
                "beta": torch.tensor(beta, dtype=torch.float64),
                "cost": particles.cost.mean(dim=1),
                "inside": 1 - level if asked is None else (level < asked).float(),
                "log_z": particles.log_normalizer.clone(),
                "accept": torch.tensor(accept),
                "lowest": torch.minimum(lowest, _extrapolated(particles)),
            }
        )
        values = condition_of(method, {**_stack(rungs), **fixed}, fractions)
        beyond = beyond + 1 if is_beyond(method, values) else 0
        if beyond > RUNGS_BEYOND:
            break
    recorded = {**_stack(rungs), **fixed}
    return {name: value.cpu() for name, value in recorded.items()}


def _extrapolated(particles: AnnealedPosteriors) -> Tensor:
    """Least cost `(B,)`: E f - b Var f, as E f = min f + k / b and Var f = -dE f/db."""
    variance = particles.cost.var(dim=1)
    return particles.cost.mean(dim=1) - particles.beta * variance


def _stack(rungs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([r[name] for r in rungs]) for name in rungs[0]}


def _read_off(
    ladder: dict[str, Tensor],
    estimator: ExpectedCost,
    method: str,
    fractions: dict[str, float | None],
) -> BetaCalibration:
    """Solve the rule on the ladder and say where the answer is doubtful."""
    betas, true_cost = ladder["beta"], ladder["true_cost"]
    solution = solve(method, betas, condition_of(method, ladder, fractions))
    calibration = BetaCalibration(
        beta=solution.beta,
        method=method,
        scale_free=solution.beta * float(estimator.cost_mean),
        stderr=solution.stderr,
        betas=betas,
        coverage=ladder["inside"].mean(dim=1),
        effective_fraction=effective_fraction(ladder["log_z"]),
        predictive_cost=ladder["cost"].mean(dim=1),
        true_cost=true_cost.mean().item(),
        acceptance=ladder["accept"],
        target_coverage=fractions["level"] or 0.5,
        solved=not solution.failure,
    )
    if solution.failure:
        calibration.warnings.append(
            f"the rule {method!r} has no solution on the ladder from {betas[0]:.2g} to "
            f"{betas[-1]:.2g}, whose nearest end was taken: {solution.failure}"
        )
    calibration.warnings.extend(_doubts(calibration, len(true_cost)))
    return calibration


def _doubts(calibration: BetaCalibration, num_observations: int) -> list[str]:
    """Say why the answer may be wrong."""
    doubts = []
    if calibration.acceptance.min() < POOR_ACCEPTANCE:
        doubts.append(
            f"the annealed particles hardly move (acceptance "
            f"{calibration.acceptance.min():.2g}); compare with MCMC at this beta"
        )
    if calibration.stderr > 0.3:
        doubts.append(
            f"log beta has a standard error of {calibration.stderr:.2g} from "
            f"{num_observations} held-out simulations; pass more to "
            "calibrate_beta(theta=..., x=...)"
        )
    return doubts
