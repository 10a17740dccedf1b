"""Simulations and recordings of the Hodgkin-Huxley benchmark, made once and kept.

Features are standardized by the mean and standard deviation of 2,000 simulations from
the prior that serve for nothing else; the distance is their mean absolute difference.

Recordings are simulations with 5 to 40 spikes at parameters from the prior: of the
model itself ("well"), without M current ("no_m_current": g_M = 0, on the edge of the
prior), and with slow sodium inactivation ("slow_inactivation": outside of the model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sbi_scoreaug.simulators import HodgkinHuxley

KINDS = ("well", "no_m_current", "slow_inactivation")
POOL_SEED, POOL_SIZE = 1, 30_000
SCALE_SEED, SCALE_SIZE = 2, 2_000
RECORDING_SEED, RECORDING_DRAWS = 3, 2_000
FEWEST_SPIKES, MOST_SPIKES = 5, 40
SEARCH_SEED, SEARCH_ROUNDS, SEARCH_SIZE = 4, 10, 30


@dataclass
class Recordings:
    """Observations `x (num, 7)`, standardized, and the `theta (num, 8)` behind them."""

    theta: Tensor
    x: Tensor


@dataclass
class Laboratory:
    """The simulator with standardized features, and what was simulated so far.

    Args:
        cache: Folder that keeps simulations; safe to remove.
    """

    cache: Path

    def __post_init__(self) -> None:
        self.neuron = HodgkinHuxley()
        self.prior = self.neuron.prior
        _, x = self._kept("scale", lambda: self._draw(SCALE_SEED, SCALE_SIZE))
        self.mean, self.std = x.mean(dim=0), x.std(dim=0)

    def simulate(self, theta: Tensor) -> Tensor:
        """Return standardized features `(batch, 7)`."""
        return self.standardize(self.neuron(theta))

    def standardize(self, x: Tensor) -> Tensor:
        """Return features `(batch, 7)` in standard units."""
        return (x - self.mean) / self.std

    def spikes(self, x: Tensor) -> Tensor:
        """Return the spike counts `(batch,)` of standardized features."""
        return x[:, 0] * self.std[0] + self.mean[0]

    def is_target(self, x: Tensor) -> Tensor:
        """Whether standardized features have 5 to 40 spikes, `(batch,)`."""
        count = self.spikes(x).round()
        return (count >= FEWEST_SPIKES) & (count <= MOST_SPIKES)

    def training_set(self, number: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return simulations for one network; disjoint for seeds 0, 1, 2 to 10,000.

        Seeds from 100 on are for choosing settings: nothing of theirs is reported.
        """
        if seed >= 100:
            key = f"pool_{seed}_{number}"
            theta, x = self._kept(key, lambda: self._draw(seed, number))
        else:
            theta, x = self.pool()
            start = seed * 10_000 if number <= 10_000 else 0
            theta, x = (v[start : start + number] for v in (theta, x))
        return theta, self.standardize(x)

    def pool(self) -> tuple[Tensor, Tensor]:
        """Return all reported training parameters and their raw features."""
        return self._kept("pool", lambda: self._draw(POOL_SEED, POOL_SIZE))

    def recordings(
        self, kind: str, number: int, seed: int = RECORDING_SEED
    ) -> Recordings:
        """Return the first `number` recordings of a kind."""
        change = None if kind == "well" else kind

        def draw() -> tuple[Tensor, Tensor]:
            return self._draw(seed, RECORDING_DRAWS, change)

        theta, x = self._kept(f"recordings_{kind}_{seed}", draw)
        x = self.standardize(x)
        rows = self.is_target(x).nonzero().flatten()[:number]
        return Recordings(theta[rows], x[rows])

    def least_distances(self, number: int) -> dict[str, Tensor]:
        """Return the least distance to each recording that a search finds, by kind.

        From the nearest of the pool the search goes along differences of parameters and
        keeps what comes nearer. It bounds the least distance `(number,)` from above.
        """
        recorded = [self.recordings(kind, number).x for kind in KINDS]

        def search() -> tuple[Tensor, Tensor]:
            theta, x = self.pool()
            return self._search(theta, self.standardize(x), torch.cat(recorded))

        least = self._kept(f"search_{number}", search)[1].amin(dim=1)
        return dict(zip(KINDS, least.split([len(x) for x in recorded]), strict=True))

    def _search(self, theta: Tensor, x: Tensor, x_o: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(SEARCH_SEED)
        distance = torch.cdist(x_o, x, p=1) / x.shape[1]
        distance, rows = distance.topk(SEARCH_SIZE, largest=False)
        theta = theta[rows]
        for _ in range(SEARCH_ROUNDS):
            first, second, third = (
                theta[:, torch.randperm(SEARCH_SIZE)] for _ in range(3)
            )
            scale = torch.rand(*theta.shape[:2], 1)
            there = torch.where(scale < 0.5, theta, third) + scale * (first - second)
            there = there.clamp(self.prior.base_dist.low, self.prior.base_dist.high)  # type: ignore[attr-defined]
            found = self.simulate(there.flatten(0, 1)).unflatten(0, theta.shape[:2])
            new = (found - x_o.unsqueeze(1)).abs().mean(dim=2)
            better = new < distance
            theta = torch.where(better.unsqueeze(2), there, theta)
            distance = torch.where(better, new, distance)
        return theta, distance

    def _draw(
        self, seed: int, number: int, change: str | None = None
    ) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        theta = self.prior.sample((number,))
        return theta, HodgkinHuxley(change=change)(theta)

    def _kept(
        self, name: str, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        path = self.cache / f"{name}.pt"
        if not path.exists():
            with torch.random.fork_rng(devices=[]):
                made = make()
            self.cache.mkdir(parents=True, exist_ok=True)
            torch.save(made, path)
        return torch.load(path)
