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

A row with an unknown component keeps the denoising target.

Joint scores have the same mean, and noise of latent variables: J = P + N, where
P = E[E[g|x, z] E[g|x, z]'] is their signal. The W above is the best if every target is
new. In training e is; z, x and the latent noise of a row are the same in every epoch,
and can be learned by heart. If a share phi of the variance of e is left when it is
averaged over what a row is met, the target of a Gaussian posterior has the least
variance with

    W = m^2 (m^2 + s^2 P)^-1 Q (Q + N)^-1,     Q = P + phi (m/s)^2,

taken along the eigenvectors of J, p the diagonal of V' P V. phi = 1 is the W above.
With phi < 1 the denoising score keeps a weight of its own at small s too, until the
variance of e outgrows P / phi there. N = 0 gives the W of exact scores. phi = .1
was chosen on seeds 101 to 104; of the others .01 and .4 were tried on one seed each.

P is unknown, but not below the precision of z in a regression on features of x,

    P >= E[(z - z(x)) (z - z(x))']^-1,

because E[g z'] = -1 and E[g h(x)'] = 0 for every h: what a linear regression of g on z
and h(x) explains is the right side. Features are x and its squares, where there are
rows enough to fit them, else none: then it is the prior's precision. What the bound
lacks counts as noise, which costs variance, never bias.

References: De Bortoli, Hutchinson, Wirnsberger & Doucet (2024), Target score matching,
arXiv 2402.08667; Van Trees (1968), Detection, Estimation, and Modulation Theory, part
I, for the bound.
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

FRESH = 0.1  # phi
MIN_ROWS = 10  # for each coefficient of the regression in `least_signal`


def least_signal(z: Tensor, x: Tensor) -> Tensor:
    """Return a lower bound of E[E[g|x, z] E[g|x, z]'] `(dim, dim)`, see above.

    Args:
        z: Coordinates `(num_simulations, dim)`.
        x: Simulations `(num_simulations, *shape_x)`.
    """
    features, z = x.flatten(1).double(), z.double()
    features = torch.cat([features, features.square()], 1)
    if len(z) < MIN_ROWS * (1 + features.shape[1]):
        features = features[:, :0]
    else:
        features = features[:, features.std(0) > 1e-8]
        features = (features - features.mean(0)) / features.std(0)
    design = torch.cat([torch.ones_like(z[:, :1]), features], 1)
    residual = z - design @ torch.linalg.lstsq(design, z).solution
    covariance = residual.mT @ residual / max(len(z) - design.shape[1], 1)
    return (covariance + 1e-6 * torch.eye(z.shape[1]).to(z)).inverse()


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
        signal: p `(dim,)` of joint scores, at most l; None for exact scores.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    signal: Tensor | None = None

    @classmethod
    def fit(cls, g: Tensor, known: Tensor, signal: Tensor | None = None) -> MixedTarget:
        """Estimate J from posterior scores.

        Args:
            g: Posterior scores `(batch, dim)`.
            known: Rows that have them `(batch,)`.
            signal: P `(dim, dim)`, from `least_signal`; None for exact scores.
        """
        rows = g[known].double()
        values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
        values = values.clamp(min=1e-6)
        if signal is not None:
            along = torch.diagonal(vectors.mT @ signal.to(vectors) @ vectors)
            signal = along.clamp(min=1e-6).minimum(values).to(g)
        return cls(values.to(g), vectors.to(g), signal)

    @property
    def precision(self) -> Tensor:
        """The diagonal of J `(dim,)`."""
        return self.eigenvectors**2 @ self.eigenvalues

    def to(self, device: str | torch.device) -> MixedTarget:
        """Return a copy on a device."""
        signal = None if self.signal is None else self.signal.to(device)
        return MixedTarget(
            self.eigenvalues.to(device), self.eigenvectors.to(device), signal
        )

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
        signal = values if self.signal is None else self.signal
        dropped = (values - signal) / (values + FRESH * (m / s) ** 2)  # N / (Q + N)
        ours = m * (1 - dropped) * (g @ v)
        denoising = (s * signal + m**2 / s * dropped) * (noise @ v)
        mixed = (ours - denoising) / (m**2 + s**2 * signal)
        return torch.where(known[:, None], mixed @ v.mT, -noise / s)
