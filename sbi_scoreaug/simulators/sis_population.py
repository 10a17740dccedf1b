r"""Well-mixed SIS epidemic in continuous time, fully or partly observed.

The process and its symbols stand in `jump_process`. Two observations of one path:

- "path": x = (n_inf, n_rec, A, B), sufficient for the complete path, with

      score = (n_inf - beta A, n_rec - gamma B).

- "snapshots": x = (I_1 .. I_J) at J equally spaced times, D apart, from I_0:

      log p(x|theta) = sum_j log P[I_{j-1}, I_j],   score = sum_j dP[..] / P[..]

  where P = exp(Q D). The path z behind the snapshots has the *joint* score

      grad_theta log p(x, z|theta) = (n_inf - beta A, n_rec - gamma B),

  which costs nothing beyond the simulation and whose mean over the paths that lead
  to x is the score: E[joint | x, theta] = score (Fisher's identity).

References: Brehmer et al. (2020), PNAS 117, 5242-5249, arXiv 1805.12244, for joint
scores; Golightly and Wilkinson (2011), Interface Focus 1, 807-820, for epidemics as
jump processes.
"""

import math
from typing import Literal

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidStateError
from sbi_scoreaug.simulators.base import BoxSimulator
from sbi_scoreaug.simulators.jump_process import (
    SISPaths,
    path_log_prob,
    path_score,
    simulate_sis_paths,
    transition_derivatives,
    transition_matrices,
)

_SMALLEST_PROBABILITY = 1e-14  # below it matrix exponentials hold rounding errors only


class SISPopulation(BoxSimulator):
    """Markov jump process of infections and recoveries in a well-mixed population.

    `theta = (log infection rate, log recovery rate)`, rates a unit time. The prior is
    uniform on the logarithms, infection from 0.5 to 3 and recovery from 0.1 to 1. With
    "path", `log_prob` leaves out a term that does not depend on theta: the path's
    density given its sufficient statistics.

    Args:
        population: Number of individuals N; 50 for the path, 25 for snapshots.
        duration: Time T at which the path ends.
        observe: "path" for the sufficient statistics `(4,)` of the complete path,
            "snapshots" for the number of infected `(num_snapshots,)`.
        num_snapshots: Number of equally spaced snapshots, the last at `duration`.
        initial_infected: Number of infected at time 0; a fifth of N by default.

    Raises:
        InvalidInputError: If an argument is out of its range.

    Example:
        >>> simulator = SISPopulation(observe="snapshots", num_snapshots=5)
        >>> theta = simulator.prior.sample((4,))
        >>> x, joint_score = simulator.simulate_with_joint_score(theta)
        >>> x.shape, joint_score.shape, simulator.score(theta, x).shape
        (torch.Size([4, 5]), torch.Size([4, 2]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        population: int | None = None,
        duration: float = 5.0,
        observe: Literal["path", "snapshots"] = "path",
        num_snapshots: int = 10,
        initial_infected: int | None = None,
    ) -> None:
        if observe not in ("path", "snapshots"):
            raise InvalidInputError(
                f'observe must be "path" or "snapshots", got {observe!r}.'
            )
        if population is None:
            population = 50 if observe == "path" else 25
        if initial_infected is None:
            initial_infected = max(1, population // 5)
        if not 1 <= initial_infected <= population:
            raise InvalidInputError(
                f"initial_infected must be from 1 to population ({population}), "
                f"got {initial_infected}."
            )
        if not 0 < duration < math.inf or num_snapshots < 1:
            raise InvalidInputError(
                "duration must be positive and finite and num_snapshots at least 1, "
                f"got {duration} and {num_snapshots}."
            )
        self.population = population
        self.duration = float(duration)
        self.observe = observe
        self.num_snapshots = num_snapshots
        self.initial_infected = initial_infected
        self.prior = BoxUniform(
            torch.tensor([0.5, 0.1]).log(), torch.tensor([3.0, 1.0]).log()
        )
        self.shape_x = torch.Size([4 if observe == "path" else num_snapshots])
        if observe == "snapshots":
            self.rows_at_once = max(1, min(1024, 2**20 // (population + 1) ** 2))

    def simulate_with_joint_score(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Simulate, and keep the score of the path behind each simulation.

        Args:
            theta: Parameters `(batch, 2)`.

        Returns:
            Simulations `(batch, *shape_x)` and joint scores `(batch, 2)`: the score
            itself if the path is observed.

        Raises:
            InvalidInputError: If `theta` has another shape or is not finite.
            InvalidTypeError: If `theta` is not a floating-point tensor.
        """
        checked = self._check_theta(theta).detach()
        paths = self._simulate_paths(checked)
        joint_score = path_score(checked, paths.statistics)
        return self._observed(paths).to(theta), joint_score.to(theta)

    def transition_matrix(self, theta: Tensor) -> Tensor:
        """Probabilities of moving between two snapshots.

        Args:
            theta: Parameters `(batch, 2)`.

        Returns:
            From state (row) to state (column), `(batch, population + 1,
            population + 1)`.

        Raises:
            InvalidInputError: If `theta` has another shape or is not finite.
            InvalidStateError: If the simulator observes the path.
        """
        if self.observe != "snapshots":
            raise InvalidStateError(
                'transition_matrix needs snapshots: construct with observe="snapshots".'
            )
        checked = self._check_theta(theta)
        return transition_matrices(checked, self.population, self._spacing).to(theta)

    @property
    def _spacing(self) -> float:
        return self.duration / self.num_snapshots

    def _simulate_paths(self, theta: Tensor) -> SISPaths:
        steps = torch.arange(1, self.num_snapshots + 1, dtype=theta.dtype)
        times = steps * self._spacing
        return simulate_sis_paths(theta, self.population, self.initial_infected, times)

    def _observed(self, paths: SISPaths) -> Tensor:
        return paths.statistics if self.observe == "path" else paths.snapshots

    def _simulate(self, theta: Tensor) -> Tensor:
        return self._observed(self._simulate_paths(theta))

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Snapshots: exact above probabilities of 1e-14; paths: less a term of x."""
        if self.observe == "path":
            return path_log_prob(theta, x)
        transition = transition_matrices(theta, self.population, self._spacing)
        probability = self._along(transition.unsqueeze(1), x).squeeze(1)
        return probability.clamp(min=_SMALLEST_PROBABILITY).log().sum(dim=1)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        if self.observe == "path":
            return path_score(theta, x)
        transition, derivative = transition_derivatives(
            theta, self.population, self._spacing
        )
        probability = self._along(transition.unsqueeze(1), x)
        probability = probability.clamp(min=_SMALLEST_PROBABILITY)
        return (self._along(derivative, x) / probability).sum(dim=2)

    def _along(self, matrices: Tensor, x: Tensor) -> Tensor:
        """Entries [I_{j-1}, I_j] of `(batch, k, N + 1, N + 1)`: `(batch, k, J)`."""
        states = x.long()
        if not (states == x).all() or x.min() < 0 or x.max() > self.population:
            raise InvalidInputError(
                f"x must hold numbers of infected from 0 to {self.population}."
            )
        start = states.new_full((len(states), 1), self.initial_infected)
        before = torch.cat([start, states[:, :-1]], dim=1)
        if ((before == 0) & (states > 0)).any():
            raise InvalidInputError(
                "x must stay at 0 once nobody is infected, got an epidemic that starts "
                "again: no theta can produce it."
            )
        entries = (before * (self.population + 1) + states).unsqueeze(1)
        batch, k = matrices.shape[:2]
        return matrices.flatten(2).gather(2, entries.expand(batch, k, -1))
