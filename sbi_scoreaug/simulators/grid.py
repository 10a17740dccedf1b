r"""Exact posteriors on a regular grid.

With few parameters and a density that can be evaluated, Bayes' rule needs no
sampler. The box prior is cut into G equal cells with centres theta_g; under its
constant density

    p_g = p(x_o | theta_g) / sum_h p(x_o | theta_h),      p(theta | x_o) ~ p_g / |cell|

for every theta in cell g. The approximation is the midpoint rule: its error falls
with the square of the cell's width over the posterior's. All moments, samples and
densities below are those of the same piecewise constant density.
"""

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError


def theta_grid(prior: BoxUniform, points_per_axis: int) -> Tensor:
    """Centres of the cells into which a box prior is cut.

    Args:
        prior: The box.
        points_per_axis: Number of cells along each parameter, at least 2.

    Returns:
        Centres, `(points_per_axis ** dim_theta, dim_theta)`, the last parameter
        varying fastest.

    Raises:
        InvalidInputError: If `points_per_axis` is below 2.

    Example:
        >>> theta_grid(BoxUniform(torch.zeros(1), torch.ones(1)), 2)
        tensor([[0.2500],
                [0.7500]])
    """
    if points_per_axis < 2:
        raise InvalidInputError(
            f"points_per_axis must be at least 2, got {points_per_axis}."
        )
    low, high = box_bounds(prior)
    fractions = (torch.arange(points_per_axis, dtype=torch.float64) + 0.5) / (
        points_per_axis
    )
    axes = [a + (b - a) * fractions for a, b in zip(low, high, strict=True)]
    mesh = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([axis.flatten() for axis in mesh], dim=1).float()


def box_bounds(prior: BoxUniform) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of a box prior, each `(dim_theta,)` in float64."""
    uniform = prior.base_dist
    return uniform.low.double().cpu(), uniform.high.double().cpu()


class GridPosterior:
    """A density that is constant on the cells of a regular grid.

    Args:
        theta: Cell centres `(num_cells, dim_theta)` in the order of `theta_grid`.
        log_prob: Log probabilities of the cells up to a constant, `(num_cells,)`.

    Attributes:
        theta: The cell centres.
        shape: Cells along each parameter; `probs.reshape(shape)` is an image.
        probs: Probabilities of the cells `(num_cells,)`, summing to one.
        log_probs: Their logarithms.
        mean: Mean of the density `(dim_theta,)`.
        stddev: Standard deviation of the density `(dim_theta,)`.

    Raises:
        InvalidInputError: If `theta` is no regular grid or `log_prob` does not
            fit it, holds NaN or is nowhere finite.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> theta = theta_grid(BoxUniform(-torch.ones(2), torch.ones(2)), 4)
        >>> posterior = GridPosterior(theta, -theta.square().sum(dim=1))
        >>> posterior.shape, posterior.sample((3,)).shape
        ((4, 4), torch.Size([3, 2]))
    """

    def __init__(self, theta: Tensor, log_prob: Tensor) -> None:
        if theta.ndim != 2 or log_prob.shape != theta.shape[:1]:
            raise InvalidInputError(
                "theta must be (num_cells, dim_theta) and log_prob (num_cells,), "
                f"got {tuple(theta.shape)} and {tuple(log_prob.shape)}."
            )
        if log_prob.isnan().any() or not log_prob.max().isfinite():
            raise InvalidInputError(
                "log_prob must be finite somewhere and nowhere NaN or +inf: "
                "the observation may be impossible under every theta of the grid."
            )
        self.theta = theta.float()
        axes = [column.unique() for column in self.theta.T]
        self.shape = tuple(len(axis) for axis in axes)
        if min(self.shape) < 2 or not torch.equal(
            torch.cartesian_prod(*axes).reshape(-1, len(axes)), self.theta
        ):
            raise InvalidInputError(
                "theta must be a full grid with at least two points along every "
                "parameter, the last varying fastest: build it with theta_grid."
            )
        self._low = torch.stack([axis[0] for axis in axes]).double()
        self._width = torch.stack(
            [(axis[-1] - axis[0]).double() / (len(axis) - 1) for axis in axes]
        )
        self._low = self._low - self._width / 2
        log_probs = log_prob.detach().double().log_softmax(dim=0)
        probs, centres = log_probs.exp(), self.theta.double()
        mean = probs @ centres
        variance = probs @ (centres - mean).square() + self._width.square() / 12
        self.log_probs, self.probs = log_probs.float(), probs.float()
        self.mean, self.stddev = mean.float(), variance.sqrt().float()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw a cell by its probability, then a point uniformly inside it.

        Args:
            sample_shape: Shape of the sample.

        Returns:
            Samples `(*sample_shape, dim_theta)`.
        """
        sample_shape = torch.Size(sample_shape)
        cells = self.probs.multinomial(sample_shape.numel(), replacement=True)
        centres = self.theta[cells]
        jitter = (torch.rand_like(centres) - 0.5) * self._width.float()
        return (centres + jitter).reshape(*sample_shape, -1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density at `theta`.

        Args:
            theta: Parameters `(batch, dim_theta)`.

        Returns:
            Log densities `(batch,)`, minus infinity outside the grid.

        Raises:
            InvalidInputError: If `theta` is not `(batch, dim_theta)`.
        """
        if theta.ndim != 2 or theta.shape[1] != len(self.shape):
            raise InvalidInputError(
                f"theta must be (batch, {len(self.shape)}), got {tuple(theta.shape)}."
            )
        shape = torch.tensor(self.shape)
        position = ((theta.detach().cpu().double() - self._low) / self._width).floor()
        inside = ((position >= 0) & (position < shape)).all(dim=1)
        index = torch.minimum(position.clamp(min=0), shape - 1).long()
        stride = torch.tensor([shape[k + 1 :].prod() for k in range(len(shape))])
        density = self.log_probs[(index * stride).sum(dim=1)] - self._width.log().sum()
        return density.where(inside, -torch.inf).float()
