r"""What every problem with a known expected cost offers, and how to add one.

Generalized Bayes replaces -log p(x_o | theta) by beta times an expected distance:

    c(theta, x_t)             = E[ d(x, x_t) | theta ],   x ~ p(x | theta)
    p_beta(theta | x_o)       ~ exp(-beta c(theta, x_o)) p(theta)

A problem whose c has a closed form has an exact generalized posterior for every
observation, also for one that the simulator cannot produce.

How to implement your own: subclass `CostSimulator` (`BoxCostSimulator` when the prior
is a box with one or two parameters), set `prior`, `shape_x` and `betas`, and write
`_simulate`, `distance` and `_expected_cost` in float64. Then add the class to the
registry in `tests/simulators_costs_test.py`: every generic test runs on it.

Reference: Gao, Deistler & Macke (2023), arXiv 2305.15208.
"""

from abc import abstractmethod

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators.base import Simulator
from sbi_scoreaug.simulators.grid import GridPosterior, theta_grid

RANGE_SIMULATIONS = 100_000
STEP_IN_STDDEVS = 0.5


class CostSimulator(Simulator):
    """A simulator, a distance, and the exact expectation of that distance.

    Attributes:
        betas: A low, a middle and a high inverse temperature for benchmarks.
        distance_name: The name of `distance` in `sbi_scoreaug.amortized_cost`.

    Raises:
        InvalidInputError, InvalidTypeError: By its methods, on parameters that are not
            `(batch, dim_theta)` or observations that are not `(batch, *shape_x)`.

    Example:
        >>> from sbi_scoreaug.simulators import UniformPolynomial
        >>> problem = UniformPolynomial()
        >>> isinstance(problem, CostSimulator)
        True
        >>> theta, x_o = problem.prior.sample((5,)), torch.tensor([[2.0]])
        >>> problem.expected_cost(theta, x_o).shape
        torch.Size([5])
    """

    betas: tuple[float, float, float]
    distance_name: str = "mse"
    rows_at_once: int = 2**40  # all: these simulators need little memory

    def distance(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Distance of simulations and targets: the mean squared difference.

        Args:
            x: Simulations `(batch, *shape_x)`.
            x_t: Targets `(batch, *shape_x)`.

        Returns:
            Distances `(batch,)`.
        """
        return (x - x_t).flatten(1).square().mean(dim=1)

    def expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor:
        """Exact expected distance c(theta, x_t), differentiable in `theta`.

        Args:
            theta: Parameters `(batch, dim_theta)`.
            x_t: Targets `(batch, *shape_x)`, or one row that all of `theta` share.

        Returns:
            E[d(x, x_t) | theta], `(batch,)`.

        Raises:
            InvalidInputError: If a shape does not fit or a value is not finite.
            InvalidTypeError: If an argument is not a floating-point tensor.
        """
        checked, x_t = self._check_theta(theta), self._check_x(x_t)
        if len(x_t) not in (1, len(checked)):
            raise InvalidInputError(
                f"x_t: expected one row or as many as theta ({len(checked)}), got "
                f"{len(x_t)}. Call expected_cost once for each target."
            )
        return self._expected_cost(checked, x_t).to(theta)

    @abstractmethod
    def exact_posterior(self, x_o: Tensor, beta: float) -> Distribution | GridPosterior:
        """The generalized posterior exp(-beta c(theta, x_o)) p(theta), normalised.

        Args:
            x_o: The observation, `(1, *shape_x)` or `(*shape_x)`.
            beta: Inverse temperature, positive.

        Returns:
            An object with `sample(shape)` and `log_prob(theta)`.

        Raises:
            InvalidInputError: If `x_o` is not one finite observation or `beta` is not
                positive.
        """

    @torch.no_grad()
    def observations(self, num_observations: int, misspecified: bool = False) -> Tensor:
        """Draw observations from the model, or from outside of it.

        A misspecified observation starts as a simulation and moves in steps of half a
        prior predictive standard deviation, with random signs, until a component lies
        outside the range of 100,000 prior simulations.

        Args:
            num_observations: How many.
            misspecified: Whether they leave the model.

        Returns:
            Observations `(num_observations, *shape_x)`.

        Raises:
            InvalidInputError: If `num_observations` is below 1.
        """
        if num_observations < 1:
            raise InvalidInputError(
                f"num_observations: expected at least 1, got {num_observations}."
            )
        theta = self.prior.sample((num_observations,))
        return self._misspecified(theta) if misspecified else self(theta)

    def _misspecified(self, theta: Tensor) -> Tensor:
        x = self(theta)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            known = self(self.prior.sample((RANGE_SIMULATIONS,)))
        low, high, step = known.amin(0), known.amax(0), STEP_IN_STDDEVS * known.std(0)
        while True:
            inside = ((x >= low) & (x <= high)).flatten(1).all(dim=1)
            if not inside.any():
                return x
            signs = torch.randint_like(x, 2) * 2 - 1
            x = torch.where(_as_column(inside, x), x + signs * step, x)

    @abstractmethod
    def _expected_cost(self, theta: Tensor, x_t: Tensor) -> Tensor: ...

    def _check_question(self, x_o: Tensor, beta: float) -> Tensor:
        if not 0 < beta < float("inf"):
            raise InvalidInputError(f"beta: expected a positive number, got {beta}.")
        return self._check_observation(x_o)


class BoxCostSimulator(CostSimulator):
    """A problem with a box prior over one or two parameters: its posterior is a grid.

    Attributes:
        points_per_axis: Cells of the grid along each parameter.

    Raises:
        InvalidInputError, InvalidTypeError: As `CostSimulator`.

    Example:
        >>> from sbi_scoreaug.simulators import UniformPolynomial
        >>> problem = UniformPolynomial()
        >>> isinstance(problem, BoxCostSimulator)
        True
        >>> x_o = torch.tensor([[2.0]])  # (1, *shape_x)
        >>> problem.exact_posterior(x_o, beta=10.0).sample((3,)).shape
        torch.Size([3, 1])
    """

    prior: BoxUniform
    points_per_axis: int

    @torch.no_grad()
    def exact_posterior(self, x_o: Tensor, beta: float) -> GridPosterior:
        """The generalized posterior on a grid; see `CostSimulator.exact_posterior`."""
        x_o = self._check_question(x_o, beta)
        theta = theta_grid(self.prior, self.points_per_axis)
        return GridPosterior(theta, -beta * self._expected_cost(theta.double(), x_o))


def _as_column(rows: Tensor, like: Tensor) -> Tensor:
    """Return `rows (batch,)` with trailing axes, to broadcast against `like`."""
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
