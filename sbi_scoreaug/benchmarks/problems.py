"""The five problems of the keeping-score benchmark, each with its embedding net.

Every method of the benchmark gets the same embedding; what it learns from is x alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sbi_scoreaug.simulators import (
    GaussianProcessField,
    LinearGaussian,
    SISNetwork,
    SISPopulation,
    StudentTField,
)


@dataclass(frozen=True)
class Problem:
    """A simulator with exact scores and the embedding net of its observations."""

    simulator: Callable[[], Any]
    embedding_net: Callable[[Any], nn.Module] = lambda simulator: nn.Identity()
    z_score_x: Literal["independent", "none"] = "independent"
    learning_rate: float = 2e-3


class RandomSymmetry(nn.Module):
    """Turns and flips square images at random while training.

    An isotropic field has the same density, and so the same score, after each of the
    square's eight symmetries. One symmetry is drawn for each batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x (batch, side, side)`, transformed when training."""
        if self.training:
            turns, flip = torch.randint(4, ()), torch.randint(2, ())
            x = x.rot90(int(turns), (-2, -1))
            if flip:
                x = x.flip(-1)
        return x


class FieldEmbedding(nn.Module):
    """Log energies of small learned filters, beside the field's log size.

    The field is divided by its root mean square, its size, so that features need not be
    learned once for every variance. Half of the filters see the field surrounded by
    zeros, so that every pixel counts as often as any other; the other half leave its
    border out. The two together tell border from interior.
    """

    def __init__(self, filters: int = 24, num_features: int = 32) -> None:
        super().__init__()
        self.symmetry = RandomSymmetry()
        self.inner = nn.Conv2d(1, filters // 2, 3)
        self.padded = nn.Conv2d(1, filters // 2, 3, padding=2, bias=False)
        self.output = nn.Sequential(
            nn.Linear(filters + 1, 64),
            nn.SiLU(),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, num_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(batch, num_features)` of `x (batch, side, side)`."""
        size = x.square().mean((1, 2), keepdim=True).sqrt()
        field = self.symmetry(x / size).unsqueeze(1)
        energies = [
            filtered.square().mean((2, 3))
            for filtered in (self.inner(field), self.padded(field))
        ]
        log_energies = torch.cat(energies, 1).add(1e-4).log()
        return self.output(torch.cat([log_energies, size[:, :, 0].log()], 1))


class NetworkEmbedding(nn.Module):
    """Counts of transitions by state and number of infected neighbours, then an MLP.

    Args:
        adjacency: `(nodes, nodes)`.
        num_features: Size of the output.
    """

    def __init__(self, adjacency: Tensor, num_features: int = 20) -> None:
        super().__init__()
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency.float())
        self.levels = int(adjacency.sum(1).max()) + 1
        self.net = nn.Sequential(
            nn.Linear(4 * self.levels, 50), nn.SiLU(), nn.Linear(50, num_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(batch, num_features)` of `x (batch, steps, nodes)`."""
        now, after = x[:, :-1], x[:, 1:]
        kind = (2 * now + after) * self.levels + now @ self.adjacency
        kind = kind.long().flatten(1)
        counts = x.new_zeros(len(x), 4 * self.levels)
        counts.scatter_add_(1, kind, torch.ones_like(kind, dtype=x.dtype))
        return self.net(counts.sqrt())


PROBLEMS: dict[str, Problem] = {
    "LinearGaussian": Problem(LinearGaussian),
    "SISPopulation": Problem(SISPopulation),
    "SISNetwork": Problem(
        SISNetwork, lambda sis: NetworkEmbedding(sis.adjacency), "none"
    ),
    "GaussianProcessField": Problem(
        lambda: GaussianProcessField(12),
        lambda field: FieldEmbedding(),
        "none",
    ),
    "StudentTField": Problem(
        lambda: StudentTField(12), lambda field: FieldEmbedding(), "none"
    ),
}
