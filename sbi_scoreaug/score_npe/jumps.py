r"""Jumps between modes, for scores that can be trusted everywhere.

Local Metropolis steps keep the number of particles in each mode that the descent left
there. An independence jump proposes theta' ~ q, q a small Gaussian mixture fitted to
the cloud, and accepts it with probability

    min(1, exp(int U . d theta) q(theta) / q(theta'))

the line integral from theta to theta' by Gauss-Legendre quadrature. Between modes the
line passes where no sample lies: with exact scores the integral is right, with learned
ones it can be anything, unless the score is a fitted mixture's. Others do not jump.

The mixture is fitted by expectation maximisation where the cloud has unit covariance,
from the best of a few random starts; covariances are shrunk towards the identity and
widened by 5 %, so that q covers the target.

Reference: Tierney (1994), Annals of Statistics 22, 1701-1728 (independence chains).
"""

import math

import torch
from torch import Tensor

from sbi_scoreaug.score_npe.polish import Polish, line_integral

NUM_COMPONENTS, NUM_RESTARTS, NUM_ITERATIONS = 3, 3, 25
SHRINKAGE, WIDENING = 0.02, 1.05


def jump(chains: Polish, num_jumps: int = 3, num_nodes: int = 16) -> float:
    """Let every particle of `chains` try to jump, `num_jumps` times.

    Args:
        chains: The particles and their score.
        num_jumps: Jumps of each particle.
        num_nodes: Nodes of each line integral, one evaluation each.

    Returns:
        The accepted fraction. Evaluations: `num_jumps * num_nodes + 1`.
    """
    mixture, acceptance = CloudMixture(chains.theta), 0.0
    for _ in range(num_jumps):
        theta = chains.theta
        proposal = mixture.sample(len(theta))
        gain = line_integral(chains.score, theta, proposal, num_nodes)
        log_ratio = gain + mixture.log_prob(theta) - mixture.log_prob(proposal)
        accept = torch.rand_like(gain).log() < log_ratio.nan_to_num(-torch.inf)
        chains.theta = torch.where(accept[:, None], proposal, theta)
        acceptance += accept.double().mean().item() / num_jumps
    chains.value = chains.score(chains.theta)
    return acceptance


class CloudMixture:
    """A Gaussian mixture fitted to a cloud.

    Args:
        theta: Particles `(num_particles, dim)`.
    """

    def __init__(self, theta: Tensor) -> None:
        self.mean = theta.mean(0)
        scale, basis = torch.linalg.eigh(
            torch.cov(theta.mT).reshape(2 * theta.shape[1:])
        )
        self.root = basis * scale.clamp(min=1e-12 * scale[-1].item()).sqrt()
        white = torch.linalg.solve(self.root, (theta - self.mean).mT).mT
        fits = [self._fit(white) for _ in range(NUM_RESTARTS)]
        _, self.weights, self.means, covariances = max(fits, key=lambda fit: fit[0])
        self.cholesky = torch.linalg.cholesky(WIDENING * covariances)

    def sample(self, num_samples: int) -> Tensor:
        """Draw `(num_samples, dim)`."""
        k = torch.multinomial(self.weights, num_samples, replacement=True)
        noise = torch.randn_like(self.means[k])
        white = self.means[k] + (self.cholesky[k] @ noise[..., None]).squeeze(-1)
        return self.mean + white @ self.root.mT

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log density `(batch,)`, up to a constant."""
        white = torch.linalg.solve(self.root, (theta - self.mean).mT).mT
        return _log_components(
            white, self.weights, self.means, self.cholesky
        ).logsumexp(-1)

    @staticmethod
    def _fit(white: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        num, dim = white.shape
        identity = torch.eye(dim, dtype=white.dtype, device=white.device)
        weights = white.new_full((NUM_COMPONENTS,), 1 / NUM_COMPONENTS)
        means = white[torch.randperm(num, device=white.device)[:NUM_COMPONENTS]]
        covariances = identity.repeat(NUM_COMPONENTS, 1, 1)
        log_likelihood = -math.inf
        for _ in range(NUM_ITERATIONS):
            cholesky = torch.linalg.cholesky(covariances)
            log_joint = _log_components(white, weights, means, cholesky)
            log_likelihood = log_joint.logsumexp(-1).mean().item()
            share = log_joint.softmax(-1)
            mass = share.sum(0) + 1e-6
            weights = mass / mass.sum()
            means = share.mT @ white / mass[:, None]
            centred = white - means[:, None]
            scatter = (share.mT[..., None] * centred).mT @ centred
            # As if each component had seen a few more points of a narrow Gaussian.
            prior = dim * SHRINKAGE * identity
            covariances = (scatter + prior) / (mass + dim)[:, None, None]
        return log_likelihood, weights, means, covariances


def _log_components(
    white: Tensor, weights: Tensor, means: Tensor, cholesky: Tensor
) -> Tensor:
    residual = (white - means[:, None]).mT
    square = torch.linalg.solve_triangular(cholesky, residual, upper=False)
    log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_prob = -0.5 * square.square().sum(1) - log_det[:, None]
    return (log_prob + weights.log()[:, None]).mT
