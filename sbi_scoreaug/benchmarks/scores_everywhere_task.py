r"""What a task of scores_everywhere offers: simulations with scores, exact references.

A reference is a set of points theta_i with log p(theta_i|x_o) and log g(theta_i), where
g is the density that the points have: cells of a grid (g constant), or draws of

    g = 1/2 p + 1/4 N(mean, 1.5^2 diag var) + 1/4 prior.

The expected squared distance c(theta, x_o) = E[mean_k (x_k - x_ok)^2 | theta] of
generalized posteriors exp(-beta c) p(theta) has a closed form on all tasks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from sbi_scoreaug.benchmarks.training import Simulations

POINTS = 2048


class Points(NamedTuple):
    """theta `(points, dim_theta)`, log p `(points,)` and log g `(points,)`."""

    theta: Tensor
    log_p: Tensor
    log_g: Tensor


class Task(ABC):
    """Simulations with scores, and what is exactly known of their posterior.

    Attributes:
        prior: Of theta.
        score_kind: "exact" or "joint".
        beta: Inverse temperature of the generalized posterior.
    """

    prior: Any
    score_kind = "exact"
    beta = 5.0

    @abstractmethod
    def simulate(self, num_simulations: int, seed: int) -> Simulations:
        """Draw from the prior, with scores."""

    def embedding_net(self) -> nn.Module | None:
        """Return an untrained embedding net of x, if it needs one."""
        return None

    @abstractmethod
    def points(self, x_o: Tensor) -> Points:
        """Return points with the exact posterior of `x_o (*shape_x)`."""

    @abstractmethod
    def cost_points(self, x_o: Tensor) -> Points:
        """Return points with the exact generalized posterior of `x_o`."""

    @abstractmethod
    def expected_cost(self, theta: Tensor, x_o: Tensor) -> Tensor:
        """Return c `(batch,)` of `theta (batch, dim_theta)` and one `x_o`."""

    @abstractmethod
    def draw_set(self, n: int, seed: int, num_exact: int) -> tuple[Tensor, Tensor]:
        """Return a set `(n, *shape_x)` of one theta, and exact samples given it."""


def draw_points(exact: Any, prior: Any) -> Points:
    """Return draws of g for an exact posterior with a mean and a variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = Normal(exact.mean, 1.5 * exact.variance.sqrt())
        parts = exact.sample((POINTS // 2,)), wide.sample((POINTS // 4,))
        theta = torch.cat([*parts, prior.sample((POINTS // 4,)).double()])
    log_p = exact.log_prob(theta)
    log_prior = prior.log_prob(theta.float()).double()
    shares = {0.5: log_p, 0.25: wide.log_prob(theta).sum(1)}
    parts = [log_density + math.log(share) for share, log_density in shares.items()]
    log_g = torch.stack([*parts, log_prior + math.log(0.25)]).logsumexp(0)
    return Points(theta.float(), log_p, log_g)
