r"""Observations that lose the sign of their parameter: a posterior with two modes.

    theta ~ N(0, I_2),    x_j ~ w N(theta, I/2) + (1 - w) N(-theta, I/2),    j = 1..n

With w = 1/2 the sign is lost: two modes of equal mass at every n. With w = 0.7 one
mode gains mass as n grows, so that a sampler has to weigh modes far apart.

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249, section 5.
"""

import torch

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.linear_mixture import LinearGaussianMixture


class SignFlip(LinearGaussianMixture):
    """A point in the plane, or its mirror image, seen with noise.

    Args:
        weight: Probability w that the sign is kept.

    Raises:
        InvalidInputError: If `weight` is not between 0 and 1.

    Example:
        >>> simulator = SignFlip(weight=0.7)
        >>> x_o = simulator(torch.ones(4, 2))
        >>> simulator.reference_samples(100, x_o).shape
        torch.Size([100, 2])
    """

    def __init__(self, weight: float = 0.5) -> None:
        if not 0 < weight < 1:
            raise InvalidInputError(
                f"weight must lie between 0 and 1, both excluded, got {weight}."
            )
        super().__init__(
            torch.tensor([weight, 1 - weight]).double(),
            torch.tensor([1.0, -1.0]),
            0.5 * torch.eye(2).expand(2, 2, 2),
        )
