r"""Metropolis steps on the composed score: what the descent got wrong, repaired.

At the last noise level the composed density, whose score is U, differs from the
posterior by a factor sqrt(1 + (s/m)^2 / C_j) in sd, C_j the variance given *one*
observation: nothing, for any n, once (s/m)^2 <= .01 min C_j. So its samples are ours.

*Proposal.* theta' = theta + a M U(theta) + sqrt(a (2 - a)) M^1/2 xi. With a (2 - a) in
place of 2 a, a Gaussian with covariance M is left invariant by the proposal alone, for
every a in (0, 2): steps of order one are accepted (preconditioned Crank-Nicolson).

*Acceptance* needs log p(theta') - log p(theta) = int U . d theta along the line between
them, by Simpson's rule (ends and midpoint; the trapezoid is biased on several modes).

*Preconditioner.* Even steps take the geometric mean of C = Cov(theta) and the inverse
of J = Cov(U) over the cloud, which is the inverse curvature of a Gaussian even when the
cloud is still too wide or too narrow; odd steps take C. It is adapted to the cloud
itself, a bias of order one over the number of particles.

References: Cotter, Roberts, Stuart & White (2013), arXiv 1202.0709; line integrals of
scores: Sjöberg et al. (2023), arXiv 2307.14012.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics

NUM_NODES = 12
TARGET_ACCEPTANCE = 0.8

SetScore = Callable[[Tensor], Tensor]


class Polish:
    """Metropolis steps on a cloud of particles, with a shared adaptive step.

    Args:
        score: U at the last level, `(batch, dim) -> (batch, dim)`.
        theta: Particles `(num_particles, dim)`.
        diagnostics: Takes acceptance and step.
    """

    def __init__(
        self, score: SetScore, theta: Tensor, diagnostics: SamplerDiagnostics
    ) -> None:
        self.score, self.theta, self.diagnostics = score, theta, diagnostics
        self.step, self._count = 0.5, 0
        self.value = score(theta)

    def metropolis(self, num_steps: int) -> None:
        """Run `num_steps` steps; two evaluations each."""
        for _ in range(num_steps):
            self._metropolis_step()

    def _metropolis_step(self) -> None:
        theta, value, a = self.theta, self.value, self.step
        v = a * (2 - a)
        scale, basis = self._preconditioner()
        self._count += 1
        noise = torch.randn_like(theta)
        forward = a * _apply(basis, scale, value)
        proposal = theta + forward + v**0.5 * _apply(basis, scale.sqrt(), noise)
        new_value = self.score(proposal)
        middle = self.score((theta + proposal) / 2)
        simpson = (value + 4 * middle + new_value) / 6
        gain = (simpson * (proposal - theta)).sum(1)
        back = theta - proposal - a * _apply(basis, scale, new_value)
        back = (_apply(basis, 1 / scale, back) * back).sum(1) / v
        log_ratio = gain - (back - noise.square().sum(1)) / 2
        accept = torch.rand_like(log_ratio).log() < log_ratio.nan_to_num(-torch.inf)
        self.theta = torch.where(accept[:, None], proposal, theta)
        self.value = torch.where(accept[:, None], new_value, value)
        acceptance = accept.double().mean().item()
        if abs(acceptance - TARGET_ACCEPTANCE) > 0.05:
            factor = np.exp(acceptance - TARGET_ACCEPTANCE)
            self.step = float(min(max(a * factor, 0.01), 0.9))
        self.diagnostics.acceptance, self.diagnostics.step = acceptance, self.step

    def _preconditioner(self) -> tuple[Tensor, Tensor]:
        covariance = _covariance(self.theta)
        if self._count % 2:
            return _eigh(covariance)
        # Outliers would rule Cov(U): the particles' own score decides who is one.
        size = self.value.norm(dim=1)
        core = size <= size.quantile(0.99)
        curvature = _covariance(self.value[core])
        scale, basis = _eigh(covariance)
        root = (basis * scale.sqrt()) @ basis.mT
        inner_scale, inner_basis = _eigh(root @ curvature @ root)
        inner = (inner_basis / inner_scale.sqrt()) @ inner_basis.mT
        return _eigh(root @ inner @ root)


def line_integral(
    score: SetScore,
    start: Tensor,
    end: Tensor,
    num_nodes: int = NUM_NODES,
    rows_at_once: int | None = None,
) -> Tensor:
    """Return log p(end) - log p(start) `(batch,)` by Gauss-Legendre quadrature.

    Args:
        score: `(rows, dim) -> (rows, dim)`.
        start: Where the lines begin `(batch, dim)`.
        end: Where they end `(batch, dim)`.
        num_nodes: Nodes on each line.
        rows_at_once: Nodes that are evaluated together; None for one of each line.
    """
    nodes, weights = (
        torch.as_tensor(values, dtype=start.dtype, device=start.device)
        for values in np.polynomial.legendre.leggauss(num_nodes)
    )
    along = end - start
    at = start + (1 + nodes[:, None, None]) / 2 * along
    parts = at.flatten(0, 1).split(rows_at_once or len(start))
    slope = torch.cat([score(part) for part in parts]).reshape(at.shape)
    return torch.einsum("k,kbd,bd->b", weights / 2, slope, along)


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.mT @ centred / (len(values) - 1)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 1e-10 of the largest, and eigenvectors."""
    scale, basis = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return scale.clamp(min=1e-10 * scale[-1].item() + 1e-30), basis


def _apply(basis: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    """Rows times the symmetric matrix with these eigenvalues and eigenvectors."""
    return ((rows @ basis) * scale) @ basis.mT
