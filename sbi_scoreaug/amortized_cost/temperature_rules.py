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
                `tolerance` of the prior's

Each is a quantity that falls through zero at the answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.annealing import RATIO

METHODS = ("ml", "coverage", "ess", "predictive")


def effective_fraction(log_z: Tensor) -> Tensor:
    """Median of Z_b^2 / Z_2b; NaN on the last rungs, where Z_2b is not known."""
    octave = round(math.log(2) / math.log(RATIO))
    fraction = torch.full((len(log_z),), math.nan)
    if len(log_z) > octave:
        log_ratio = 2 * log_z[:-octave] - log_z[octave:]
        fraction[:-octave] = log_ratio.median(dim=1).values.exp().clamp(max=1)
    return fraction


def is_beyond(
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
        known = effective_fraction(torch.stack(rungs["log_z"])).nan_to_num(1.0)
        return bool(known.min() < (fractions["ess_fraction"] or 0))
    return bool(rungs["excess"][-1] < (fractions["tolerance"] or 0))


def condition_of(
    method: str, ladder: dict[str, Tensor], fractions: dict[str, float | None]
) -> Tensor:
    """Return what the rule sends to zero, falling in b, `(num_rungs, B or 1)`."""
    target = fractions["level"] or 0.5
    effective = effective_fraction(ladder["log_z"])
    conditions = {
        "ml": ladder["cost"] - ladder["true_cost"],
        "coverage": ladder["inside"] - target,
        "ess": (effective.nan_to_num(0.0) - fractions["ess_fraction"]).unsqueeze(1),  # type: ignore[operator]
        "predictive": (ladder["excess"] - fractions["tolerance"]).unsqueeze(1),  # type: ignore[operator]
    }
    return conditions[method]


def find_root(betas: Tensor, values: Tensor) -> tuple[float, float, bool]:
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
