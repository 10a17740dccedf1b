r"""The four rules for the inverse temperature, as conditions along a ladder of b.

With pi_b(theta | x) ~ exp(-b f(theta, x)) p(theta), E_{i,b} its mean at x_i and
(theta_i, x_i), i = 1 .. B, simulations that training did not see:

    ml          maximise sum_i log pi_b(theta_i | x_i), which is concave in b:
                    sum_i E_{i,b} f(theta, x_i) = sum_i f(theta_i, x_i)
    coverage    the highest-density regions of pi_b contain the true parameters as often
                as they say: averaged over all levels, or at one `level`
    ess         the largest b at which prior draws keep, in the median over i, an
                effective sample size of `ess_fraction` of their number: what rejection
                and importance sampling can serve. That is Z_b^2 / Z_2b of the
                normalisers Z_b, however small it is
    predictive  the smallest b whose mean excess cost, E_{i,b} f - min f, is at most
                `tolerance` of the prior's; min f is extrapolated from the last rung

Each is a quantity that falls through zero at the answer. Where it does not, at neither
end of the ladder nor in between, the rule has no solution, and says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.annealing import RATIO

METHODS = ("ml", "coverage", "ess", "predictive")
RISE, RISE_IN_STDERRS = 0.02, 2.5
NOTHING_LEARNED = (
    "the network may have learned nothing, or theta and x do not belong together"
)
ALWAYS_ABOVE = {
    "ml": "costs at the true parameters are below those of posterior draws at every "
    "beta: the simulator may be nearly deterministic",
    "coverage": "regions contain the true parameters too often at every beta: the "
    "simulator may be nearly deterministic",
    "ess": "prior draws serve every beta: the cost may not depend on theta",
    "predictive": "the excess cost never falls that far: the particles may be stuck",
}
ALWAYS_BELOW = {
    "ml": "costs at the true parameters are not below those of prior draws: "
    + NOTHING_LEARNED,
    "coverage": "coverage never rises above its target: " + NOTHING_LEARNED,
    "ess": "prior draws serve no beta: raise the number of draws, ask for a smaller "
    "ess_fraction, or sample with MCMC",
    "predictive": "the excess cost is that small already: the cost may not depend on "
    "theta",
}


@dataclass(frozen=True)
class Solution:
    """Where a rule is met on the ladder.

    Attributes:
        beta: The answer; without one the nearer end of the ladder.
        stderr: Standard error of its logarithm, NaN where it is not known.
        failure: Why there is no answer; empty if there is one.
    """

    beta: float
    stderr: float
    failure: str = ""


def effective_fraction(log_z: Tensor) -> Tensor:
    """Median of Z_b^2 / Z_2b; NaN on the last rungs, where Z_2b is not known."""
    octave = round(math.log(2) / math.log(RATIO))
    fraction = torch.full((len(log_z),), math.nan)
    if len(log_z) > octave:
        log_ratio = 2 * log_z[:-octave] - log_z[octave:]
        fraction[:-octave] = log_ratio.median(dim=1).values.exp().clamp(max=1)
    return fraction


def condition_of(
    method: str, ladder: dict[str, Tensor], fractions: dict[str, float | None]
) -> Tensor:
    """Return what the rule sends to zero, falling in b.

    Args:
        method: The rule.
        ladder: What was recorded on the rungs so far, see `temperature`.
        fractions: The options of the rules.

    Returns:
        Values `(num_rungs, B or 1)`; fewer rungs for "ess", whose last are not known.
    """
    if method == "ml":
        return ladder["cost"] - ladder["true_cost"]
    if method == "coverage":
        return ladder["inside"] - (fractions["level"] or 0.5)
    if method == "ess":
        known = effective_fraction(ladder["log_z"])
        known = known[~known.isnan()].unsqueeze(1)
        return known - (fractions["ess_fraction"] or 0)
    lowest = ladder["lowest"][-1]
    excess = (ladder["cost"] - lowest).mean(dim=1, keepdim=True)
    excess = excess / (ladder["prior_cost"] - lowest).mean().clamp(min=1e-30)
    return excess - (fractions["tolerance"] or 0)


def has_risen(values: Tensor) -> Tensor:
    """On which rungs the mean of `values (num_rungs, B)` is clearly above zero.

    The prior is calibrated as well as the answer: coverage starts at its target, rises
    while posteriors are too wide, and falls through it at the answer. Until it has
    risen, a crossing is noise.
    """
    mean, stderr = values.mean(dim=1), values.std(dim=1) / values.shape[1] ** 0.5
    return (mean > RISE) & (mean > RISE_IN_STDERRS * stderr)


def is_beyond(method: str, values: Tensor) -> bool:
    """Whether the last of `values (num_rungs, B or 1)` lies beyond the answer."""
    if len(values) == 0 or values[-1].mean() > 0:
        return False
    return method != "coverage" or bool(has_risen(values).any())


def solve(method: str, betas: Tensor, values: Tensor) -> Solution:
    """Find where the mean of `values` last crosses zero from above.

    Args:
        method: The rule.
        betas: The ladder `(num_rungs,)`.
        values: What `condition_of` returns for it.

    Returns:
        The crossing, interpolated in log beta, or why there is none.
    """
    betas = betas[: len(values)]
    mean, log_betas = values.mean(dim=1).double(), betas.log()
    crosses = (mean[:-1] > 0) & (mean[1:] <= 0)
    if method == "coverage":
        crosses &= has_risen(values).cummax(dim=0).values[:-1]
    crossings = crosses.nonzero().flatten()
    if len(crossings) == 0:
        if mean[-1] > 0:
            return Solution(float(betas[-1]), math.nan, ALWAYS_ABOVE[method])
        return Solution(float(betas[0]), math.nan, ALWAYS_BELOW[method])
    k = int(crossings[-1]) + 1
    slope = (mean[k] - mean[k - 1]) / (log_betas[k] - log_betas[k - 1])
    root = log_betas[k - 1] - mean[k - 1] / slope
    stderr = math.nan
    if values.shape[1] > 1:
        stderr = float(values[k].std() / values.shape[1] ** 0.5 / slope.abs())
    return Solution(float(root.exp()), stderr)
