r"""The estimator: sbi's VP score estimator in coordinates where the prior is N(0, I).

Trained by denoising score matching,

    min E w(t) | posterior_score(z_t, t, x) + e / s |^2,    z_t = m z + s e

over simulated pairs, e ~ N(0, I) and levels drawn half uniformly in t, half in
log (s/m): its minimiser is grad log p_t(z_t|x). The weight w makes the variance of the
target about the same at all levels (`PosteriorScoreNet.loss_weight`). With exact scores
the target is another, of the same mean (`mixed_target`).

After training a mixture of Gaussians may take a share of the score (`mixture`). The
scores of sets are centred (`centring`).

*Sets.* A network for sets of up to m observations takes `(m, *shape_x)`, with places
that may be empty. In training each row is cut to a random size; for sampling `group`
divides n observations into groups of m and a smaller rest, and

    p(theta|x_1..x_n)  proportional to  p(theta)^(1-K) prod_k p(theta|group k)

is composed of K = ceil(n / m) terms in place of n.

To the host, these coordinates are those of its own composed standardisation: `to_z`
before the network, `from_z` behind it.

References: Vincent (2011), Neural Computation 23, 1661-1674; Geffner, Papamakarios &
Mnih (2023), arXiv 2209.14249.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sbi_scoreaug._host import VPScoreEstimator
from sbi_scoreaug.score_npe.centring import CentredScores
from sbi_scoreaug.score_npe.coordinates import NormalCoordinates
from sbi_scoreaug.score_npe.mixed_target import MixedTarget
from sbi_scoreaug.score_npe.network import MISSING, PosteriorScoreNet
from sbi_scoreaug.score_npe.schedule import VPSchedule


class FactorizedScoreEstimator(CentredScores):
    """Posterior score of one observation, ready to be composed for sets.

    Args:
        net: A `PosteriorScoreNet`, or the host's VP score estimator to be wrapped.
        coordinates: The map to coordinates in which the prior is N(0, I).
        condition_shape: Shape of what the network takes, `shape_x` or `(m, *shape_x)`.
        dim: Number of parameters.

    Attributes:
        trained_with_scores: Whether the loss has seen exact scores, a boolean tensor.
    """

    trained_with_scores: Tensor
    coordinates: NormalCoordinates
    batch_scores: tuple[MixedTarget, Tensor, Tensor] | None = None  # of `loss`

    def __init__(
        self,
        net: nn.Module,
        coordinates: NormalCoordinates,
        condition_shape: torch.Size,
        dim: int,
    ) -> None:
        rates = {}
        if isinstance(net, VPScoreEstimator):
            rates = {"beta_min": net.beta_min, "beta_max": net.beta_max}
        super().__init__(net, torch.Size([dim]), condition_shape, **rates)  # type: ignore[arg-type]
        self._embedding_net = getattr(net, "embedding_net", None) or nn.Identity()
        self.coordinates = coordinates
        self.empty()
        self.register_buffer("trained_with_scores", torch.tensor(False))
        self.register_buffer("_compose_standardization", torch.tensor(True))

    @property
    def max_set_size(self) -> int:
        """The largest set that the network takes, m."""
        return getattr(self.net, "max_set_size", 1)

    @property
    def observation_shape(self) -> torch.Size:
        """Shape of one observation."""
        return self.condition_shape[int(self.max_set_size > 1) :]

    def group(self, x: Tensor) -> Tensor:
        """Return groups `(ceil(n/m), *condition_shape)` of a set `(n, *shape_x)`.

        Groups are returned as they are; so are sets where m = 1.
        """
        m = self.max_set_size
        if m == 1 or x.ndim > len(self.condition_shape):
            return x
        missing = x.new_full((-len(x) % m, *x.shape[1:]), MISSING)
        return torch.cat([x, missing]).reshape(-1, *self.condition_shape)

    @property
    def schedule(self) -> VPSchedule:
        """The noise levels, for the samplers."""
        return VPSchedule(self.beta_min, self.beta_max)

    def to_z(self, theta: Tensor) -> Tensor:
        """Return coordinates `(..., dim)` in which the prior is N(0, I)."""
        return self.coordinates.to_normal(theta)

    def from_z(self, z: Tensor) -> Tensor:
        """Return parameters `(..., dim)`, inside the prior's support."""
        return self.coordinates.from_normal(z)

    def forward(
        self, input: Tensor, condition: Tensor, time: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the posterior score at coordinates z_t.

        Args:
            input: z_t `(..., dim)`.
            condition: `(..., *condition_shape)`, leading dimensions that broadcast.
            time: `(...)`, dimensions that broadcast.
            kwargs: Unused; the host's signature.

        Returns:
            Scores with the broadcast leading dimensions, `(..., dim)`.
        """
        if not isinstance(self.net, PosteriorScoreNet):
            return self.net(input=input, condition=condition, time=time)
        lead = condition.shape[: condition.ndim - len(self.condition_shape)]
        features = self.net.embed(condition.reshape(-1, *self.condition_shape))
        features = features.reshape(*lead, -1)
        batch = torch.broadcast_shapes(input.shape[:-1], lead)
        z = input.expand(*batch, -1).reshape(-1, input.shape[-1])
        features = features.expand(*batch, -1).reshape(len(z), -1)
        time = time.expand(batch).reshape(-1)
        m, s = self.mean_t_fn(time), self.std_fn(time)
        score = self.net.pairs(z, features, m, s) - z
        return score.reshape(*batch, -1)

    def embed(self, x: Tensor) -> Tensor:
        """Return what `set_score` takes of `(n, *condition_shape)`: once a call."""
        return self.net.embed(x) if isinstance(self.net, PosteriorScoreNet) else x

    @torch.no_grad()
    def set_score(self, z: Tensor, t: float, embedded: Tensor) -> Tensor:
        """Return the scores of all observations at all particles.

        Args:
            z: z_t `(batch, dim)`.
            t: The time, one for all.
            embedded: From `embed`, `(n, ...)`.

        Returns:
            `(batch, n, dim)`.
        """
        rows = z.to(self._mean_base.dtype)
        time = torch.tensor([t], dtype=rows.dtype, device=rows.device)
        if not isinstance(self.net, PosteriorScoreNet):
            return self.net(input=rows[:, None], condition=embedded, time=time)
        m, s = self.mean_t_fn(time), self.std_fn(time)
        excess = self.net.all_pairs(rows, embedded, m, s)
        return excess - (rows + self.average_error(rows, t))[:, None]

    def loss(
        self,
        input: Tensor,
        condition: Tensor,
        times: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the losses `(batch,)` of parameters and simulations.

        Args:
            input: theta `(batch, dim)`.
            condition: x `(batch, *condition_shape)`.
            times: `(batch,)`; None to draw them. The noise is drawn anew in training;
                in validation it is the same at each epoch, in whatever order the rows
                come, so that epochs are not chosen by their luck.
            kwargs: Of the host's loss, for a network of the host.
        """
        net = self.net
        if not isinstance(net, PosteriorScoreNet) and self.batch_scores is None:
            return net.loss(self.to_z(input), condition, times, **kwargs)  # type: ignore[operator]
        draw, rank = None, torch.arange(len(input), device=input.device)
        if not self.training:
            draw = torch.Generator(input.device).manual_seed(0)
            rank = input[:, 0].argsort(stable=True).argsort()
        z, condition = self.to_z(input), self._random_subsets(condition, draw, rank)
        times = self.train_schedule(len(z)) if times is None else times
        times = times.to(z.device)
        noise = torch.randn(z.shape, generator=draw, device=z.device)[rank].to(z)
        z_t, target, weight = self.denoising(z, times, noise)
        score = self.forward(z_t, condition, times)
        return (weight * (score - target) ** 2).sum(-1)

    def denoising(
        self, z: Tensor, times: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return z_t, the score's target and the weight of its squared errors.

        Args:
            z: Coordinates of simulated parameters `(batch, dim)`.
            times: `(batch,)`.
            noise: e `(batch, dim)`.
        """
        own = self.net if isinstance(self.net, PosteriorScoreNet) else None
        m, s = self.mean_t_fn(times), self.std_fn(times)
        target, weight = -noise / s, own.loss_weight(m, s) if own else s**2
        if self.batch_scores is not None:
            mixed_target, g, known = self.batch_scores
            target = mixed_target(g, known, noise, m, s)
            if own:
                mixed_weight = own.mixed_loss_weight(m, s, mixed_target.precision)
                weight = torch.where(known[:, None], mixed_weight, weight)
        return m * z + s * noise, target, weight

    def _random_subsets(
        self, x: Tensor, draw: torch.Generator | None, rank: Tensor
    ) -> Tensor:
        """Leave 1 to m observations of each row, any number equally often."""
        if self.max_set_size == 1:
            return x
        options: dict[str, Any] = {"generator": draw, "device": x.device}
        order = torch.rand(x.shape[:2], **options)[rank].argsort(1)
        size = torch.randint(1, x.shape[1] + 1, (len(x), 1), **options)[rank]
        absent = (order >= size).reshape(*order.shape, *[1] * (x.ndim - 2))
        return x.masked_fill(absent, MISSING)

    def train_schedule(
        self, num_samples: int, t_min: float | None = None, t_max: float | None = None
    ) -> Tensor:
        """Return times `(num_samples,)`, half uniform in t, half in log (s/m)."""
        t_min = self.t_min if t_min is None else t_min
        t_max = self.t_max if t_max is None else t_max
        u = torch.rand(num_samples, device=self._mean_base.device)
        uniform = t_min + (t_max - t_min) * u
        low, high = (
            torch.tensor(self.schedule.noise_to_signal(t)) for t in (t_min, t_max)
        )
        exponent = torch.log1p((low.log() + (high / low).log() * u).exp())
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * exponent).sqrt()
        spaced = 2 * exponent / (self.beta_min + root)
        half = torch.arange(num_samples, device=u.device) % 2 == 0
        return torch.where(half, uniform, spaced)
