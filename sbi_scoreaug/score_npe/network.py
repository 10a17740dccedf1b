r"""The network that estimates the posterior score of one observation.

In N(0, I) coordinates, with the noise level (m, s), the network net gives

    bounded (default)   posterior_score = -z + m net / r,    r = sqrt(m^2 rho^2 + s^2)
    noise               posterior_score = net / s

rho is the residual standard deviation of a linear regression of z on x: the scale on
which the posterior can vary. Bounded, the error of the score stays bounded as s goes to
0, and the prior's score -z is exact at large noise. The paper's form is "noise".

*From the linear Gaussian on.* With the regression's prediction xhat, the posterior
N(xhat, rho^2) has, diffused, the score -(z - m xhat) / r^2, which is bounded with

    net = e^g ((1 + a) xhat - (1 + b) (1 - rho^2) m z) / r + c

at a = b = c = g = 0. There training starts: the output layer is 0, and is multiplied by
.3, so that training leaves slowly. a, b, c and the number g are functions of z, x and
time. Scores that are linear in pieces, as of mixtures of Gaussians, are learned from
few simulations: what changes between the pieces is a factor. Where a posterior mixes
narrow and wide, that is a precision: e^g, one for all parameters.

The Jacobian of a diffused score is at least -1 / s^2, since (m / s^2)^2 Cov(z_0|z_t) -
1 / s^2 is. Factors, if constant and without walls, obey it: |g| < 2 log(r/s), (1 + b)
(1 - rho^2) < 1, all below 4 (`bounded`). Else the ODE of `log_prob` can run away far
from all simulations.

After training a mixture of Gaussians may take a share of the score (`mixture`).

*Walls.* theta(z) of a parameter uniform between walls is flat near them, and so is
the likelihood: net has the factor `blurred_slope`, the shape of dtheta/dz, and in place
of z its integral, `bent`. So a likelihood that is linear and Gaussian in theta has, at
small noise, a net with constant a, b, c, g, in the corners of a box too; and far out
the score is the prior's, -z, whatever the weights of the network.

*Shape.* Residual MLPs for theta and for x, sinusoids of time, and a residual MLP on
their sum. As in the paper three embeddings meet; here they meet by addition, a linear
layer of their concatenation, so that each is computed once for all pairs of a particle
and an observation. theta enters also as (z - m xhat) / sqrt(m^2 rho^2 + s^2), with xhat
the linear prediction: it is of order one at every level. Bounded, so do the quadratic
forms that decide between Gaussians: the length of that, the same where rho is 7 times
smaller, z'xhat and the length of xhat (`quadratic_features`).

*Sets* of up to m observations: the residual MLP for x is averaged over those that are
there, and a residual MLP of the average and of the set's size is added (a deep set).
xhat is then the linear prediction from the mean of k observations, and rho its residual
standard deviation, one for each k.

References: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, appendix; Karras et
al. (2022), arXiv 2206.00364, on preconditioning; Zaheer et al. (2017), arXiv
1703.06114, on deep sets.
"""

import torch
from torch import Tensor, nn

from sbi_scoreaug.score_npe.layers import (
    NUM_FREQUENCIES,
    ResidualMLP,
    bent,
    blurred_slope,
    bounded,
    linear_fit,
    quadratic_features,
    time_features,
)
from sbi_scoreaug.score_npe.mixture import ConditionalMixture

MAX_LINEAR_FEATURES, SLOW = 500, 0.3  # SLOW: of the output layer
# In the place of an observation that is missing: finite, since the host refuses NaN.
MISSING = torch.finfo(torch.float32).max


