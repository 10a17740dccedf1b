r"""A mixture of Gaussians beside the network, as much of it as simulations ask for.

If (z, x) is a mixture of K Gaussians, so is p(z|x), with means linear in x, constant
covariances and weights that are ratios of Gaussians of x:

    p(z|x) = sum_k w_k(x) N(z; mu_k(x), V_k diag(lambda_k) V_k')

Diffused to the level (m, s), its score is known, and as excess over the prior's, -z,

    score + z = m sum_k gamma_k V_k (u_k - m (1 - lambda_k) v_k) / (m^2 lambda_k + s^2)

with v_k = V_k' z, u_k = V_k' mu_k(x). The mixture of x has weights pi_k, means and
covariances M_k and S_k, R_k' S_k R_k = 1, and

    log w_k(x)    = log pi_k + log det R_k - |R_k' (x - M_k)|^2 / 2        + const
    log gamma_k   = log w_k(x) + log N(v_k; m u_k, m^2 lambda_k + s^2)      + const

From few simulations such a mixture, where it is near the truth, is fitted far better
than a network: its error is that of its means and covariances alone. Where it is not
near, the network is better. So the estimator takes

    (1 - share) network + share mixture

after training, with the share in [0, 1] that has the least loss on the simulations of
validation (stacking; `refinement`). Both are scores that diffusion allows (`network`),
so their blend is.

K is the fewest, up to 4, within one standard error of the best log p(z|x) of held-out
training simulations, of which each component needs two for each dimension of (z, x).
Shares of .6 and more let the default sampler make Metropolis steps: on networks to
choose by they took up to .8 of the squared MMD off where the share was at least that,
and added up to .2 of it on other problems, where it was .2 to .59. From .9 on jumps
between modes took up to .9 of it off, in sets that are small for the simulations that
the mixture is fitted to (`posterior`); at shares of .6 to .9 they did harm.
The fit is by expectation maximisation (scikit-learn), on what the network has for x: x
itself, or its embedding.

References: Wolpert (1992), Neural Networks 5, 241-259, and Breiman (1996), Machine
Learning 24, 49-64, on stacking.
"""

import math
import warnings

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sbi_scoreaug.score_npe.layers import FilledLater

MAX_COMPONENTS = 4
MAX_DIM = 50  # of z and x together
HELD_OUT = 0.2
BUFFERS = ("share", "slope", "offset", "variance", "axes", "constant", "mean", "root")
LEADING = 0.6  # the share from which on samples are polished
RULING = 0.9  # and from which on they may jump between modes


