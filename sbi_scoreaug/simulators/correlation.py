r"""Exponential correlation on a square grid, split by the grid's mirror symmetries.

    R_ij = exp(-d_ij / r),    dR_ij / d log r = R_ij d_ij / r

for pixels i, j of a unit-spaced g x g grid at Euclidean distance d_ij and range r.
R does not change when the grid is flipped along either axis, so it maps images that
are even (or odd) under a flip to images of the same kind. For even g and h = g / 2
take the orthonormal rows (h, g)

    E_s = (e_i + s e_{g-1-i}) / sqrt 2,    s in {+1, -1},    i < h.

The four coefficient images C_st = E_s Y E_t' of a field Y are then uncorrelated
with each other: R is block diagonal. With Q_ab(i, j) the correlation of pixel i with
pixel j flipped a times up-down and b times left-right, i and j in the first quadrant,

    R_st = sum_{a, b in {0, 1}} s^a t^b Q_ab.

Four Cholesky factors of a quarter of the size cost a sixteenth of one factor of R,
and the exponential is taken once for each distinct distance.

References: Cressie (1993), Statistics for Spatial Data, section 2.3, for the model;
Cantoni and Butler (1976), Linear Algebra and its Applications 13, 275-288, for
matrices that are symmetric under a flip.
"""

import torch
from torch import Tensor


class ExponentialCorrelation:
    """The correlation matrix R of a grid as four blocks, one a pair of parities.

    Args:
        grid_size: Pixels along each side of the grid, even.

    Example:
        >>> import torch
        >>> correlation = ExponentialCorrelation(4)
        >>> correlation.blocks(torch.zeros(3)).shape
        torch.Size([3, 4, 4, 4])
    """

    def __init__(self, grid_size: int) -> None:
        half = grid_size // 2
        pixel = torch.arange(half)
        flips = torch.stack([pixel, grid_size - 1 - pixel])
        gap = (pixel[None, :, None] - flips[:, None, :]).square()  # (a, row, row')
        squared = gap[:, None, :, None, :, None] + gap[None, :, None, :, None, :]
        squared, index = squared.unique(return_inverse=True)  # (a, b, row, col, ...)
        self._shape = (2, 2, half * half, half * half)
        self._index = index.flatten()
        self._distance = squared.double().sqrt()
        identity = torch.eye(grid_size, dtype=torch.float64)
        even, odd = identity + identity.flip(0), identity - identity.flip(0)
        self._bases = torch.stack([even[:half], odd[:half]]) / 2**0.5

    def split(self, image: Tensor) -> Tensor:
        """Coefficients of images in the four symmetry classes.

        Args:
            image: Fields `(batch, grid_size, grid_size)` in float64.

        Returns:
            Coefficients `(batch, 4, grid_size ** 2 / 4)`.
        """
        rows = self._bases @ image.unsqueeze(1)
        both = rows.unsqueeze(2) @ self._bases.mT
        return both.flatten(3).flatten(1, 2)

    def join(self, coefficients: Tensor) -> Tensor:
        """Fields with given coefficients: the inverse of `split`.

        Args:
            coefficients: `(batch, 4, grid_size ** 2 / 4)` in float64.

        Returns:
            Fields `(batch, grid_size, grid_size)`.
        """
        half = self._bases.shape[1]
        both = coefficients.reshape(-1, 2, 2, half, half)
        rows = (both @ self._bases).sum(dim=2)
        return (self._bases.mT @ rows).sum(dim=1)

    def blocks(self, log_range: Tensor) -> Tensor:
        """The four diagonal blocks of R.

        Args:
            log_range: Logarithm of the range in pixels `(batch,)`, float64.

        Returns:
            Blocks `(batch, 4, grid_size ** 2 / 4, grid_size ** 2 / 4)`.
        """
        return self._assemble((-self._scaled_distance(log_range)).exp())

    def derivative_blocks(self, log_range: Tensor) -> Tensor:
        """The four diagonal blocks of dR / d log range, shaped as `blocks`."""
        scaled = self._scaled_distance(log_range)
        return self._assemble(scaled * (-scaled).exp())

    def _scaled_distance(self, log_range: Tensor) -> Tensor:
        return self._distance * (-log_range).exp()[:, None]

    def _assemble(self, values: Tensor) -> Tensor:
        """Blocks R_st from values at the distinct distances `(batch, distances)`."""
        quadrants = values.index_select(1, self._index).reshape(-1, *self._shape)
        plain, flipped = quadrants.unbind(dim=1)
        rows = torch.stack([plain + flipped, plain - flipped], dim=1)
        plain, flipped = rows.unbind(dim=2)
        blocks = torch.stack([plain + flipped, plain - flipped], dim=2)
        return blocks.flatten(1, 2)
