r"""Diffused posterior scores of sets, with Gaussian corrections.

U of `composition` is not the score of the diffused posterior p_t(theta|x_1..x_n). If
single posteriors are Gaussian with covariance C_j, then in N(0, I) coordinates, with
q = (m/s)^2 and P_j = C_j^-1 + q (the precision of theta_0 given theta_t and x_j),

    Lambda = sum_j P_j + (1 - n)(1 + q)               precision of theta_0 | theta_t, x
    G = Lambda^-1 { sum_j P_j s_j + (n - 1)(1 + q) theta_t }

is exactly the diffused posterior score (Linhart et al. 2024). Covariances come from
samples, hence may be wider than the prior, and Lambda indefinite: eigenvalues c of C_j
are clipped to c <= 1, which makes Lambda >= 1 + q for every n.

`MeanGauss` needs neither pilot samples nor derivatives. With one C for all, only the
mean score counts, and C follows from the cloud of particles: the slope of that score
against theta is its averaged Jacobian, -A, and for a Gaussian A = (m^2 C + s^2)^-1, so

    A = V diag(w) V',   c = (1/w - s^2) / m^2 where w > 1, else 1
    Lambda = V [n (1/c - 1) + 1 + q] V'

At n = 1 it returns the score itself, whatever C. With damping n is n d(t).

`ObservationGauss` takes one covariance for each observation, centred second moments of
samples of every p(theta|x_j): n pilot runs.

Reference: Linhart, Cardoso, Gramfort, Le Corff & Rodrigues (2024), arXiv 2404.07593.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.schedule import VPSchedule

SMALLEST_VARIANCE = 1e-5


class GaussScore(NamedTuple):
    """A diffused posterior score with the precision of what it denoises to.

    Attributes:
        score: G `(batch, dim)`.
        precision: Eigenvalues of Lambda `(dim,)`.
        basis: Their eigenvectors, in columns `(dim, dim)`.
        clipped: Fraction of covariance eigenvalues that had to be clipped.
        composed: The composed score U `(batch, dim)` at the same place.
        cross: As in `composition.Excess`.
    """

    score: Tensor
    precision: Tensor
    basis: Tensor
    clipped: float
    composed: Tensor
    cross: Tensor | None


class DiffusedScore(Protocol):
    """What `descent` follows: a diffused posterior score of the set."""

    def __call__(self, theta: Tensor, t: float) -> GaussScore:
        """Return the score at `theta (batch, dim)` and time `t`."""
        ...


class MeanGauss:
    """GAUSS with one covariance, from the slope of the mean score over particles."""

    def __init__(self, score: ComposedScore, schedule: VPSchedule) -> None:
        self.score, self.schedule = score, schedule

    def __call__(self, theta: Tensor, t: float) -> GaussScore:
        """Return the score at `theta (batch, dim)` and time `t`."""
        n = self.score.effective_size(t)
        m2, s2 = self.schedule.mean(t) ** 2, self.schedule.std(t) ** 2
        q = m2 / s2
        excess = self.score.excess(theta, t)
        mean_score = excess.mean - theta
        finite = mean_score.isfinite().all(1) & theta.isfinite().all(1)
        slope = regression_slope(theta[finite], mean_score[finite])
        w, basis = torch.linalg.eigh(-(slope + slope.mT) / 2)
        c = torch.where(w > 1, (1 / w - s2) / m2, 1.0)
        clipped = ((w <= 1) | (c < SMALLEST_VARIANCE)).double().mean().item()
        c = c.clamp(SMALLEST_VARIANCE, 1.0)
        precision = n * (1 / c - 1) + 1 + q
        pull = n * (1 / c + q) * (mean_score @ basis)
        pull = pull + (n - 1) * (1 + q) * (theta @ basis)
        gauss = (pull / precision) @ basis.mT
        composed = n * excess.mean - theta
        return GaussScore(gauss, precision, basis, clipped, composed, excess.cross)


class ObservationGauss:
    """GAUSS with a covariance for every observation.

    Args:
        score: The composed score, without minibatches and damping.
        schedule: The noise levels.
        covariances: Centred covariances of theta given each x_j, `(n, dim, dim)`,
            where the prior is N(0, I). Eigenvalues are clipped to valid ones.

    Raises:
        InvalidInputError: If shapes do not fit.
    """

    def __init__(
        self, score: ComposedScore, schedule: VPSchedule, covariances: Tensor
    ) -> None:
        if covariances.ndim != 3 or len(covariances) != score.num_observations:
            raise InvalidInputError(
                f"covariances: expected ({score.num_observations}, dim, dim), got "
                f"{tuple(covariances.shape)}."
            )
        c, basis = torch.linalg.eigh(covariances.double())
        inside = c.clamp(SMALLEST_VARIANCE, 1.0)
        self.clipped = (c != inside).double().mean().item()
        self._single = (basis / inside.unsqueeze(-2)) @ basis.mT
        self.score, self.schedule = score, schedule

    @torch.no_grad()
    def __call__(self, theta: Tensor, t: float) -> GaussScore:
        """Return the score at `theta (batch, dim)` and time `t`."""
        n, x = self.score.num_observations, self.score.x
        q = (self.schedule.mean(t) / self.schedule.std(t)) ** 2
        identity = torch.eye(theta.shape[1], dtype=torch.float64, device=theta.device)
        # sum_j P_j s_j + (n-1)(1+q) theta, written in the small s_j + theta.
        inverse = (self._single - identity).sum(0) + (1 + q) * identity
        precision, basis = torch.linalg.eigh(inverse)
        pull, total, squares = -theta @ inverse, -theta, theta.new_zeros(len(theta))
        self.score.evaluations += 1
        size = max(1, self.score.rows_at_once // len(theta))
        for start in range(0, n, size):
            part = slice(start, start + size)
            single = self.score.posterior_score(theta, t, x[part]).double()
            excess = single + theta[:, None]
            weights = self._single[part] + q * identity
            pull += torch.einsum("bni,nij->bj", excess, weights)
            total = total + excess.sum(1)
            squares += excess.square().sum((1, 2))
        score = ((pull @ basis) / precision) @ basis.mT
        cross = (total + theta).square().sum(1) - squares
        return GaussScore(score, precision, basis, self.clipped, total, cross)


def regression_slope(theta: Tensor, values: Tensor) -> Tensor:
    """Slope B `(dim, dim)` of the least-squares fit values = const + B theta."""
    centred = theta - theta.mean(0)
    covariance = centred.mT @ centred / len(theta)
    scale = covariance.diagonal().mean()
    identity = torch.eye(theta.shape[1], dtype=theta.dtype, device=theta.device)
    cross = (values - values.mean(0)).mT @ centred / len(theta)
    return torch.linalg.solve(covariance + 1e-9 * scale * identity, cross.mT).mT
