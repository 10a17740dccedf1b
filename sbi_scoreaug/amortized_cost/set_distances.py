r"""Distances between sets of trials x_i and y_j, which may differ in number.

    energy  k(r) = -|r|,        mmd  k(r) = exp(-|r|^2 / (2 bandwidth^2)),
    d = mean_{i != j} k(x_i - x_j) - 2 mean_ij k(x_i - y_j) + mean_{i != j} k(y_i - y_j)

This U-statistic is unbiased for the distance of the distributions, so it can be
negative. A missing trial is a row of NaN: it is left out.

References: Gretton et al. (2012), A kernel two-sample test; Székely & Rizzo (2013),
Energy statistics.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost.distance import Distance
from sbi_scoreaug.errors import InvalidInputError


class KernelDistance(Distance):
    """U-statistic of a kernel distance between two sets of trials."""

    on_sets = True

    @abstractmethod
    def kernel(self, squared: Tensor) -> Tensor:
        """Return k at squared differences of trials, elementwise."""

    def across(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the mean of k over pairs of present trials, one of each set.

        Args:
            x: Trials `(..., num_trials, dim)`.
            x_t: Trials `(..., num_trials_t, dim)`.

        Returns:
            Means `(...)`.
        """
        mask = present_trials(x).unsqueeze(-1) & present_trials(x_t).unsqueeze(-2)
        values = self.kernel(_squared_differences(x, x_t)) * mask
        return values.sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1)).clamp(min=1)

    def within(self, x: Tensor) -> Tensor:
        """Return the mean of k over pairs of different present trials, `(...)`."""
        mask = present_trials(x).unsqueeze(-1) & present_trials(x).unsqueeze(-2)
        mask = mask & ~torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
        values = self.kernel(_squared_differences(x, x)) * mask
        return values.sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1)).clamp(min=1)

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the U-statistic, `(batch,)`."""
        return self.within(x) + self.within(x_t) - 2 * self.across(x, x_t)


class EnergyDistance(KernelDistance):
    """Energy distance between two sets of trials."""

    lower_bound = -math.inf

    def kernel(self, squared: Tensor) -> Tensor:
        """Return minus the length of the difference."""
        return -(squared + 1e-12).sqrt()


class MMDDistance(KernelDistance):
    """Squared maximum mean discrepancy with a Gaussian kernel.

    Args:
        bandwidth: Standard deviation of the kernel; by default the median distance of
            prior predictive trials.

    Raises:
        InvalidInputError: If `bandwidth` is not positive.

    Example:
        >>> distance = MMDDistance(bandwidth=1.0)
        >>> distance(torch.zeros(3, 5, 2), torch.ones(3, 4, 2)).shape
        torch.Size([3])
    """

    lower_bound = -2.0
    bandwidth: Tensor

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise InvalidInputError(
                f"bandwidth: expected a positive number, got {bandwidth}."
            )
        self._given = bandwidth
        self.register_buffer("bandwidth", torch.tensor(float(bandwidth or math.nan)))

    def fit(self, x: Tensor) -> Distance:
        """Freeze the median distance of trials of `x (num_simulations, n, dim)`."""
        if self._given is None:
            trials = x.reshape(-1, x.shape[-1])
            trials = trials[present_trials(trials)]
            rows = torch.linspace(0, len(trials) - 1, min(len(trials), 1000)).long()
            lengths = torch.pdist(trials[rows])
            self.bandwidth = lengths.median().clamp(min=1e-12).to(self.bandwidth)
        return self

    def kernel(self, squared: Tensor) -> Tensor:
        """Return the Gaussian kernel."""
        return (-squared / (2 * self.bandwidth**2)).exp()


def present_trials(x: Tensor) -> Tensor:
    """Return which trials of `x (..., num_trials, dim)` are there, without the dim."""
    return ~x.isnan().any(dim=-1)


def _squared_differences(x: Tensor, x_t: Tensor) -> Tensor:
    """Return `(..., num_trials, num_trials_t)`; missing trials count as zeros."""
    difference = x.nan_to_num().unsqueeze(-2) - x_t.nan_to_num().unsqueeze(-3)
    return difference.square().sum(dim=-1)
