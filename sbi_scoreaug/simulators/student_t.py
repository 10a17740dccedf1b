r"""Student-t random field with unknown variance and range.

A Gaussian field with covariance K, multiplied by sqrt((nu - 2) / c) with one
c ~ chi^2_nu for the whole image: a multivariate t with nu > 2 degrees of freedom whose
covariance is K, so whose scale matrix is (nu - 2) / nu K. With q = y' K^-1 y

    log p(y|theta) = log Gamma((nu + n)/2) - log Gamma(nu/2) - n/2 log((nu - 2) pi)
                     - 1/2 log |K| - (nu + n)/2 log(1 + q / (nu - 2))

    s_k = 1/2 tr[(w a a' - K^-1) d_k K],    w = (nu + n) / (nu - 2 + q)

with a = K^-1 y and all else as in `gaussian_process`, the limit of large nu. An image
says little about the variance, because one draw of c scales all pixels together.

References: Shah, Wilson and Ghahramani (2014), Student-t Processes as Alternatives to
Gaussian Processes, arXiv 1402.4306, definition 2.1.
"""

import math

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.gaussian_process import FieldSimulator


class StudentTField(FieldSimulator):
    """Zero-mean Student-t field with exponential covariance on a square grid.

    Parameters and prior as in `GaussianProcessField`.

    Args:
        grid_size: Pixels along each side of the image, even.
        degrees_of_freedom: nu, above 2 so that the covariance exists.

    Raises:
        InvalidInputError: If `grid_size` is not a positive even number or
            `degrees_of_freedom` not a finite number above 2.

    Example:
        >>> simulator = StudentTField(grid_size=8, degrees_of_freedom=4.0)
        >>> theta = simulator.prior.sample((4,))
        >>> x = simulator(theta)
        >>> x.shape, simulator.score(theta, x).shape
        (torch.Size([4, 8, 8]), torch.Size([4, 2]))
    """

    def __init__(self, grid_size: int = 16, degrees_of_freedom: float = 5.0) -> None:
        super().__init__(grid_size)
        if not 2 < degrees_of_freedom < math.inf:
            raise InvalidInputError(
                "degrees_of_freedom must be finite and above 2, where the covariance "
                f"exists, got {degrees_of_freedom}."
            )
        self.degrees_of_freedom = float(degrees_of_freedom)

    def _amplitude(self, batch: int) -> Tensor:
        nu = torch.full((batch,), self.degrees_of_freedom, dtype=torch.float64)
        chi_square = torch.distributions.Chi2(nu).sample()
        return ((nu - 2) / chi_square).sqrt()

    def _log_density(self, quadratic: Tensor, log_det: Tensor) -> Tensor:
        nu, n = self.degrees_of_freedom, self.shape_x.numel()
        constant = math.lgamma((nu + n) / 2) - math.lgamma(nu / 2)
        constant -= n / 2 * math.log((nu - 2) * math.pi)
        log_kernel = -(nu + n) / 2 * (quadratic / (nu - 2)).log1p()
        return constant - 0.5 * log_det + log_kernel

    def _weight(self, quadratic: Tensor) -> Tensor:
        nu, n = self.degrees_of_freedom, self.shape_x.numel()
        return (nu + n) / (nu - 2 + quadratic)
