r"""The average error of a network, taken off before scores are added.

Averaged over x at a given z_t the true score is the prior's, -z_t, so the excess
(score + z_t) is 0. A systematic error of the network is not, and n observations add it
n times. Its regression on z_t over simulated pairs, the anchors, is therefore
subtracted from the scores of sets. That regression has the noise of the true excess: x
varies at a given z_t. With exact scores it is had with far less, as that of the
network's error, the score less the mixed target of the same pair. Between walls the
error has a factor (`PosteriorScoreNet.gate`), and so has the regression. From the log
densities of sets the integral of its last level is taken off (`potential`).
"""

from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug._host import VPScoreEstimator
from sbi_scoreaug.score_npe.layers import FilledLater
from sbi_scoreaug.score_npe.mixed_target import MixedTarget
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.score_npe.polish import line_integral
from sbi_scoreaug.score_npe.schedule import T_LAST

MAX_LEVELS = 2000  # kept in memory
ROWS = 10_000  # of anchors at once


class CentredScores(FilledLater, VPScoreEstimator):
    """sbi's score estimator with anchors and `centre`; its heirs have the coordinates.

    Attributes:
        anchor_z: Coordinates of simulated parameters `(num_anchors, dim)`, or None.
        anchor_features: What the network makes of their x.
        anchor_g: Their posterior scores `(num_anchors, dim)`, if known; then
        anchor_values, anchor_vectors: of the mixed target.
    """

    FILLED = tuple(f"anchor_{k}" for k in ("z", "features", "g", "values", "vectors"))
    anchor_z: Any
    anchor_features: Any
    anchor_g: Any
    anchor_values: Any
    anchor_vectors: Any
    _centres: dict[float, Tensor]  # by time

    def to_z(self, theta: Tensor) -> Tensor:
        """Return coordinates `(..., dim)` in which the prior is N(0, I)."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Return what the network makes of `(n, *condition_shape)`."""
        raise NotImplementedError

    def empty(self) -> None:
        """Centre no longer."""
        super().empty()
        self._centres = {}

    @torch.no_grad()
    def set_anchors(
        self,
        theta: Tensor | None,
        x: Tensor,
        scores: tuple[MixedTarget, Tensor] | None = None,
    ) -> None:
        """Keep simulated pairs to centre scores with; after training.

        Without scores the pairs have to be all that the prior and the simulator gave:
        where failed simulations are left out, the excess is not 0 on average over x,
        but the gradient of log P(success|theta), which belongs to the posterior.

        Args:
            theta: `(batch, dim)`; None not to centre.
            x: `(batch, *condition_shape)`, simulated at theta.
            scores: The mixed target and posterior scores g `(batch, dim)`, if known.
        """
        self.empty()
        self.anchor_z = None if theta is None else self.to_z(theta)
        if scores is not None:
            target, self.anchor_g = scores
            self.anchor_values = target.eigenvalues
            self.anchor_vectors = target.eigenvectors
        rows = x.split(1000)
        self.anchor_features = torch.cat([self.eval().embed(part) for part in rows])

    @torch.no_grad()
    def centre(self, t: float) -> Tensor | None:
        """Return coefficients of the network's average error, `(1 + dim, dim)`.

        Regression of the excess, with scores of the error, on (1, z_t), times the
        gate, over the anchors, with fixed noise; None without them. Samplers ask for
        the same times again and again: each is computed once.
        """
        if self.anchor_z is None or not isinstance(self.net, PosteriorScoreNet):
            return None
        found = self._centres.get(t)
        if found is None or found.device != self.anchor_z.device:
            if len(self._centres) >= MAX_LEVELS:
                self._centres.clear()
            found = self._centres[t] = self._regressed(t)
        return found

    def centre_along(self, z: Tensor) -> Tensor:
        """Return the integral of the average error from 0 to z `(batch,)`.

        At the noise of the samplers' last step, along a straight line: what centring
        takes off the log density of each observation.
        """
        return line_integral(
            lambda at: self.average_error(at, T_LAST), torch.zeros_like(z), z
        )

    def average_error(self, z: Tensor, t: float) -> Tensor:
        """Return that of the score at z `(batch, dim)` and time t; 0 if unknown."""
        centre = self.centre(t)
        if centre is None:
            return torch.zeros_like(z)
        net: Any = self.net
        time = torch.tensor([t], dtype=z.dtype, device=z.device)
        m, s = self.mean_t_fn(time), self.std_fn(time)
        return net.gate(z, m, s) * (centre[0] + z @ centre[1:])

    def _regressed(self, t: float) -> Tensor:
        net: Any = self.net
        z, device = self.anchor_z, self.anchor_z.device
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        time = torch.tensor([t], dtype=z.dtype, device=device)
        m, s = self.mean_t_fn(time), self.std_fn(time)
        z_t = m * z + s * noise.to(z)
        parts = zip(z_t.split(ROWS), self.anchor_features.split(ROWS), strict=True)
        error = torch.cat([net.pairs(*part, m, s) for part in parts])
        if self.anchor_g is not None:
            mix = MixedTarget(self.anchor_values, self.anchor_vectors)
            known = torch.ones_like(z[:, 0]).bool()
            target = mix(self.anchor_g, known, noise.to(z), m, s)
            error = error - (target + z_t)
        design = torch.cat([torch.ones_like(z_t[:, :1]), z_t], -1).double()
        if not net.has_walls:
            return _ridge(design, error)
        gates = net.gate(z_t, m, s).split(1, -1)
        pairs = zip(gates, error.split(1, -1), strict=True)
        return torch.cat([_ridge(gate * design, part) for gate, part in pairs], -1)


def _ridge(design: Tensor, error: Tensor) -> Tensor:
    gram = design.mT @ design
    gram += 1e-3 * len(design) * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram, design.mT @ error.double()).to(error.dtype)
