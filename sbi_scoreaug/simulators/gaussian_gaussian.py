r"""Gaussian prior, Gaussian likelihood, any number of observations.

    theta ~ N(0, I),    x_j ~ N(theta, S),    j = 1..n
    posterior = N(m, C),    C = (I + n S^-1)^-1,    m = C S^-1 sum_j x_j

By default S is diagonal with variances from 0.6 to 1.4, as in the paper. With
`correlation` S_ij = rho^|i-j| sqrt(v_i v_j), and `variances` may differ by orders of
magnitude: the directions of the posterior then contract at different noise levels.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, appendix C.
"""

import torch
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.linear_mixture import LinearGaussianMixture


class GaussianGaussian(LinearGaussianMixture):
    """The mean of a normal distribution with known covariance.

    Args:
        dim: Number of parameters and of values in x.
        variances: Variances of the noise `(dim,)`; from 0.6 to 1.4 by default.
        correlation: Correlation of neighbouring coordinates of the noise.

    Raises:
        InvalidInputError: If an argument is out of range.

    Example:
        >>> simulator = GaussianGaussian(dim=3, correlation=0.8)
        >>> x_o = simulator(simulator.prior.sample((1,)).expand(8, -1))
        >>> simulator.exact_posterior(x_o).mean.shape
        torch.Size([3])
    """

    def __init__(
        self,
        dim: int = 10,
        *,
        variances: Tensor | None = None,
        correlation: float = 0.0,
    ) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim must be at least 1, got {dim}.")
        if not -1 < correlation < 1:
            raise InvalidInputError(
                f"correlation must lie between -1 and 1, got {correlation}."
            )
        if variances is None:
            variances = torch.linspace(0.6, 1.4, dim)
        if variances.shape != (dim,) or not (variances > 0).all():
            raise InvalidInputError(
                f"variances must be ({dim},) and positive, got {variances}."
            )
        std = variances.double().sqrt()
        lags = (torch.arange(dim)[:, None] - torch.arange(dim)).abs()
        covariance = torch.tensor(correlation).double() ** lags * std * std[:, None]
        super().__init__(torch.ones(1), torch.ones(1), covariance[None])
