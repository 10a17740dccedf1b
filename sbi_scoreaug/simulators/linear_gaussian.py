r"""Linear Gaussian model: the one where everything is known.

    theta ~ N(0, I),    x = A theta + e,    e ~ N(0, S),    S = diag(noise_std^2)

    log p(x|theta) = -1/2 r' S^-1 r - 1/2 log |2 pi S|,     r = x - A theta
    score          = A' S^-1 r
    posterior      = N(m, C),    C = (I + A' S^-1 A)^-1,    m = C A' S^-1 x_o

By default A mixes each parameter mildly with the next one and the noise grows from
coordinate to coordinate, so that swapped rows, columns or scales show.

Reference: Bishop (2006), Pattern Recognition and Machine Learning, section 2.3.3.
"""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import ScoredSimulator


class LinearGaussian(ScoredSimulator):
    """Linear map of a standard normal parameter plus independent Gaussian noise.

    Args:
        dim: Number of parameters.
        mixing: The matrix A `(dim_x, dim)`; by default the identity plus 0.3 on the
            diagonal above it.
        noise_std: Standard deviations of the noise `(dim_x,)` or one number for all;
            by default evenly spaced from 0.3 to 0.9.

    Raises:
        InvalidInputError: If a shape does not fit, or `noise_std` is not positive.

    Example:
        >>> simulator = LinearGaussian(dim=3)
        >>> theta = simulator.prior.sample((4,))
        >>> x = simulator(theta)
        >>> x.shape, simulator.score(theta, x).shape
        (torch.Size([4, 3]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        dim: int = 5,
        *,
        mixing: Tensor | None = None,
        noise_std: Tensor | float | None = None,
    ) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim must be at least 1, got {dim}.")
        if mixing is None:
            mixing = torch.eye(dim) + 0.3 * torch.ones(dim, dim).triu(1).tril(1)
        if mixing.ndim != 2 or mixing.shape[1] != dim:
            raise InvalidInputError(
                f"mixing must be (dim_x, {dim}), got {tuple(mixing.shape)}."
            )
        dim_x = len(mixing)
        if noise_std is None:
            noise_std = torch.linspace(0.3, 0.9, dim_x)
        noise_std = torch.as_tensor(noise_std)
        if noise_std.shape not in ((), (dim_x,)) or not (noise_std > 0).all():
            raise InvalidInputError(
                f"noise_std must be positive, one number or ({dim_x},), got {noise_std}"
            )
        self.mixing = mixing.double()
        self.noise_std = noise_std.double().expand(dim_x).clone()
        self.prior = MultivariateNormal(torch.zeros(dim), torch.eye(dim))
        self.shape_x = torch.Size([dim_x])

    def _simulate(self, theta: Tensor) -> Tensor:
        noise = torch.randn(len(theta), *self.shape_x, dtype=theta.dtype)
        return theta @ self.mixing.T + self.noise_std * noise

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        standardised = (x - theta @ self.mixing.T) / self.noise_std
        log_scale = self.noise_std.log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * standardised.square().sum(dim=1) - log_scale.sum()

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        residual = x - theta @ self.mixing.T
        return (residual / self.noise_std.square()) @ self.mixing

    def exact_posterior(self, x_o: Tensor) -> MultivariateNormal:
        """The Gaussian posterior of one observation.

        Args:
            x_o: The observation, `(1, dim_x)` or `(dim_x,)`.

        Returns:
            The posterior over `(dim,)`.

        Raises:
            InvalidInputError: If `x_o` is not one finite observation.
        """
        x_o = self._check_observation(x_o)[0]
        weighted = self.mixing.T / self.noise_std.square()
        precision = torch.eye(self.dim_theta).double() + weighted @ self.mixing
        covariance = torch.linalg.inv(precision)
        mean = covariance @ (weighted @ x_o)
        covariance = (covariance + covariance.T) / 2
        return MultivariateNormal(mean.float(), covariance.float())
