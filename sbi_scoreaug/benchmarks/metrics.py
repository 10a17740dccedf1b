r"""How far an estimated posterior is from the exact one, without sampling either.

A ratio estimator gives log r(x_o|theta) + log p(theta) up to a constant, the problems
of `simulators` the exact posterior p. Both are evaluated at the same points and
normalised there:

- on the cells of a grid (two parameters): sums over cells are the integrals;
- at weighted draws of a proposal g (more parameters): with u = p/g and v = q/g known up
  to constants, self-normalised weights play the part of cell probabilities.

    KL(p, q) = sum_i p_i log(p_i / q_i),       TV(p, q) = 1/2 sum_i |p_i - q_i|.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from sbi_scoreaug._host import embed_x, log_ratio
from sbi_scoreaug.simulators import GridPosterior


def kl_and_tv(log_p: Tensor, log_q: Tensor) -> tuple[float, float]:
    """Return KL(p, q) in nats and the total variation, over shared points `(points,)`.

    Example:
        >>> kl_and_tv(torch.zeros(4), torch.tensor([0.0, 0.0, -60.0, -60.0]))[1]
        0.5
    """
    log_p = log_p.double().log_softmax(0)
    log_q = log_q.double().log_softmax(0)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum()
    return float(kl), float(0.5 * (p - log_q.exp()).abs().sum())


def posterior_errors(
    exact: GridPosterior | MultivariateNormal,
    log_surrogate: Callable[[Tensor], Tensor],
    num_draws: int = 4096,
) -> tuple[float, float]:
    """Return KL from the exact posterior and total variation of one observation.

    Args:
        exact: The exact posterior.
        log_surrogate: Maps theta `(points, dim_theta)` to the estimated log posterior
            `(points,)`, up to a constant.
        num_draws: Draws of the proposal where there is no grid.
    """
    if isinstance(exact, GridPosterior):
        return kl_and_tv(exact.log_probs, log_surrogate(exact.theta))
    theta, log_g = _wide_draws(exact, num_draws)
    return kl_and_tv(exact.log_prob(theta) - log_g, log_surrogate(theta) - log_g)


def _wide_draws(exact: MultivariateNormal, num_draws: int) -> tuple[Tensor, Tensor]:
    """Return draws of a multivariate t about `exact`, 1.5 times as wide, and log g."""
    generator = torch.Generator().manual_seed(0)
    root = 1.5 * exact.scale_tril
    dim, dof = len(root), 5.0
    z = torch.randn(num_draws, dim, generator=generator)
    chi2 = torch.randn(num_draws, int(dof), generator=generator).square().sum(1)
    t = z * (dof / chi2).sqrt().unsqueeze(1)
    log_g = -0.5 * (dof + dim) * torch.log1p(t.square().sum(1) / dof)
    return exact.mean + t @ root.T, log_g


@torch.no_grad()
def ratio_log_posterior(
    estimator: RatioEstimator, prior: Distribution, x_o: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return theta `(points, dim_theta)` -> log r(x_o|theta) + log p(theta)."""
    embedded = embed_x(estimator, x_o.reshape(1, *x_o.shape[-len(estimator.x_shape) :]))

    def log_posterior(theta: Tensor) -> Tensor:
        with torch.no_grad():
            log_r = log_ratio(estimator, theta, embedded.expand(len(theta), -1))
        return log_r + prior.log_prob(theta)

    return log_posterior
