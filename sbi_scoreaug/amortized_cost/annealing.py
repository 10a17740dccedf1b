r"""Particles of many generalized posteriors, annealed together in b from the prior.

With pi_b(theta | x) ~ exp(-b f(theta, x)) p(theta), sequential Monte Carlo goes along a
ladder of b: reweight, resample, then differential-evolution Metropolis moves in which
each half of the particles moves along differences of the other half. Reweighted prior
draws would do in few dimensions; in ten, 6 of 5000 are effective. The figure of merit
is the least acceptance rate along the ladder. The normalisers Z_b come for free.

References: Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers; ter Braak
(2006), differential evolution MCMC.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.amortized_cost.estimator import ExpectedCost
from sbi_scoreaug.amortized_cost.support import log_prior_density

FIRST_RUNG, RATIO = 0.05, math.sqrt(2)


class AnnealedPosteriors:
    """Particles of B generalized posteriors, annealed together.

    Args:
        estimator: The cost network.
        prior: The prior.
        x: Observations `(B, *shape_x)`.
        num_particles: Particles P an observation.
        num_moves: Sweeps of moves after each change of beta; by default two more than
            theta has components. With fewer, particles lag behind: in ten dimensions
            four sweeps bias the coverage rule by -4 %, twelve by less than 1 %.

    Attributes:
        theta: Particles `(B, P, dim_theta)`.
        cost: Their costs `(B, P)`.
        log_prior: Their log prior densities `(B, P)`.
        beta: The present inverse temperature, 0 at first.
        log_normalizer: Log E_prior exp(-beta f), `(B,)`.
    """

    def __init__(
        self,
        estimator: ExpectedCost,
        prior: Distribution,
        x: Tensor,
        num_particles: int = 100,
        num_moves: int | None = None,
    ) -> None:
        self.estimator, self.prior = estimator, prior
        self.embedded = estimator.embed(x)
        self.shape = (len(x), num_particles)
        self.theta = prior.sample((len(x) * num_particles,)).unflatten(0, self.shape)
        self.cost, self.log_prior = self.evaluate(self.theta)
        self.num_moves = num_moves or 2 + self.theta.shape[2]
        self.beta, self.jump = 0.0, 1.0
        self.log_normalizer = torch.zeros(len(x), device=self.cost.device)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return cost and log prior `(B, Q)` of `theta (B, Q, dim_theta)`."""
        num_rows = theta.shape[1]
        flat = theta.flatten(0, 1)
        embedded = self.embedded.repeat_interleave(num_rows, dim=0).unsqueeze(1)
        cost = self.estimator.cost(self.estimator.encode(flat), embedded)
        shape = theta.shape[:2]
        return cost.reshape(shape), log_prior_density(self.prior, flat).reshape(shape)

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
        order = torch.randperm(self.shape[1], device=self.theta.device)
        rate = 0.0
        halves = order[:half], order[half:]
        for moving, resting in (halves, halves[::-1]):
            rate += self._move_half(moving, resting) / 2
        self.jump = min(2.0, max(0.05, self.jump * math.exp(rate - 0.3)))
        return rate

    def _move_half(self, moving: Tensor, resting: Tensor) -> float:
        """Move some particles along differences of two others each."""
        here = self.theta[:, moving]
        size, device = (len(here), len(moving)), here.device
        first = torch.randint(len(resting), size, device=device)
        second = first + torch.randint(1, len(resting), size, device=device)
        second = second % len(resting)
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
        accept = torch.rand(size, device=device).log() < ratio
        self.theta[:, moving] = torch.where(accept.unsqueeze(2), there, here)
        self.cost[:, moving] = torch.where(accept, cost, self.cost[:, moving])
        self.log_prior[:, moving] = torch.where(
            accept, log_prior, self.log_prior[:, moving]
        )
        return accept.float().mean().item()


def _systematic(weights: Tensor) -> Tensor:
    """Systematic resampling: row numbers `(B, P)` for `weights (B, P)`."""
    num_particles = weights.shape[1]
    start = torch.rand(len(weights), 1, device=weights.device)
    positions = torch.arange(num_particles, device=weights.device) + start
    cumulative = weights.cumsum(dim=1)
    cumulative = cumulative / cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, positions / num_particles)
    return chosen.clamp(max=num_particles - 1)
