r"""Susceptible-infected-susceptible epidemic on a network, in discrete time.

Every node of a graph is susceptible (0) or infected (1). In a unit time step, given
the states of the step before and independently of each other, a susceptible node with
m infected neighbours becomes infected with probability 1 - exp(-m beta) and an infected
node recovers with probability 1 - exp(-gamma); theta = (log beta, log gamma).

The likelihood of a trajectory x depends on counts only: u_m of susceptible nodes with
m infected neighbours that became infected, e = sum of m over those that did not, r of
recoveries and k of infected nodes that stayed infected:

    log p(x|theta) = sum_m u_m log(1 - exp(-m beta)) - e beta
                     + r log(1 - exp(-gamma)) - k gamma
    d/d log beta  = sum_m u_m m beta / (exp(m beta) - 1) - e beta
    d/d log gamma = r gamma / (exp(gamma) - 1) - k gamma

This is the density of x[1:] given x[0]; the initial state does not depend on theta.

References: Pastor-Satorras et al. (2015), Epidemic processes in complex networks,
arXiv 1408.2701; Wang et al. (2003), Epidemic spreading in real networks, for the
discrete-time form.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import networkx as nx
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.simulators.base import BoxSimulator


class _Counts(NamedTuple):
    """What the likelihood needs to know of trajectories."""

    infections: Tensor  # u_m, (batch, max degree + 1)
    escaped: Tensor  # e, (batch,)
    recoveries: Tensor  # r, (batch,)
    kept: Tensor  # k, (batch,)


class SISNetwork(BoxSimulator):
    """Node states of a discrete-time epidemic on a graph.

    `theta = (log infection rate, log recovery rate)`, rates a unit time step; x is 0 or
    1, `(num_steps + 1, num_nodes)`, in the node order of the graph, with the initial
    state as its first row. The prior is uniform on the logarithms, infection from 0.05
    to 0.5 and recovery from 0.05 to 0.5.

    Args:
        graph: An undirected graph with at least one edge; self-loops and edge weights
            are ignored. By default a small world of 40 nodes with 4 neighbours each.
        num_steps: Time steps after the initial state.
        initial_infected: Number of nodes, drawn afresh for every simulation, that are
            infected at first, or the indices of the nodes that always are.

    Attributes:
        adjacency: The graph as a 0/1 matrix `(num_nodes, num_nodes)`.

    Raises:
        InvalidTypeError: If `graph` is no undirected networkx graph.
        InvalidInputError: If `graph` has no edges, `num_steps` is below 1, or
            `initial_infected` does not name at least one node of the graph.

    Example:
        >>> simulator = SISNetwork(num_steps=10)
        >>> theta = simulator.prior.sample((4,))
        >>> x = simulator(theta)
        >>> x.shape, simulator.score(theta, x).shape
        (torch.Size([4, 11, 40]), torch.Size([4, 2]))
        >>> simulator.exact_posterior(x[0]).shape
        (60, 60)
    """

    def __init__(
        self,
        graph: nx.Graph | None = None,
        num_steps: int = 20,
        initial_infected: int | Sequence[int] = 8,
    ) -> None:
        self.adjacency = _adjacency(_default_graph() if graph is None else graph)
        num_nodes = len(self.adjacency)
        if num_steps < 1:
            raise InvalidInputError(f"num_steps must be at least 1, got {num_steps}.")
        if isinstance(initial_infected, int):
            valid = 1 <= initial_infected <= num_nodes
        else:
            initial_infected = list(initial_infected)
            valid = len(initial_infected) > 0
            valid = valid and all(0 <= node < num_nodes for node in initial_infected)
        if not valid:
            raise InvalidInputError(
                f"initial_infected must be a number from 1 to {num_nodes} or indices "
                f"of nodes below {num_nodes}, got {initial_infected}."
            )
        self.initial_infected = initial_infected
        self.prior = BoxUniform(
            torch.full((2,), math.log(0.05)), torch.full((2,), math.log(0.5))
        )
        self.shape_x = torch.Size([num_steps + 1, num_nodes])
        self.rows_at_once = max(1, 2**22 // self.shape_x.numel())

    def _initial_state(self, batch: int) -> Tensor:
        state = torch.zeros(batch, self.shape_x[1], dtype=torch.float64)
        if isinstance(self.initial_infected, int):
            nodes = torch.rand_like(state).argsort(dim=1)[:, : self.initial_infected]
            return state.scatter(1, nodes, 1.0)
        state[:, self.initial_infected] = 1.0
        return state

    def _simulate(self, theta: Tensor) -> Tensor:
        beta, gamma = theta.exp().unsqueeze(-1).unbind(dim=1)
        states = [self._initial_state(len(theta))]
        for _ in range(self.shape_x[0] - 1):
            state = states[-1]
            pressure = beta * (state @ self.adjacency)
            rate = torch.where(state == 1, gamma, pressure)
            change = torch.rand_like(state) < -(-rate).expm1()
            states.append(torch.where(change, 1 - state, state))
        return torch.stack(states, dim=1)

    def _count(self, x: Tensor) -> _Counts:
        if not ((x == 0) | (x == 1)).all():
            raise InvalidInputError("x must hold 0 (susceptible) and 1 (infected).")
        before, after = x[:, :-1].flatten(1), x[:, 1:].flatten(1)
        exposure = (x[:, :-1] @ self.adjacency).flatten(1)
        infected = (1 - before) * after
        max_degree = int(self.adjacency.sum(dim=0).max())
        infections = torch.zeros(len(x), max_degree + 1, dtype=x.dtype)
        return _Counts(
            infections=infections.scatter_add(1, exposure.long(), infected),
            escaped=((1 - before) * (1 - after) * exposure).sum(dim=1),
            recoveries=(before * (1 - after)).sum(dim=1),
            kept=(before * after).sum(dim=1),
        )

    def _log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        counts, (beta, gamma) = self._count(x), theta.exp().unbind(dim=1)
        neighbours = torch.arange(1, counts.infections.shape[1])
        log_infection = _log_one_minus_exp(beta[:, None] * neighbours)
        log_prob = (counts.infections[:, 1:] * log_infection).sum(dim=1)
        log_prob = log_prob - counts.escaped * beta - counts.kept * gamma
        log_prob = log_prob + counts.recoveries * _log_one_minus_exp(gamma)
        impossible = counts.infections[:, 0] > 0  # infected without a source
        return log_prob.masked_fill(impossible, -torch.inf)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        counts, (beta, gamma) = self._count(x), theta.exp().unbind(dim=1)
        pressure = beta[:, None] * torch.arange(1, counts.infections.shape[1])
        gain = (counts.infections[:, 1:] * pressure / pressure.expm1()).sum(dim=1)
        d_log_beta = gain - counts.escaped * beta
        d_log_gamma = counts.recoveries * gamma / gamma.expm1() - counts.kept * gamma
        score = torch.stack([d_log_beta, d_log_gamma], dim=1)
        impossible = counts.infections[:, :1] > 0
        return score.masked_fill(impossible, torch.nan)


def _default_graph() -> nx.Graph:
    """A small world of 40 nodes, the same at every call."""
    return nx.Graph(nx.watts_strogatz_graph(40, 4, 0.1, seed=0))


def _adjacency(graph: nx.Graph) -> Tensor:
    """Adjacency matrix without weights and self-loops, in float64."""
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise InvalidTypeError(
            f"graph must be an undirected networkx.Graph, got {type(graph).__name__}."
        )
    if graph.number_of_nodes() == 0:
        raise InvalidInputError("graph must have nodes, got an empty graph.")
    index = {node: i for i, node in enumerate(graph)}
    matrix = torch.zeros(len(index), len(index), dtype=torch.float64)
    for one, other in graph.edges():
        matrix[index[one], index[other]] = matrix[index[other], index[one]] = 1.0
    matrix.fill_diagonal_(0)
    if not matrix.any():
        raise InvalidInputError(
            "graph must have an edge between two nodes: without one nothing spreads "
            "and the infection rate cannot be seen."
        )
    return matrix


def _log_one_minus_exp(rate: Tensor) -> Tensor:
    """log(1 - exp(-rate)) for positive rates, accurate at both ends."""
    small = rate < math.log(2)
    # each branch gets a harmless input where the other is chosen: no NaN gradients
    near = (-(-rate.where(small, torch.ones_like(rate))).expm1()).log()
    far = (-(-rate.where(~small, torch.ones_like(rate))).exp()).log1p()
    return torch.where(small, near, far)
