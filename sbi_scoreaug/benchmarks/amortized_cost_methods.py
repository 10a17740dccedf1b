"""What `amortized_cost` compares: each method trained on (theta, x), as an energy.

Every method but rejection ABC ends in an energy e(theta, x_o) and a posterior

    exp(-t e(theta, x_o)) p(theta)     at one or three inverse temperatures t:

    exact      the exact expected cost                          t = beta
    ace        the cost that AmortizedCostEstimator learned     t = beta
    nle        minus log q(x_o | theta) of sbi's NLE            t = .1, 1, 10 (tempered)
    npe        log p(theta) - log q(theta | x_o) of sbi's NPE   t = 1

so that one sampler serves all of them: no method is charged with another's sampler, and
NPE's mass outside of the prior's box is no trouble. sbi's trainers have their defaults.
Sets of trials: NLE learns single trials, as sbi asks for, NPE has sbi's
permutation-invariant embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sbi.inference import NLE_A, NPE_C, SMCABC
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding, PermutationInvariantEmbedding
from torch import Tensor

from sbi_scoreaug.amortized_cost import AmortizedCostEstimator, MMDDistance
from sbi_scoreaug.simulators import CostSimulator, GaussianMixtureTrials

NLE_TEMPERATURES = (0.1, 1.0, 10.0)


class Energy:
    """An energy, split as the package's cost networks are.

    Args:
        function: Maps `theta (batch, dim_theta)` and `x (batch or 1, *shape_x)` to
            energies `(batch,)`.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def encode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Return theta itself."""
        return (theta,)

    def embed(self, x_t: Tensor) -> Tensor:
        """Return the targets themselves."""
        return x_t

    def cost(self, encoded: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        """Return energies `(batch, 1)` of `embedded (batch or 1, 1, *shape_x)`."""
        return self.function(encoded[0], embedded[:, 0]).unsqueeze(1)


@dataclass
class Fit:
    """A trained method.

    Attributes:
        temperatures: One inverse temperature, or a low, a middle and a high one.
        energy: Has `encode`, `embed` and `cost`; None for methods that only draw.
        draw: Draws `(num_samples, dim_theta)` given one `x_o (1, *shape_x)`.
        cpu: Seconds of CPU time for training.
    """

    temperatures: tuple[float, ...]
    energy: Any = None
    draw: Callable[[Tensor, int], Tensor] | None = None
    cpu: float = 0.0


def exact(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """The exact cost: the best that can be, and a check of samplers and tests."""
    return Fit(task.betas, Energy(task.expected_cost))


def ace(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """The package's estimator with its defaults."""
    trainer = ace_trainer(task)
    start = time.process_time()
    estimator = trainer.append_simulations(theta, x).train()
    return Fit(task.betas, estimator, cpu=time.process_time() - start)


def ace_trainer(task: CostSimulator) -> AmortizedCostEstimator:
    """Return the untrained estimator, with the problem's own distance."""
    distance: Any = task.distance_name
    if isinstance(task, GaussianMixtureTrials):
        distance = MMDDistance(task.bandwidth)
    return AmortizedCostEstimator(task.prior, distance, show_progress_bars=False)


def npe(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """Sbi's NPE; where the prior has no bounds, the flow is sampled directly."""
    trainer = npe_trainer(task)
    start = time.process_time()
    flow: Any = trainer.append_simulations(theta, x).train()
    cpu = time.process_time() - start

    def energy(theta: Tensor, x_o: Tensor) -> Tensor:
        log_q = flow.log_prob(theta.unsqueeze(1), x_o[:1]).squeeze(1)
        return task.prior.log_prob(theta) - log_q

    def draw(x_o: Tensor, num_samples: int) -> Tensor:
        return flow.sample((num_samples,), x_o)[:, 0]

    if task.dim_theta <= 2:
        return Fit((1.0,), Energy(energy), cpu=cpu)
    return Fit((1.0,), draw=draw, cpu=cpu)


def npe_trainer(task: CostSimulator) -> NPE_C:
    """Return sbi's untrained NPE; sets of trials get an embedding."""
    nets: dict[str, Any] = {}
    if isinstance(task, GaussianMixtureTrials):
        trial_net = FCEmbedding(task.shape_x[1], 20, num_hiddens=20)
        nets["embedding_net"] = PermutationInvariantEmbedding(
            trial_net, 20, output_dim=20
        )
    flow = posterior_nn("maf", **nets)
    return NPE_C(task.prior, density_estimator=flow, show_progress_bars=False)


def nle(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """Sbi's NLE, also tempered."""
    trainer = NLE_A(task.prior, show_progress_bars=False)
    start = time.process_time()
    flow: Any = trainer.append_simulations(*single_trials(task, theta, x)).train()
    cpu = time.process_time() - start

    def energy(theta: Tensor, x_o: Tensor) -> Tensor:
        x_o = x_o.expand(len(theta), *x_o.shape[1:])
        trials = x_o.unsqueeze(1) if x_o.ndim == 2 else x_o
        return -flow.log_prob(trials.transpose(0, 1), theta).sum(0)

    return Fit(NLE_TEMPERATURES, Energy(energy), cpu=cpu)


def single_trials(
    task: CostSimulator, theta: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return pairs of parameters and independent trials, as NLE wants them."""
    if not isinstance(task, GaussianMixtureTrials):
        return theta, x
    return theta.repeat_interleave(x.shape[1], dim=0), x.flatten(0, 1)


def abc(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """Rejection ABC with the task's distance: the nearest hundredth, at least 20."""
    accepted = max(20, len(theta) // 100)

    def draw(x_o: Tensor, num_samples: int) -> Tensor:
        distances = task.distance(x, x_o.expand_as(x))
        nearest = theta[distances.argsort()[:accepted]]
        return nearest[torch.randint(accepted, (num_samples,))]

    return Fit((1.0,), draw=draw)


def smcabc(task: CostSimulator, theta: Tensor, x: Tensor) -> Fit:
    """Sbi's SMCABC: as many simulations as the others have, for *each* observation."""

    def distance(x_o: Tensor, x: Tensor) -> Tensor:
        x = x.reshape(-1, *task.shape_x)
        return task.distance(x, x_o.reshape(1, *task.shape_x).expand_as(x))

    def draw(x_o: Tensor, num_samples: int) -> Tensor:
        sampler = SMCABC(
            lambda theta: task(theta).flatten(1),
            task.prior,
            distance,
            simulation_batch_size=len(theta),
            show_progress_bars=False,
        )
        particles = max(20, len(theta) // 20)
        results: Any = sampler(
            x_o.flatten(1),
            num_particles=particles,
            num_initial_pop=2 * particles,
            num_simulations=len(theta),
            epsilon_decay=0.5,
            distance_based_decay=True,
            return_summary=True,
        )
        summary = results[1]
        weights = summary["weights"][-1].exp()
        rows = weights.multinomial(num_samples, replacement=True)
        return summary["particles"][-1][rows]

    return Fit((1.0,), draw=draw)


METHODS: dict[str, Callable[[CostSimulator, Tensor, Tensor], Fit]] = {
    "exact": exact,
    "ace": ace,
    "npe": npe,
    "nle": nle,
    "abc": abc,
    "smcabc": smcabc,
}
