"""What the cost networks are made of: standardized inputs and residual blocks.

A `ResidualNet` starts as its linear map alone, which can be set to a least-squares
solution or to a constant: training begins from a sensible cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualNet(nn.Module):
    """A linear map plus residual blocks of SiLU layers, from `(..., dim_in)`."""

    def __init__(
        self, dim_in: int, dim_out: int, hidden_features: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.straight = nn.Linear(dim_in, dim_out)
        self.first = nn.Linear(dim_in, hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Linear(hidden_features, dim_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def start_from_least_squares(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Set the linear map to the ridge regression of outputs; return residuals.

        Args:
            inputs: `(num_rows, dim_in)`, standardized.
            outputs: `(num_rows, d)`, the first d of `dim_out`.
        """
        design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
        ridge = torch.eye(design.shape[1], dtype=torch.float64)
        gram = design.T @ design + ridge
        solution = torch.linalg.solve(gram, design.T @ outputs.double())
        weight = solution.T.to(inputs)
        with torch.no_grad():
            self.straight.weight[: len(weight)] = weight[:, :-1]
            self.straight.bias[: len(weight)] = weight[:, -1]
        return outputs - self.straight(inputs)[:, : len(weight)].detach()

    def start_constant(self, value: Tensor, row: int = 0) -> None:
        """Make a constant of one output of the linear map."""
        with torch.no_grad():
            self.straight.bias[row] = value
            self.straight.weight[row] = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(..., dim_out)`."""
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.straight(inputs) + self.last(nn.functional.silu(hidden))


class Standardize(nn.Module):
    """Subtract the mean and divide by the standard deviation of given rows.

    Missing values are left out of both; constant components are only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        present = ~rows.isnan()
        count = present.sum(dim=0).clamp(min=1)
        mean = rows.nan_to_num().sum(dim=0) / count
        squares = ((rows - mean).nan_to_num() ** 2).sum(dim=0) / count
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(squares > 1e-20, squares, 1.0).sqrt())

    def forward(self, rows: Tensor) -> Tensor:
        """Return standardized rows of the same shape."""
        return (rows - self.mean) / self.std

    def inverse(self, rows: Tensor) -> Tensor:
        """Return rows in their original units."""
        return rows * self.std + self.mean