class PosteriorScoreNet(nn.Module):
    """Excess posterior_score + z for pairs, and for all pairs of two batches.

    Args:
        z: Training parameters in N(0, I) coordinates `(num_simulations, dim)`.
        x: Training simulations `(num_simulations, *shape_x)`; for sets
            `(num_simulations, m, *shape_x)`.
        embedding_net: Embeds x; None to flatten it.
        num_hidden: Width of all layers.
        num_blocks: Residual blocks of each of the three parts.
        parametrization: "bounded" or "noise".
        max_set_size: The largest set that the network takes, m.
        walls: 1 for parameters uniform between walls, else 0 `(dim,)`; None if none is.
    """

    rho: Tensor
    centre: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    walls: Tensor

    def __init__(
        self,
        z: Tensor,
        x: Tensor,
        *,
        embedding_net: nn.Module | None = None,
        num_hidden: int = 128,
        num_blocks: int = 2,
        parametrization: str = "bounded",
        max_set_size: int = 1,
        walls: Tensor | None = None,
    ) -> None:
        super().__init__()
        dim, m = z.shape[1], max_set_size
        self.bounded, self.max_set_size = parametrization == "bounded", m
        self.standardise = isinstance(embedding_net, nn.Identity | None)
        self.embedding_net = nn.Flatten() if self.standardise else embedding_net
        rows = x if m == 1 else x.flatten(0, 1)
        with torch.no_grad():
            features = self.embedding_net(rows[:2])  # type: ignore[misc]
        size = features.flatten(1).shape[1]
        centre, scale = torch.zeros(size), torch.ones(size)
        slope = torch.zeros(m, size, dim)
        offset, rho = z.mean(0).repeat(m, 1), z.std(0).repeat(m, 1)
        if self.standardise:
            flat = rows.flatten(1)
            centre, scale = flat.mean(0), flat.std(0)
            scale = torch.where(scale > 1e-8, scale, 1.0)
            if size <= MAX_LINEAR_FEATURES:
                sets = ((flat - centre) / scale).reshape(len(z), m, size)
                fits = [linear_fit(sets[:, :k].mean(1), z) for k in range(1, m + 1)]
                slope, offset, rho = map(torch.stack, zip(*fits, strict=True))
        buffers = {"centre": centre, "scale": scale, "slope": slope, "offset": offset}
        walls = torch.zeros(dim) if walls is None else walls
        self.has_walls = self.bounded and bool(walls.any())
        buffers |= {"rho": rho.clamp(min=1e-3), "walls": walls.to(z)}
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.dim, self.num_hidden = dim, num_hidden
        self.theta_net = ResidualMLP(dim + 2 * NUM_FREQUENCIES, num_hidden, 1)
        self.x_net = ResidualMLP(size, num_hidden, num_blocks)
        self.time_layer = nn.Linear(2 * NUM_FREQUENCIES, num_hidden)
        self.shifted_layer = nn.Linear(dim, num_hidden, bias=False)
        self.head = ResidualMLP(num_hidden, num_hidden, num_blocks)
        self.head.inputs = nn.Identity()  # sbi's ODE refuses layers that are not used
        num_outputs = 3 * dim + 1 if self.bounded else dim
        self.mixture = ConditionalMixture()
        self.output = nn.Sequential(nn.SiLU(), nn.Linear(num_hidden, num_outputs))
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)
        if self.bounded:
            self.quadratic_layer = nn.Linear(6, num_hidden, bias=False)
        if m > 1:
            self.set_net = ResidualMLP(num_hidden + 2, num_hidden, 1)

    def embed(self, x: Tensor) -> Tensor:
        """Return features `(batch, num_features)` of observations or sets.

        Args:
            x: `(batch, *shape_x)`; for sets `(batch, m, *shape_x)`, with `MISSING` in
                the place of observations that are missing.
        """
        if self.max_set_size == 1:
            features = self.features(x)
            linear = self.offset[0] + features @ self.slope[0]
            mixture = self.mixture.embed(features)
            return torch.cat([self.x_net(features), linear, mixture], -1)
        present = (x.flatten(2) < MISSING).all(-1)
        mask = present.reshape(*present.shape, *[1] * (x.ndim - 2))
        filled = torch.where(mask, x, 0.0).flatten(0, 1)
        features = self.features(filled).unflatten(0, present.shape)
        count = present.sum(1, keepdim=True)
        share = (present / count)[..., None]
        mean, hidden = (share * features).sum(1), (share * self.x_net(features)).sum(1)
        size = torch.cat([count / self.max_set_size, 1 / count], -1)
        hidden = hidden + self.set_net(torch.cat([hidden, size], -1))
        k = count[:, 0] - 1
        linear = self.offset[k] + torch.einsum("bi,bij->bj", mean, self.slope[k])
        return torch.cat([hidden, linear, self.rho[k]], -1)

    def features(self, x: Tensor) -> Tensor:
        """Return x `(batch, *shape_x)` embedded and scaled, `(batch, num_features)`."""
        features = self.embedding_net(x).flatten(1)  # type: ignore[misc]
        return (features - self.centre) / self.scale

    def pairs(self, z: Tensor, features: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return posterior_score + z `(batch, dim)` for rows that belong together.

        Args:
            z: `(batch, dim)`.
            features: `(batch, num_features)`, from `embed`.
            m: `(batch, 1)`.
            s: `(batch, 1)`.
        """
        return self._join(self._particle(z, m, s), z, features, m, s)

    def all_pairs(self, z: Tensor, features: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return the excess `(batch, num, dim)` for `batch` z and `num` features.

        `m` and `s` are `(1, 1)`.
        """
        particle = self._particle(z, m, s)[:, None]
        return self._join(particle, z[:, None], features, m, s)

    def gate(self, z: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return the factor of net that walls bring, `(..., dim)` or 1."""
        return blurred_slope(z, m, s) ** self.walls if self.has_walls else m.new_ones(1)

    def loss_weight(self, m: Tensor, s: Tensor) -> Tensor:
        """Return the weight of squared errors of the score at a level.

        Bounded: the denoising target has the variance m^2 rho^2 / (s^2 (m^2 rho^2 +
        s^2)) around its mean; times (s/m)^2 that is of order rho^2 to 1 at all levels.
        """
        return (s / m) ** 2 if self.bounded else s**2

    def mixed_loss_weight(self, m: Tensor, s: Tensor, precision: Tensor) -> Tensor:
        """Return the weight where the target is mixed with exact scores.

        Such a target is about as noisy at small levels as at large ones. Bounded: the
        squared error of the network's output. Where x is embedded, rho^2 is not the
        residual variance but the prior's; the posterior's is about 1 / `precision`.

        Args:
            m: `(batch, 1)`.
            s: `(batch, 1)`.
            precision: Of the posterior, on average `(dim,)`.
        """
        variance = self.rho[0] ** 2
        if not self.standardise:
            variance = torch.minimum(variance, 1 / precision)
        return (m**2 * variance + s**2) / m**2 if self.bounded else s**2

    def _particle(self, z: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """What of the head's input no observation changes."""
        time = time_features(m, s)
        rows = torch.cat([z, time.expand(*z.shape[:-1], -1)], -1)
        return self.theta_net(rows) + self.time_layer(time)

    def _join(
        self, particle: Tensor, z: Tensor, features: Tensor, m: Tensor, s: Tensor
    ) -> Tensor:
        """The excess, with observations along the second to last dimension."""
        num_mixture = self.mixture.num_embedded
        own, mixture = features.split(
            [features.shape[-1] - num_mixture, num_mixture], -1
        )
        if self.mixture.alone and not torch.is_grad_enabled():  # else: as for `head`
            return self.mixture.excess(z, mixture, m, s)
        network = self._network(particle, z, own, m, s)
        return self.mixture.blend(network, z, mixture, m, s)

    def _network(
        self, particle: Tensor, z: Tensor, features: Tensor, m: Tensor, s: Tensor
    ) -> Tensor:
        """The excess without the mixture."""
        ends = [self.num_hidden, self.num_hidden + self.dim]
        embedded, linear, rho = features.tensor_split(ends, -1)
        rho = rho if self.max_set_size > 1 else self.rho[0]
        spread = (m**2 * rho**2 + s**2).sqrt()
        # Two products in place of one: the first is shared by all observations.
        hidden = embedded - self.shifted_layer(m * linear / spread)
        hidden = particle + self.shifted_layer(z / spread) + hidden
        if not self.bounded:
            return self.output(self.head.residual(hidden)) / s + z
        forms = quadratic_features(z, linear, rho, m, s)
        hidden = hidden + self.quadratic_layer(forms)
        net = SLOW * self.output(self.head.residual(hidden))
        a, b, c, g = net.split([self.dim] * 3 + [1], -1)
        factor = bounded(g, 2 * (spread / s).log()).exp()
        explained = (1 - rho**2).clamp(min=1e-3)
        slope = explained * (1 + bounded(b, 1 / explained - 1))
        at = torch.where(self.walls > 0, bent(z, m, s), z) if self.has_walls else z
        base = (1 + bounded(a)) * linear - slope * m * at
        return self.gate(z, m, s) * m / spread * (factor * base / spread + c)
