r"""Training targets that mix the noise of the diffusion with exact scores.

In coordinates z, at the level z_t = m z + s e, two targets have the posterior score
grad log p_t(z_t|x) as their mean given z_t and x:

    denoising score      -e / s                             (Vincent 2011)
    target score          g / m,   g = grad_z log p(z|x)    (De Bortoli et al. 2024)

The second needs no evidence: g is the likelihood's score plus the prior's, in these
coordinates

    g = (dtheta/dz)' s(theta, x) + grad_z log p(z),

and log p(z) = -|z|^2 / 2 where the coordinates are exact. Denoising is noisy at small
s, target score matching at small m. Their best matrix combination for a Gaussian
posterior of precision J (which it leaves without any noise), estimated as J = E[g g'],

    target = -e / s + W (g / m + e / s),     W = m^2 (m^2 + s^2 J)^-1,

is unbiased for every posterior that is smooth and vanishes at the boundary of its
support: in these coordinates, all of R^d. In the eigenbasis J = V diag(l) V' it is

    target = V (m V'g - s l V'e) / (m^2 + s^2 l).

Joint scores have the same mean and a larger J, hence less weight. A row with an unknown
component keeps the denoising target.

References: De Bortoli, Hutchinson, Wirnsberger & Doucet (2024), Target score matching,
arXiv 2402.08667.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.coordinates import (
    NormalCoordinates,
    TransformedCoordinates,
)
from sbi_scoreaug.scores.check_prior import log_prior_gradient


def posterior_score(
    score: Tensor,
    theta: Tensor,
    coordinates: NormalCoordinates,
    prior: Distribution,
) -> Tensor:
    """Return g = grad_z log p(z|x) from the likelihood's score.

    Args:
        score: grad_theta log p(x|theta) `(batch, dim)`.
        theta: `(batch, dim)`.
        coordinates: The map between theta and z.
        prior: The prior of theta.

    Returns:
        `(batch, dim)`.

    Raises:
        InvalidInputError: If the prior's log_prob or the map has no gradient.
    """
    exact = not isinstance(coordinates, TransformedCoordinates)
    z = coordinates.to_normal(theta.detach()).detach().requires_grad_()
    weight = score.detach()
    try:
        if not exact:
            gradient = log_prior_gradient(prior, theta.detach())
            weight = weight + gradient.to(weight)
        with torch.enable_grad():
            mapped = coordinates.from_normal(z)
            # The gradient of w'theta(z), w held fixed, is (dtheta/dz)' w.
            potential = (weight * mapped).sum()
            if not exact:  # the density of z has the map's Jacobian
                potential = potential - coordinates.log_abs_det(mapped).sum()
            (gradient,) = torch.autograd.grad(potential, z)
    except Exception as error:  # A prior is foreign code: whatever it raises.
        raise InvalidInputError(
            "prior: expected one whose log_prob and transform can be differentiated, "
            f"since scores are given, got {type(prior).__name__} ({error}). Train "
            "without scores, or parametrise by independent parameters."
        ) from error
    return (gradient - z).detach() if exact else gradient.detach()


@dataclass
class MixedTarget:
    """The combination W of the two targets.

    Args:
        eigenvalues: l `(dim,)` of J.
        eigenvectors: V `(dim, dim)`.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor

    @classmethod
    def fit(cls, g: Tensor, known: Tensor) -> MixedTarget:
        """Estimate J from posterior scores g `(batch, dim)` of the rows `known`."""
        rows = g[known].double()
        values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
        return cls(values.clamp(min=1e-6).to(g), vectors.to(g))

    @property
    def precision(self) -> Tensor:
        """The diagonal of J `(dim,)`."""
        return self.eigenvectors**2 @ self.eigenvalues

    def to(self, device: str | torch.device) -> MixedTarget:
        """Return a copy on a device."""
        return MixedTarget(self.eigenvalues.to(device), self.eigenvectors.to(device))

    def __call__(
        self, g: Tensor, known: Tensor, noise: Tensor, m: Tensor, s: Tensor
    ) -> Tensor:
        """Return targets `(batch, dim)` for posterior scores at z_t.

        Args:
            g: Posterior scores at z `(batch, dim)`.
            known: Rows that have them `(batch,)`.
            noise: e `(batch, dim)`.
            m: `(batch, 1)`.
            s: `(batch, 1)`.
        """
        v, values = self.eigenvectors, self.eigenvalues
        mixed = (m * (g @ v) - s * values * (noise @ v)) / (m**2 + s**2 * values)
        return torch.where(known[:, None], mixed @ v.mT, -noise / s)
