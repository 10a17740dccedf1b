r"""The network that estimates the posterior score of one observation.

In N(0, I) coordinates, with the noise level (m, s), the network net gives

    bounded (default)   posterior_score = -z + m net / sqrt(m^2 rho^2 + s^2)
    noise               posterior_score = net / s

rho is the residual standard deviation of a linear regression of z on x: the scale on
which the posterior can vary. Bounded, the error of the score stays bounded as s goes to
0, and the prior's score -z is exact at large noise. The paper's form is "noise".

*Shape.* Residual MLPs for theta and for x, sinusoids of time, and a residual MLP on
their sum. As in the paper three embeddings meet; here they meet by addition, a linear
layer of their concatenation, so that each is computed once for all pairs of a particle
and an observation. theta enters also as (z - m xhat) / sqrt(m^2 rho^2 + s^2), with xhat
the linear prediction: it is of order one at every level.

References: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, appendix; Karras et
al. (2022), arXiv 2206.00364, on preconditioning.
"""

import math

import torch
from torch import Tensor, nn

MAX_LINEAR_FEATURES = 500


class ResidualMLP(nn.Module):
    """A linear layer, residual blocks of SiLU layers, and no output layer."""

    def __init__(self, num_inputs: int, num_hidden: int, num_blocks: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(num_inputs, num_hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(num_hidden, num_hidden),
                nn.SiLU(),
                nn.Linear(num_hidden, num_hidden),
            )
            for _ in range(num_blocks)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return `(..., num_hidden)` for `(..., num_inputs)`."""
        return self.residual(self.inputs(rows))

    def residual(self, hidden: Tensor) -> Tensor:
        """Apply the blocks alone."""
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class PosteriorScoreNet(nn.Module):
    """Excess posterior_score + z for pairs, and for all pairs of two batches.

    Args:
        z: Training parameters in N(0, I) coordinates `(num_simulations, dim)`.
        x: Training simulations `(num_simulations, *shape_x)`.
        embedding_net: Embeds x; None to flatten it.
        num_hidden: Width of all layers.
        num_blocks: Residual blocks of each of the three parts.
        parametrization: "bounded" or "noise".
    """

    rho: Tensor
    centre: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(
        self,
        z: Tensor,
        x: Tensor,
        *,
        embedding_net: nn.Module | None = None,
        num_hidden: int = 128,
        num_blocks: int = 2,
        parametrization: str = "bounded",
    ) -> None:
        super().__init__()
        dim = z.shape[1]
        self.bounded = parametrization == "bounded"
        self.standardise = embedding_net is None or isinstance(
            embedding_net, nn.Identity
        )
        self.embedding_net = nn.Flatten() if self.standardise else embedding_net
        with torch.no_grad():
            features = self.embedding_net(x[:2])  # type: ignore[misc]
        size = features.flatten(1).shape[1]
        centre, scale = torch.zeros(size), torch.ones(size)
        slope, offset, rho = torch.zeros(size, dim), z.mean(0), z.std(0)
        if self.standardise:
            flat = x.flatten(1)
            centre, scale = flat.mean(0), flat.std(0)
            scale = torch.where(scale > 1e-8, scale, 1.0)
            if size <= MAX_LINEAR_FEATURES:
                slope, offset, rho = _linear_fit((flat - centre) / scale, z)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)
        self.register_buffer("rho", rho.clamp(min=1e-3))
        self.dim, self.num_frequencies = dim, 3
        self.theta_net = ResidualMLP(dim + 2 * self.num_frequencies, num_hidden, 1)
        self.x_net = ResidualMLP(size, num_hidden, num_blocks)
        self.time_layer = nn.Linear(2 * self.num_frequencies, num_hidden)
        self.shifted_layer = nn.Linear(dim, num_hidden, bias=False)
        self.head = ResidualMLP(num_hidden, num_hidden, num_blocks)
        self.output = nn.Sequential(nn.SiLU(), nn.Linear(num_hidden, dim))

    def embed(self, x: Tensor) -> Tensor:
        """Return features `(batch, num_hidden + dim)` for `x (batch, *shape_x)`."""
        features = self.embedding_net(x).flatten(1)  # type: ignore[misc]
        features = (features - self.centre) / self.scale
        linear = self.offset + features @ self.slope
        return torch.cat([self.x_net(features), linear], -1)

    def pairs(self, z: Tensor, features: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return the excess for rows that belong together.

        Args:
            z: `(batch, dim)`.
            features: `(batch, num_hidden + dim)`.
            m: `(batch, 1)`.
            s: `(batch, 1)`.

        Returns:
            posterior_score + z, `(batch, dim)`.
        """
        particle, observation = self._sides(z, features, m, s)
        return self._finish(particle + observation, z, m, s)

    def all_pairs(self, z: Tensor, features: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return the excess `(batch, num, dim)` for `batch` z and `num` features.

        `m` and `s` are `(1, 1)`.
        """
        particle, observation = self._sides(z, features, m, s)
        hidden = particle[:, None] + observation
        return self._finish(hidden, z[:, None], m, s)

    def output_scale(self, m: Tensor, s: Tensor) -> Tensor:
        """Return the factor between the network's output and a score."""
        return m * (m**2 * self.rho**2 + s**2) ** -0.5 if self.bounded else 1 / s

    def loss_weight(self, m: Tensor, s: Tensor) -> Tensor:
        """Return the weight of squared errors of the score at a level.

        Bounded: the denoising target has the variance m^2 rho^2 / (s^2 (m^2 rho^2 +
        s^2)) around its mean; times (s/m)^2 that is of order rho^2 to 1 at all levels.
        """
        return (s / m) ** 2 if self.bounded else s**2

    def mixed_loss_weight(self, m: Tensor, s: Tensor) -> Tensor:
        """Return the weight where the target is mixed with exact scores.

        Such a target is about as noisy at small levels as at large ones. Bounded: the
        squared error of the network's output, whose scale is `output_scale`.
        """
        return self.output_scale(m, s) ** -2 if self.bounded else s**2

    def _sides(
        self, z: Tensor, features: Tensor, m: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two summands of the head's input: from particles, and from observations."""
        embedded, linear = features.split([features.shape[-1] - self.dim, self.dim], -1)
        spread = (m**2 * self.rho**2 + s**2).sqrt()
        time = self._time_features(m, s)
        rows = torch.cat([z, time.expand(*z.shape[:-1], -1)], -1)
        particle = self.theta_net(rows) + self.shifted_layer(z / spread)
        particle = particle + self.time_layer(time)
        return particle, embedded - self.shifted_layer(m * linear / spread)

    def _finish(self, hidden: Tensor, z: Tensor, m: Tensor, s: Tensor) -> Tensor:
        net = self.output(self.head.residual(hidden))
        excess = self.output_scale(m, s) * net
        return excess if self.bounded else excess + z

    def _time_features(self, m: Tensor, s: Tensor) -> Tensor:
        """Sinusoids of log (s/m), which runs from about -4 to 3."""
        level = (s / m).log() / 8
        octaves = 2.0 ** torch.arange(self.num_frequencies, device=m.device) / 2
        angles = math.pi * level * octaves
        return torch.cat([angles.sin(), angles.cos()], -1)


def _linear_fit(features: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of z on standardised features: slope, offset, residual sd."""
    features, targets = features.double(), z.double()
    num, size = features.shape
    offset = targets.mean(0)
    gram = features.mT @ features / num
    # One observation in num of ridge: negligible unless there are few simulations.
    gram = gram + (0.01 + size / num) * 0.1 * torch.eye(size).double()
    slope = torch.linalg.solve(gram, features.mT @ (targets - offset) / num)
    residual = targets - offset - features @ slope
    rho = residual.std(0) * (num / max(num - size, num / 4)) ** 0.5
    return slope.float(), offset.float(), rho.float()
