r"""How far samples are from exact ones: the columns of the score_npe tables.

    mean      mean over coordinates of |mean - exact mean| / exact sd
    sd        mean over coordinates of sd / exact sd
    MMD^2     unbiased, Gaussian kernel exp(-r^2 / median r^2), where the median is over
              pairs of exact samples: the same kernel for all methods of a set

All three have a floor, what a second exact sample of the same size gets.
"""

from __future__ import annotations

from math import isfinite
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

METRICS = ("mean", "sd", "mmd2")


class Reference:
    """Exact samples of one posterior, ready to be compared with.

    Args:
        exact: Exact samples `(num_samples, dim)`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> reference = Reference(torch.randn(1000, 2))
        >>> errors = reference.errors(1.5 * torch.randn(1000, 2))
        >>> 1.4 < errors["sd"] < 1.6, errors["mmd2"] > 0.01
        (True, True)
    """

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact.double()
        self.mean, self.std = self.exact.mean(0), self.exact.std(0)
        squares = torch.cdist(self.exact, self.exact).square()
        num = len(exact)
        upper = torch.triu_indices(num, num, offset=1)
        self.bandwidth = squares[upper[0], upper[1]].median()
        self._within = self._inner(squares)

    def errors(self, samples: Tensor) -> dict[str, float]:
        """Return `METRICS` of samples `(num, dim)`."""
        samples = samples.double()
        shift = ((samples.mean(0) - self.mean) / self.std).abs().mean()
        ratio = (samples.std(0) / self.std).mean()
        within = self._inner(torch.cdist(samples, samples).square())
        across = torch.cdist(samples, self.exact).square()
        across = (-across / self.bandwidth).exp_().mean()
        mmd2 = within + self._within - 2 * across
        return {"mean": float(shift), "sd": float(ratio), "mmd2": float(mmd2)}

    def share(self, samples: Tensor) -> float:
        """Return the share of samples on one side of 0 along the widest direction."""
        second = self.exact.mT @ self.exact
        direction = torch.linalg.eigh(second)[1][:, -1]
        return float((samples.double() @ direction > 0).double().mean())

    def _inner(self, squares: Tensor) -> Tensor:
        """Mean of the kernel over pairs of different samples."""
        num = len(squares)
        kernel = (-squares / self.bandwidth).exp_().fill_diagonal_(0)
        return kernel.sum() / (num * (num - 1))


def join(values: list[float]) -> str:
    """Return the values of all sets as one entry of a CSV file."""
    return " ".join(f"{value:.4g}" for value in values)


def split(entry: Any) -> list[float]:
    """Return the values that `join` wrote."""
    return [float(value) for value in str(entry).split()]


def summary(entry: Any, digits: int = 3, centre: float = 0.0) -> str:
    """Return "mean (median; worst)" of an entry, worst being farthest from `centre`.

    Of the sets on which samples were finite; how many were not is added.

    Example:
        >>> summary("0.1 0.3 nan", digits=1), summary("nan nan")
        ('0.2 (0.2; 0.3), 1 of 3 diverged', '2 of 2 diverged')
    """
    every = split(entry)
    values = [value for value in every if isfinite(value)]
    lost = len(every) - len(values)
    parts = []
    if values:
        worst = max(values, key=lambda value: abs(value - centre))
        numbers = (mean(values), median(values), worst)
        first, second, third = (f"{number:.{digits}f}" for number in numbers)
        parts.append(f"{first} ({second}; {third})")
    if lost:
        parts.append(f"{lost} of {len(every)} diverged")
    return ", ".join(parts)
