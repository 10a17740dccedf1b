r"""The four tasks of scores_everywhere: simulations, scores and exact references.

    Gaussian    theta ~ N(0, I_10), x ~ N(theta, S)                     exact scores
    mixture     theta ~ N(0, I_10), x ~ a wide or a narrow N(theta, .)  exact scores
    field       Gaussian-process image, 8 x 8, theta = log variance and
                log range under a box prior                             exact scores
    schools     eight groups with latent means, a Pyro model            joint scores

`schools` is a hierarchical model. With known sigma_j,

    mu ~ N(0, 1),  log tau ~ N(0, 1/4),  z_j ~ N(mu, tau^2),  x_j ~ N(z_j, sigma_j^2),

`score_from_pyro` knows z of each simulation and gives grad_theta log p(x, z|theta).
That is a noisy score of x, since x does not tell z. The exact posterior takes
p(x_j|theta) = N(mu, tau^2 + sigma_j^2), on a grid: nothing of it is estimated.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache

import pyro
import pyro.distributions as dist
import torch
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from sbi_scoreaug.benchmarks.problems import FieldEmbedding
from sbi_scoreaug.benchmarks.scores_everywhere_task import Points, Task, draw_points
from sbi_scoreaug.benchmarks.training import Simulations
from sbi_scoreaug.benchmarks.training import simulate as simulate_exact
from sbi_scoreaug.scores.pyro import score_from_pyro
from sbi_scoreaug.simulators import (
    GaussianGaussian,
    GaussianMixtureLikelihood,
    GaussianProcessField,
    GridPosterior,
    LinearGaussianMixture,
)
from sbi_scoreaug.simulators.grid import theta_grid

POINTS_PER_AXIS = 50
SIGMA = torch.linspace(0.5, 1.5, 8)  # of the schools
GRID_BOX = BoxUniform(torch.tensor([-5.0, -2.5]), torch.tensor([5.0, 2.5]))


class MixtureTask(Task):
    """Problems whose posteriors are mixtures of Gaussians."""

    def __init__(self, simulator: LinearGaussianMixture) -> None:
        self.simulator, self.prior = simulator, simulator.prior

    def simulate(self, num_simulations: int, seed: int) -> Simulations:
        """See `Task.simulate`."""
        return simulate_exact(self.simulator, num_simulations, seed)

    def points(self, x_o: Tensor) -> Points:
        """See `Task.points`."""
        return draw_points(self.simulator.exact_posterior(x_o), self.prior)

    def cost_points(self, x_o: Tensor) -> Points:
        """See `Task.cost_points`: here N(a/(1 + a) x_o, I/(1 + a)), a = 2 beta/dim."""
        a = 2 * self.beta / len(x_o)
        covariance = torch.eye(len(x_o)).double() / (1 + a)
        exact = MultivariateNormal(a / (1 + a) * x_o.double(), covariance)
        return draw_points(exact, self.prior)

    def expected_cost(self, theta: Tensor, x_o: Tensor) -> Tensor:
        """See `Task.expected_cost`; both kinds of noise are centred at theta."""
        noise = self.simulator.weights @ self.simulator.covariances.diagonal(
            dim1=1, dim2=2
        )
        return ((theta - x_o).square() + noise.to(theta)).mean(1)

    def draw_set(self, n: int, seed: int, num_exact: int) -> tuple[Tensor, Tensor]:
        """See `Task.draw_set`."""
        torch.manual_seed(seed)
        x = self.simulator(self.prior.sample((1,)).expand(n, -1))
        return x, self.simulator.reference_samples(num_exact, x)


class GridTask(Task):
    """Problems with two parameters, whose posteriors are tabulated."""

    box: BoxUniform  # the region of the grid
    beta = 1.0

    @abstractmethod
    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|theta) `(points,)` of one x `(1, *shape_x)`."""

    def _table(self, log_weight: Tensor) -> GridPosterior:
        theta = theta_grid(self.box, POINTS_PER_AXIS)
        return GridPosterior(theta, log_weight + self.prior.log_prob(theta).double())

    def posterior(self, x: Tensor) -> GridPosterior:
        """Return the posterior of a set `(n, *shape_x)`."""
        theta = theta_grid(self.box, POINTS_PER_AXIS)
        rows = [self.log_likelihood(theta, row[None]).double() for row in x]
        return self._table(torch.stack(rows).sum(0))

    def points(self, x_o: Tensor) -> Points:
        """See `Task.points`."""
        return self._cells(self.posterior(x_o[None]))

    def cost_points(self, x_o: Tensor) -> Points:
        """See `Task.cost_points`."""
        theta = theta_grid(self.box, POINTS_PER_AXIS)
        cost = self.expected_cost(theta, x_o).double()
        return self._cells(self._table(-self.beta * cost))

    def _cells(self, exact: GridPosterior) -> Points:
        return Points(exact.theta, exact.log_probs, torch.zeros(len(exact.theta)))

    @abstractmethod
    def simulate_at(self, theta: Tensor) -> Tensor:
        """Return x `(batch, *shape_x)`."""

    def draw_set(self, n: int, seed: int, num_exact: int) -> tuple[Tensor, Tensor]:
        """See `Task.draw_set`."""
        torch.manual_seed(seed)
        x = self.simulate_at(self.prior.sample((1,)).expand(n, -1))
        return x, self.posterior(x).sample((num_exact,))


