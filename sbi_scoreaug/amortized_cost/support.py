"""The prior's log density, minus infinity outside its support.

sbi switches the argument validation of priors off, and then many a density of torch
goes on smoothly where it should be zero: an exponential one grows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug._host import within_support


def log_prior_density(prior: Distribution, theta: Tensor) -> Tensor:
    """Return log p(theta) `(batch,)` of `theta (batch, dim_theta)`."""
    inside = within_support(prior, theta)
    return torch.where(inside, prior.log_prob(theta), -torch.inf)
