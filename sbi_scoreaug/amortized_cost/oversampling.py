r"""How many candidates sampling-importance-resampling needs.

It draws K candidates a sample from a proposal q and keeps one by its weight
w = exp(potential) / q. Where few of the K are effective, the samples are nearer to q
than to the posterior: without a word, and the more so the narrower the posterior is.
Of n proposals the fraction

    (sum w)^2 / (n sum w^2)

is effective; K is what gives TARGET effective ones.

References: Rubin (1988), using the SIR algorithm to simulate posterior distributions;
Kong (1992), a note on importance sampling using standardized weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.errors import warn

TARGET = 20
PILOT = 10_000
FEWEST, MOST = 32, 2000
CANDIDATES_AT_ONCE = 200_000


@torch.no_grad()
def num_candidates(potential: CostBasedPotential, proposal: Any) -> int:
    """Return K, from FEWEST to MOST; warn where more would be needed.

    Args:
        potential: The potential, with its observation.
        proposal: The proposal.
    """
    theta = proposal.sample((PILOT,))
    log_weights = potential(theta, track_gradients=False) - proposal.log_prob(theta)
    log_weights = log_weights[log_weights.isfinite()].double()
    effective = 0.0
    if len(log_weights):
        twice = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
        effective = float(twice.exp())
    needed = TARGET * PILOT / max(effective, 1.0)
    if needed > MOST:
        warn(
            f"importance sampling: about {needed:.2g} proposals a sample would be "
            f"needed, {MOST} are drawn: the samples are wider than the posterior, of "
            f"which {effective:.3g} of {PILOT} proposals tell. Build the posterior "
            "with sample_with='mcmc'.",
            UserWarning,
        )
    return min(MOST, max(FEWEST, math.ceil(needed)))
