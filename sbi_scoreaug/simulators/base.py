r"""What every problem in this folder offers, and how to add one.

A simulator draws x from p(x | theta). One whose density is known says more:

    log_prob  log p(x | theta)                 (differentiable in theta)
    score     grad_theta log p(x | theta)      (closed form, no autograd)

How to implement your own: subclass `ScoredSimulator`, or `BoxSimulator` when the
prior is a box with few parameters; set `prior` and `shape_x` in `__init__`; write
`_simulate`, `_log_prob` and `_score` in float64. The public methods here check the
input, cut large batches into chunks so that memory stays bounded, and return the
dtype and device of `theta`. `x` reaches the private methods with as many rows as
`theta` or with a single row, to be broadcast. Then add the class to the registry in
`tests/simulators_test.py`: every generic test runs on it. Where x is impossible the
log_prob is -inf and the score NaN.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.simulators.grid import GridPosterior, theta_grid


class Simulator(ABC):
    """What all simulators of this folder share: a prior, and draws of x.

    Attributes:
        prior: Prior over `theta`, as sbi's trainers take it.
        shape_x: Shape of one simulation.
        rows_at_once: Rows that are worked on together; bounds the memory.
    """

    prior: Distribution
    shape_x: torch.Size
    rows_at_once: int = 4096

    @property
    def dim_theta(self) -> int:
        """Number of parameters."""
        return self.prior.event_shape[0]

    def __call__(self, theta: Tensor) -> Tensor:
        """Simulate once for every row of `theta`, from torch's global generator.

        Args:
            theta: Parameters `(batch, dim_theta)`.

        Returns:
            Simulations `(batch, *shape_x)`.

        Raises:
            InvalidInputError: If `theta` has another shape or is not finite.
            InvalidTypeError: If `theta` is not a floating-point tensor.
        """
        checked = self._check_theta(theta).detach()
        chunks = checked.split(self.rows_at_once)
        with torch.no_grad():
            return torch.cat([self._simulate(rows) for rows in chunks]).to(theta)

    @abstractmethod
    def _simulate(self, theta: Tensor) -> Tensor: ...

    def _check_theta(self, theta: Tensor) -> Tensor:
        return _check_tensor("theta", theta, torch.Size([self.dim_theta]))

    def _check_x(self, x: Tensor) -> Tensor:
        return _check_tensor("x", x, self.shape_x)

    def _check_observation(self, x_o: Tensor) -> Tensor:
        if isinstance(x_o, Tensor) and x_o.shape == self.shape_x:
            x_o = x_o.unsqueeze(0)
        x_o = self._check_x(x_o)
        if len(x_o) != 1:
            raise InvalidInputError(
                f"x_o: expected one observation, got {len(x_o)}. Call exact_posterior "
                "once for each."
            )
        return x_o


class ScoredSimulator(Simulator):
    """A simulator with a known likelihood and score.

    Raises:
        InvalidInputError, InvalidTypeError: By its methods, on parameters that are not
            `(batch, dim_theta)` or simulations that are not `(batch, *shape_x)`.

    Example:
        >>> class Shift(ScoredSimulator):
        ...     '''x ~ N(theta, 1).'''
        ...     def __init__(self):
        ...         self.prior = BoxUniform(torch.zeros(1), torch.ones(1))
        ...         self.shape_x = torch.Size([1])
        ...     def _simulate(self, theta):
        ...         return theta + torch.randn_like(theta)
        ...     def _log_prob(self, theta, x):
        ...         return torch.distributions.Normal(theta, 1.0).log_prob(x).sum(1)
        ...     def _score(self, theta, x):
        ...         return x - theta
        >>> Shift().score(torch.tensor([[0.2], [0.5]]), torch.tensor([[1.0]]))
        tensor([[0.8000],
                [0.5000]])
    """

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log likelihood, differentiable in `theta`.

        Args:
            theta: Parameters `(batch, dim_theta)`.
            x: Simulations `(batch, *shape_x)`, or one row that all of `theta` share.

        Returns:
            log p(x | theta), `(batch,)`.

        Raises:
            InvalidInputError: If a shape does not fit or a value is not finite.
            InvalidTypeError: If an argument is not a floating-point tensor.
        """
        chunks = self._chunks(theta, x)
        return torch.cat([self._log_prob(*rows) for rows in chunks]).to(theta)

    @torch.no_grad()
    def score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Likelihood score in closed form.

        Args:
            theta: Parameters `(batch, dim_theta)`.
            x: Simulations `(batch, *shape_x)`, or one row that all of `theta` share.

        Returns:
            grad_theta log p(x | theta), `(batch, dim_theta)`.

        Raises:
            InvalidInputError: If a shape does not fit or a value is not finite.
            InvalidTypeError: If an argument is not a floating-point tensor.
        """
        chunks = self._chunks(theta, x)
        return torch.cat([self._score(*rows) for rows in chunks]).to(theta)

    @abstractmethod
    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _score(self, theta: Tensor, x: Tensor) -> Tensor: ...

    def _chunks(self, theta: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        theta, x = self._check_theta(theta), self._check_x(x)
        if len(x) not in (1, len(theta)):
            raise InvalidInputError(
                f"x must have one row or as many as theta ({len(theta)}), got {len(x)}."
            )
        theta_chunks = theta.split(self.rows_at_once)
        x_chunks = x.split(self.rows_at_once)
        if len(x) == 1:
            x_chunks = (x,) * len(theta_chunks)
        return zip(theta_chunks, x_chunks, strict=True)


class BoxSimulator(ScoredSimulator):
    """A simulator with a box prior over few parameters, so with a grid posterior.

    To be subclassed as `ScoredSimulator`, with a `BoxUniform` as `prior`.

    Raises:
        InvalidInputError, InvalidTypeError: As `ScoredSimulator`.

    Example:
        >>> from sbi_scoreaug.simulators import SISPopulation
        >>> simulator = SISPopulation()
        >>> isinstance(simulator, BoxSimulator)
        True
        >>> x_o = simulator(torch.tensor([[0.3, -1.0]]))  # (1, *shape_x)
        >>> simulator.exact_posterior(x_o, points_per_axis=30).probs.shape
        torch.Size([900])
    """

    prior: BoxUniform

    @torch.no_grad()
    def exact_posterior(self, x_o: Tensor, points_per_axis: int = 60) -> GridPosterior:
        """Posterior of one observation by evaluating the likelihood on a grid.

        Args:
            x_o: The observation, `(1, *shape_x)` or `(*shape_x)`.
            points_per_axis: Cells of the grid along each parameter.

        Returns:
            The posterior, constant on `points_per_axis ** dim_theta` cells.

        Raises:
            InvalidInputError: If `x_o` is not one finite observation, or impossible.
        """
        x_o = self._check_observation(x_o)
        theta = theta_grid(self.prior, points_per_axis)
        return GridPosterior(theta, self._log_prob_on_grid(theta.double(), x_o))

    def _log_prob_on_grid(self, theta: Tensor, x_o: Tensor) -> Tensor:
        """Log likelihood of one observation; override where a grid allows less work."""
        return self.log_prob(theta, x_o)


def _check_tensor(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """The value in float64 on the CPU, if it is a finite batch of that shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InvalidTypeError(
            f"{name} must be a floating-point tensor, got {found}: convert it with "
            "torch.as_tensor(..., dtype=torch.float32)."
        )
    if value.ndim != len(shape) + 1 or value.shape[1:] != shape or len(value) == 0:
        raise InvalidInputError(
            f"{name} must have shape (batch, {', '.join(map(str, shape))}) with at "
            f"least one row, got {tuple(value.shape)}."
        )
    if not value.isfinite().all():
        raise InvalidInputError(f"{name} must be finite, got NaN or infinity in it.")
    return value.cpu().double()