class ConditionalMixture(FilledLater):
    """p(z|x) as a mixture of Gaussians; empty until it is fitted.

    Attributes:
        share: How much of it is taken, a number in [0, 1]; None while it is empty.
        slope: Of the means u_k in x, `(K, num_features, dim)`.
        offset: `(K, dim)`.
        variance: lambda `(K, dim)`.
        axes: V `(K, dim, dim)`.
        constant: Of log w_k, `(K,)`.
        mean: Of x, `(K, num_features)`.
        root: Inverse roots of the covariances of x, `(K, num_features, num_features)`.
    """

    FILLED = BUFFERS
    share: Tensor | None
    slope: Tensor
    offset: Tensor
    variance: Tensor
    axes: Tensor
    constant: Tensor
    mean: Tensor
    root: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.empty()

    @property
    def num_embedded(self) -> int:
        """Number of columns that `embed` returns."""
        return 0 if self.share is None else self.offset.numel() * 2 + len(self.offset)

    @property
    def alone(self) -> bool:
        """Whether the network has no share."""
        return self.share is not None and bool(self.share == 1)

    @property
    def leads(self) -> bool:
        """Whether most of the score is its, so that it is nearly that of a density."""
        return self.share is not None and bool(self.share >= LEADING)

    @property
    def rules(self) -> bool:
        """Whether nearly all of the score is its, and it has several modes to weigh."""
        if self.share is None or len(self.offset) == 1:
            return False
        return bool(self.share >= RULING)

    def embed(self, features: Tensor) -> Tensor:
        """Return log w_k and u_k of rows `(batch, num_features)`, and lambda_k.

        Returns:
            `(batch, num_embedded)`, of no columns while it is empty.
        """
        if self.share is None:
            return features[:, :0]
        away = torch.einsum("bki,kij->bkj", features[:, None] - self.mean, self.root)
        log_weight = (self.constant - away.square().sum(-1) / 2).log_softmax(-1)
        u = self.offset + torch.einsum("bi,kij->bkj", features, self.slope)
        variance = self.variance.expand_as(u)
        return torch.cat([log_weight, u.flatten(1), variance.flatten(1)], -1)

    def blend(
        self, excess: Tensor, z: Tensor, embedded: Tensor, m: Tensor, s: Tensor
    ) -> Tensor:
        """Return the excess of the network with its share of the mixture's.

        Args:
            excess: The network's posterior_score + z, `(..., dim)`.
            z: z_t `(..., dim)`.
            embedded: From `embed`, `(..., num_embedded)`.
            m: `(..., 1)`.
            s: `(..., 1)`.
        """
        if self.share is None:
            return excess
        return torch.lerp(excess, self.excess(z, embedded, m, s), self.share)

    def excess(self, z: Tensor, embedded: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return the mixture's posterior_score + z; arguments as in `blend`."""
        log_weight, u, variance = self._split(embedded)
        v = torch.einsum("kij,...i->...kj", self.axes, z)
        m, s = m[..., None], s[..., None]
        spread = m**2 * variance + s**2
        log_density = ((v - m * u) ** 2 / spread + spread.log()).sum(-1) / -2
        gamma = (log_weight + log_density).softmax(-1)[..., None]
        parts = gamma * (u - m * (1 - variance) * v) / spread
        return m[..., 0] * torch.einsum("kij,...kj->...i", self.axes, parts)

    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return log p(z|x) `(batch,)`."""
        log_weight, u, variance = self._split(self.embed(features))
        v = torch.einsum("kij,bi->bkj", self.axes, z)
        log_density = (v - u) ** 2 / variance + (2 * math.pi * variance).log()
        return (log_weight - log_density.sum(-1) / 2).logsumexp(-1)

    def _split(self, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num, shape = len(self.offset), self.offset.shape
        parts = embedded.split([num, shape.numel(), shape.numel()], -1)
        return parts[0], parts[1].unflatten(-1, shape), parts[2].unflatten(-1, shape)

    @torch.no_grad()
    def fit(self, z: Tensor, features: Tensor) -> bool:
        """Fit as many components as pay; whether that was possible.

        Args:
            z: `(num_simulations, dim)`.
            features: `(num_simulations, num_features)`.
        """
        self.empty()
        size = z.shape[1] + features.shape[1]
        num_test = int(HELD_OUT * len(z))
        found: list[Tensor] = []
        for k in range(1, MAX_COMPONENTS + 1):
            too_few = len(z) - num_test < 2 * k * size
            if size > MAX_DIM or too_few:
                break
            if not self._fit(z[num_test:], features[num_test:], k):
                break
            found.append(self.log_prob(z[:num_test], features[:num_test]))
        if found and self._fit(z, features, fewest(found)):
            return True
        self.empty()
        return False

    def _fit(self, z: Tensor, features: Tensor, num_components: int) -> bool:
        dim, joint = z.shape[1], torch.cat([z, features], -1).double().cpu()
        scale = joint.std(0)
        scale = torch.where(scale > 1e-8, scale, 1.0)
        model = GaussianMixture(
            num_components, n_init=3, reg_covar=1e-4, random_state=0
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of slow convergence
                model.fit((joint / scale).numpy())
        except ValueError:  # of covariances that are none, or of infinite features
            return False
        mean = torch.as_tensor(model.means_) * scale
        covariance = torch.as_tensor(model.covariances_) * scale * scale[:, None]
        of_x, cross = covariance[:, dim:, dim:], covariance[:, dim:, :dim]
        slope = torch.linalg.solve(of_x, cross)
        residual = covariance[:, :dim, :dim] - cross.mT @ slope
        variance, axes = torch.linalg.eigh(residual)
        root = torch.linalg.inv(torch.linalg.cholesky(of_x)).mT
        offset = mean[:, :dim] - torch.einsum("ki,kij->kj", mean[:, dim:], slope)
        log_weight = torch.as_tensor(model.weights_).log()
        parts = {
            "share": torch.tensor(1.0),
            "slope": slope @ axes,
            "offset": torch.einsum("ki,kij->kj", offset, axes),
            "variance": variance.clamp(min=1e-6),
            "axes": axes,
            "constant": log_weight + root.diagonal(dim1=-2, dim2=-1).log().sum(-1),
            "mean": mean[:, dim:],
            "root": root,
        }
        for name, value in parts.items():
            setattr(self, name, value.to(z).contiguous())
        return True


def fewest(found: list[Tensor]) -> int:
    """The fewest components within one standard error of the best."""
    best = max(found, key=lambda log_prob: float(log_prob.mean()))
    for k, log_prob in enumerate(found, 1):
        gap = best - log_prob
        if gap.mean() <= gap.std() / len(gap) ** 0.5:
            return k
    return 1
