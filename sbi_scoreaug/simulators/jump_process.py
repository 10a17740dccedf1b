r"""The well-mixed SIS epidemic as a Markov jump process: paths and transition matrices.

I of N individuals are infected. In continuous time, with theta = (log beta, log gamma),

    infection  I -> I + 1  at rate  beta S I / N,   S = N - I
    recovery   I -> I - 1  at rate  gamma I

I = 0 is absorbing. Up to a factor without theta, a complete path on [0, T] has

    log p(path|theta) = n_inf theta_0 + n_rec theta_1 - beta A - gamma B,
    A = integral of S I / N dt,    B = integral of I dt

so (n_inf, n_rec, A, B) is sufficient. Over a time D the chain moves by P = exp(Q D),
Q = beta U + gamma V the generator. By Van Loan's identity

    exp [[Q D, beta U D], [0, Q D]]  has  dP / d theta_0  as its upper right block,

and because scaling both rates is scaling time, dP / d theta_0 + dP / d theta_1 = D Q P
yields the other derivative without a second exponential.

References: Gillespie (1977), J. Phys. Chem. 81, 2340-2361; Van Loan (1978), IEEE Trans.
Automatic Control 23, 395-404.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SISPaths(NamedTuple):
    """What is kept of simulated paths.

    Attributes:
        statistics: n_inf, n_rec, A and B of each path, `(batch, 4)`.
        snapshots: I at the requested times, `(batch, num_times)`.
    """

    statistics: Tensor
    snapshots: Tensor


def simulate_sis_paths(
    theta: Tensor, population: int, initial_infected: int, times: Tensor
) -> SISPaths:
    """Gillespie's algorithm for all rows at once, up to the last of `times`.

    Args:
        theta: Log infection and log recovery rate `(batch, 2)`.
        population: N.
        initial_infected: I at time 0.
        times: Increasing positive times `(num_times,)` at which I is recorded.

    Returns:
        Sufficient statistics and snapshots, in the dtype of `theta`.
    """
    duration = times[-1]
    statistics = theta.new_zeros(len(theta), 4)
    snapshots = theta.new_zeros(len(theta), len(times))
    rows = torch.arange(len(theta))  # those that have not reached the end
    rates = theta.exp()
    infected = theta.new_full((len(theta),), initial_infected)
    clock = torch.zeros_like(infected)
    sums = torch.zeros_like(statistics)
    seen = torch.zeros_like(snapshots)
    while len(rows):
        contacts = infected * (population - infected) / population
        infection_rate = rates[:, 0] * contacts
        total_rate = infection_rate + rates[:, 1] * infected
        waiting = torch.empty_like(clock).exponential_() / total_rate  # inf if extinct
        stop = (clock + waiting).clamp(max=duration)
        is_event = clock + waiting < duration
        is_infection = torch.rand_like(clock) * total_rate < infection_rate
        infections, recoveries = is_event & is_infection, is_event & ~is_infection
        elapsed = stop - clock
        sums += torch.stack(
            [infections, recoveries, contacts * elapsed, infected * elapsed], dim=1
        )
        passed = (times > clock[:, None]) & (times <= stop[:, None])
        seen = infected[:, None].where(passed, seen)
        infected = infected + infections.to(theta) - recoveries.to(theta)
        clock = stop
        if 2 * is_event.sum() <= len(rows):  # compact when half of them are done
            statistics[rows], snapshots[rows] = sums, seen
            rows, rates, infected = rows[is_event], rates[is_event], infected[is_event]
            clock, sums, seen = clock[is_event], sums[is_event], seen[is_event]
    return SISPaths(statistics, snapshots)


def path_log_prob(theta: Tensor, statistics: Tensor) -> Tensor:
    """Log density of complete paths up to a term without theta, `(batch,)`."""
    return (statistics[:, :2] * theta - theta.exp() * statistics[:, 2:]).sum(dim=1)


def path_score(theta: Tensor, statistics: Tensor) -> Tensor:
    """Gradient of `path_log_prob` in theta, `(batch, 2)`."""
    return statistics[:, :2] - theta.exp() * statistics[:, 2:]


def generators(population: int) -> tuple[Tensor, Tensor]:
    """The matrices U and V of the generator beta U + gamma V.

    Args:
        population: N.

    Returns:
        Infection and recovery part, each `(N + 1, N + 1)` in float64, state I as row
        and column I.
    """
    infected = torch.arange(population + 1, dtype=torch.float64)
    contacts = infected * (population - infected) / population
    infection = contacts[:-1].diag(1) - contacts.diag()
    recovery = infected[1:].diag(-1) - infected.diag()
    return infection, recovery


def transition_matrices(theta: Tensor, population: int, elapsed: float) -> Tensor:
    """Transition probabilities P = exp(Q D), differentiable in `theta`.

    Args:
        theta: Log infection and log recovery rate `(batch, 2)`.
        population: N.
        elapsed: The time D.

    Returns:
        P `(batch, N + 1, N + 1)`, rows summing to one.
    """
    infection, recovery = generators(population)
    beta, gamma = theta.exp()[:, :, None, None].unbind(dim=1)
    return torch.matrix_exp(elapsed * (beta * infection + gamma * recovery))


def transition_derivatives(
    theta: Tensor, population: int, elapsed: float
) -> tuple[Tensor, Tensor]:
    """Transition probabilities and their derivatives by Van Loan's identity.

    Args:
        theta: Log infection and log recovery rate `(batch, 2)`.
        population: N.
        elapsed: The time D.

    Returns:
        P `(batch, N + 1, N + 1)` and dP / d theta `(batch, 2, N + 1, N + 1)`.
    """
    infection, recovery = generators(population)
    beta, gamma = theta.exp()[:, :, None, None].unbind(dim=1)
    direction = elapsed * beta * infection
    generator = direction + elapsed * gamma * recovery
    upper = torch.cat([generator, direction], dim=2)
    lower = torch.cat([torch.zeros_like(generator), generator], dim=2)
    exponential = torch.matrix_exp(torch.cat([upper, lower], dim=1))
    size = population + 1
    transition, d_beta = exponential[:, :size].split(size, dim=2)
    d_gamma = generator @ transition - d_beta
    return transition, torch.stack([d_beta, d_gamma], dim=1)
