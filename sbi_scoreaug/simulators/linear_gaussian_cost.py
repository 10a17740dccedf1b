r"""Linear Gaussian model under a squared distance: the posterior is Gaussian.

    theta ~ N(0, I),    x = theta + shift + e,    e ~ N(0, v I),    dim D

    d(x, x_t)     = |x - x_t|^2 / D
    c(theta, x_t) = |theta + shift - x_t|^2 / D + v
    p_beta(theta | x_o) = N( a / (1 + a) (x_o - shift), I / (1 + a) ),   a = 2 beta / D

The usual posterior is the case beta = D / (2 v), which `calibrated_beta` returns: the
value that a calibration from well-specified simulations must find.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208, "linear Gaussian".
"""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.cost_base import CostSimulator


class LinearGaussianCost(CostSimulator):
    """A shifted standard normal parameter with Gaussian noise, mean squared distance.

    Args:
        dim: Number D of parameters and of components of x.
        noise_variance: Variance v of the noise.
        shift: Shift `(dim,)`; by default evenly spaced from -1 to 1.

    Attributes:
        calibrated_beta: The beta whose posterior is the usual one, D / (2 v).

    Raises:
        InvalidInputError: If `dim` is below 1, the variance is not positive, or
            `shift` has another shape.

    Example:
        >>> problem = LinearGaussianCost(dim=3)
        >>> theta = problem.prior.sample((4,))
        >>> problem.exact_posterior(problem(theta)[0], beta=1.5).mean.shape
        torch.Size([3])
        >>> problem.calibrated_beta
        15.0
    """

    betas = (1.0, 10.0, 100.0)

    def __init__(
        self, dim: int = 10, *, noise_variance: float = 0.1, shift: Tensor | None = None
    ) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim: expected at least 1, got {dim}.")
        if not noise_variance > 0:
            raise InvalidInputError(
                f"noise_variance: expected a positive number, got {noise_variance}."
            )
        if shift is None:
            shift = torch.linspace(-1, 1, dim)
        if shift.shape != (dim,):
            raise InvalidInputError(
                f"shift: expected shape ({dim},), got {tuple(shift.shape)}."
            )
        self.shift = shift.double()
        self.noise_variance = noise_variance
        self.calibrated_beta = dim / (2 * noise_variance)
        self.prior = MultivariateNormal(torch.zeros(dim), torch.eye(dim))
        self.shape_x = torch.Size([dim])

    def _simulate(self, theta: Tensor) -> Tensor:
        noise = self.noise_variance**0.5 * torch.randn_like(theta)
        return theta + self.shift + noise

    def _expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor:
        residual = theta + self.shift - x_t
        return residual.square().mean(dim=1) + self.noise_variance

    def exact_posterior(self, x_o: Tensor, beta: float) -> MultivariateNormal:
        """The Gaussian above; see `CostSimulator.exact_posterior`."""
        x_o = self._check_question(x_o, beta)[0]
        precision = 2 * beta / self.dim_theta
        mean = precision / (1 + precision) * (x_o - self.shift)
        covariance = torch.eye(self.dim_theta) / (1 + precision)
        return MultivariateNormal(mean.float(), covariance)
