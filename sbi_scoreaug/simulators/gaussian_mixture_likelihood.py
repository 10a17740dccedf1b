r"""A common centre seen through a wide or a narrow lens.

    theta ~ N(0, I),    x_j ~ 1/2 N(theta, 2.25 S) + 1/2 N(theta, S / 9),    j = 1..n

S is diagonal with variances from 0.6 to 1.4. Posteriors of single observations are
peaked and heavy-tailed; those of sets are mixtures of 2^n Gaussians.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, appendix C.
"""

import torch

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.linear_mixture import LinearGaussianMixture


class GaussianMixtureLikelihood(LinearGaussianMixture):
    """The centre of two Gaussians of very different widths.

    Args:
        dim: Number of parameters and of values in x.

    Raises:
        InvalidInputError: If `dim` is below 1.

    Example:
        >>> simulator = GaussianMixtureLikelihood(dim=3)
        >>> x_o = simulator(simulator.prior.sample((1,)).expand(4, -1))
        >>> simulator.exact_posterior(x_o).mixture_distribution.probs.shape
        torch.Size([16])
    """

    def __init__(self, dim: int = 10) -> None:
        if dim < 1:
            raise InvalidInputError(f"dim must be at least 1, got {dim}.")
        covariance = torch.linspace(0.6, 1.4, dim).double().diag()
        super().__init__(
            torch.tensor([0.5, 0.5]),
            torch.ones(2),
            torch.stack([2.25 * covariance, covariance / 9]),
        )
