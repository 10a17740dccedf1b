r"""A box prior and a Gaussian likelihood: posteriors that press against the walls.

    theta_i ~ U(-1, 1),    x_ji ~ N(theta_i, sigma_i^2),    i = 1..dim, j = 1..n

*Sets.* Parameters stay independent, and each posterior is a normal
N(mean_j x_ji, sigma_i^2 / n) cut off at -1 and 1.

*Diffused.* In coordinates z = Phi^-1((theta + 1) / 2) the prior is N(0, I). With
z_t = m z + s e and m^2 + s^2 = 1 the prior alone gives z | z_t ~ N(m z_t, s^2), so

    grad log p_t(z_t|x) = -z_t + (m / s) E[e' l(m z_t + s e')] / E[l(m z_t + s e')],
    e' ~ N(0, 1),    l(z) = N(x; theta(z), sigma^2)

one coordinate at a time: two integrals by Gauss-Hermite quadrature.
"""

import math

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import ScoredSimulator


class BoundedLinearGaussian(ScoredSimulator):
    """Parameters in a box, seen with Gaussian noise.

    Args:
        dim: Number of parameters and of values in x.
        noise_std: Standard deviations of the noise `(dim,)`, or one number.
        num_nodes: Nodes of the quadrature for the diffused score.

    Raises:
        InvalidInputError: If an argument is out of range.

    Example:
        >>> simulator = BoundedLinearGaussian()
        >>> x_o = simulator(torch.ones(8, 2))
        >>> bool((simulator.reference_samples(100, x_o) < 1).all())
        True
    """

    def __init__(
        self, dim: int = 2, *, noise_std: Tensor | float = 0.5, num_nodes: int = 64
    ) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim must be at least 1, got {dim}.")
        noise_std = torch.as_tensor(noise_std).double()
        if noise_std.shape not in ((), (dim,)) or not (noise_std > 0).all():
            raise InvalidInputError(
                f"noise_std must be positive, one number or ({dim},), got {noise_std}."
            )
        if num_nodes < 2:
            raise InvalidInputError(f"num_nodes must be at least 2, got {num_nodes}.")
        self.noise_std = noise_std.expand(dim).clone()
        self.prior = BoxUniform(-torch.ones(dim), torch.ones(dim))
        self.shape_x = torch.Size([dim])
        nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
        self._nodes, self._log_weights = (
            torch.from_numpy(nodes),
            torch.from_numpy(weights).log(),
        )

    def _simulate(self, theta: Tensor) -> Tensor:
        return theta + self.noise_std * torch.randn_like(theta)

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        z = (x - theta) / self.noise_std
        log_scale = self.noise_std.log() + 0.5 * math.log(2 * math.pi)
        return (-0.5 * z.square() - log_scale).sum(-1)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        return (x - theta) / self.noise_std.square()

    @torch.no_grad()
    def diffused_score(self, theta: Tensor, mean_factor: float, x: Tensor) -> Tensor:
        """Posterior score of every observation, where the prior is N(0, I).

        Args:
            theta: Diffused coordinates z_t `(batch, dim)`.
            mean_factor: The m of the noise level, above 0 and below 1.
            x: Observations `(n, dim)`.

        Returns:
            grad log p_t(z_t|x_j) with respect to z_t, `(batch, n, dim)`.

        Raises:
            InvalidInputError: If a shape or the noise level does not fit.
        """
        z_t, x = self._check_theta(theta), self._check_x(x)
        if not 0 < mean_factor < 1:
            raise InvalidInputError(
                f"mean_factor: expected a number between 0 and 1, got {mean_factor}."
            )
        s = math.sqrt(1 - mean_factor**2)
        z = mean_factor * z_t[:, None, :, None] + s * self._nodes
        at = 2 * torch.special.ndtr(z) - 1
        residual = (x[:, :, None] - at) / self.noise_std[:, None]
        weights = (self._log_weights - 0.5 * residual.square()).softmax(-1)
        shift = mean_factor / s * (weights @ self._nodes)
        return (shift - z_t[:, None]).to(theta)

    @torch.no_grad()
    def reference_samples(self, num_samples: int, x_o: Tensor) -> Tensor:
        """Exact posterior samples given a set of any size.

        Args:
            num_samples: Number of samples.
            x_o: The set `(n, dim)`, or one observation `(dim,)`.

        Returns:
            `(num_samples, dim)` inside the box, in float64.

        Raises:
            InvalidInputError: If `x_o` is not finite or has another shape.
        """
        if isinstance(x_o, Tensor) and x_o.shape == self.shape_x:
            x_o = x_o.unsqueeze(0)
        x_o = self._check_x(x_o)
        mean, std = x_o.mean(0), self.noise_std / math.sqrt(len(x_o))
        # Mirrored so that the box lies in the lower tail, where ndtr is accurate.
        sign = torch.where(mean < 0, -1.0, 1.0)
        low, high = ((edge - sign * mean) / std for edge in (-1.0, 1.0))
        low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
        u = torch.rand(num_samples, self.dim_theta, dtype=torch.float64)
        mass = (low - high).exp()
        log_cdf = high + (mass + u * (1 - mass)).log()
        samples = sign * mean + std * torch.special.ndtri(log_cdf.exp())
        return sign * samples.clamp(-1, 1)