class Field(GridTask):
    """The Gaussian-process field; its images are embedded."""

    def __init__(self) -> None:
        self.simulator = GaussianProcessField(8)
        self.prior = self.box = self.simulator.prior

    def simulate(self, num_simulations: int, seed: int) -> Simulations:
        """See `Task.simulate`."""
        return simulate_exact(self.simulator, num_simulations, seed)

    def simulate_at(self, theta: Tensor) -> Tensor:
        """See `GridTask.simulate_at`."""
        return self.simulator(theta)

    def embedding_net(self) -> nn.Module:
        """See `Task.embedding_net`."""
        return FieldEmbedding()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """See `GridTask.log_likelihood`."""
        return self.simulator._log_prob_on_grid(theta.double(), x.double())

    def expected_cost(self, theta: Tensor, x_o: Tensor) -> Tensor:
        """See `Task.expected_cost`: the pixels have mean 0 and variance v."""
        return theta[:, 0].exp() + x_o.square().mean()


def schools_model() -> None:
    """Eight groups, of which only noisy means are seen."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    log_tau = pyro.sample("log_tau", dist.Normal(0.0, 0.5))
    with pyro.plate("groups", len(SIGMA)):
        z = pyro.sample("z", dist.Normal(mu, log_tau.exp()))
        pyro.sample("x", dist.Normal(z, SIGMA))


class Schools(GridTask):
    """The hierarchical Pyro model: joint scores."""

    score_kind, box = "joint", GRID_BOX

    def __init__(self) -> None:
        self.simulator = score_from_pyro(schools_model, ["mu", "log_tau"], "x")
        self.prior = MultivariateNormal(
            torch.zeros(2), torch.tensor([1.0, 0.25]).diag()
        )

    def simulate(self, num_simulations: int, seed: int) -> Simulations:
        """See `Task.simulate`; simulation and score come in one call."""
        torch.manual_seed(seed)
        theta = self.prior.sample((num_simulations,))
        return Simulations(theta, *self.simulator(theta), 0.0, 0.0)

    def simulate_at(self, theta: Tensor) -> Tensor:
        """See `GridTask.simulate_at`."""
        return self.simulator(theta)[0]

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """See `GridTask.log_likelihood`."""
        mu, log_tau = theta.double().unsqueeze(-1).unbind(1)
        variance = (2 * log_tau).exp() + SIGMA.double().square()
        return Normal(mu, variance.sqrt()).log_prob(x.double()).sum(1)

    def expected_cost(self, theta: Tensor, x_o: Tensor) -> Tensor:
        """See `Task.expected_cost`."""
        mu, log_tau = theta.unsqueeze(-1).unbind(1)
        variance = (2 * log_tau).exp() + SIGMA.square()
        return ((mu - x_o).square() + variance).mean(1)


TASKS = {
    "Gaussian": lambda: MixtureTask(GaussianGaussian(10)),
    "mixture": lambda: MixtureTask(GaussianMixtureLikelihood(10)),
    "field": Field,
    "schools": Schools,
}


@lru_cache(maxsize=8)
def task_of(name: str) -> Task:
    """Return the task of that name, made once."""
    return TASKS[name]()
