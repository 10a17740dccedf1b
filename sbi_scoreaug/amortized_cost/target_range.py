r"""Which observations lie among the targets that a network was trained on.

Simulations and appended targets are summarised (a set by the mean and standard
deviation of its trials), standardized and whitened. Two statistics are kept for each:

    mahalanobis   |W (x - mean)|                          far from everything
    nearest       distance to its K-th nearest neighbour  in a hole or off a curve

An observation is unfamiliar when either exceeds all but a fraction .005 of the values
that the simulations have, left out one at a time, so that at most one in a hundred
simulations is called unfamiliar. The features named are those with the largest
standardized deviations from the nearest simulations.

Widened targets do not count: they teach the network about the place, not the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbi_scoreaug.errors import warn

MAX_ROWS = 2000
NEIGHBOURS = 5
TAIL = 0.005
SHRINKAGE = 0.02
SLACK = 30  # few simulations know their tail poorly: 15 % further for 200 of them


class ModelWarning(UserWarning):
    """The observation lies where the model or the network says little."""


class TargetRange(nn.Module):
    """Ranks observations among known targets.

    Args:
        targets: Valid simulations and appended targets `(num_targets, *shape_x)`.
        on_sets: Whether an event is a set of trials `(num_trials, dim)`.

    Example:
        >>> known = TargetRange(torch.randn(500, 3))
        >>> known.is_familiar(torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]))
        tensor([ True, False])
        >>> known.unusual_features(torch.tensor([[0.0, 9.0, 0.0]]))[0]
        1
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    known: Tensor
    thresholds: Tensor

    def __init__(self, targets: Tensor, on_sets: bool = False) -> None:
        super().__init__()
        self.on_sets = on_sets
        rows = torch.linspace(0, len(targets) - 1, min(len(targets), MAX_ROWS)).long()
        summaries = self._summarize(targets[rows].detach().cpu())
        std = summaries.std(dim=0)
        self.register_buffer("mean", summaries.mean(dim=0))
        self.register_buffer("std", torch.where(std > 1e-12, std, 1.0))
        standardized = (summaries - self.mean) / self.std
        correlation = torch.atleast_2d(standardized.T.cov())
        correlation = (1 - SHRINKAGE) * correlation
        correlation = correlation + SHRINKAGE * torch.eye(len(correlation))
        values, vectors = torch.linalg.eigh(correlation)
        self.register_buffer("whitening", vectors * values.clamp(min=1e-6).rsqrt())
        self.register_buffer("known", standardized @ self.whitening)
        itself = self._statistics(self.known, skip=1)
        slack = 1 + SLACK / len(self.known)
        itself[:, 0] = _left_out(itself[:, 0], len(self.known))
        self.register_buffer("thresholds", itself.quantile(1 - TAIL, dim=0) * slack)

    def _summarize(self, x: Tensor) -> Tensor:
        if not self.on_sets:
            return x.flatten(1)
        present = ~x.isnan().any(dim=2, keepdim=True)
        count = present.sum(dim=1).clamp(min=1)
        mean = (x.nan_to_num() * present).sum(dim=1) / count
        squares = ((x.nan_to_num() - mean.unsqueeze(1)) ** 2 * present).sum(dim=1)
        return torch.cat([mean, (squares / count).sqrt()], dim=1)

    def _statistics(self, whitened: Tensor, skip: int = 0) -> Tensor:
        neighbours = min(NEIGHBOURS, len(self.known) - 1) + skip
        distances = torch.cdist(whitened, self.known)
        nearest = distances.topk(neighbours, largest=False).values[:, -1]
        return torch.stack([whitened.norm(dim=1), nearest], dim=1)

    def _standardize(self, x: Tensor) -> Tensor:
        return (self._summarize(x.to(self.mean.device)) - self.mean) / self.std

    def excess(self, x: Tensor) -> Tensor:
        """Return the larger statistic over its threshold, `(batch,)`: above 1 is far.

        Args:
            x: Observations `(batch, *shape_x)`.
        """
        statistics = self._statistics(self._standardize(x) @ self.whitening)
        return (statistics / self.thresholds).amax(dim=1)

    def is_familiar(self, x: Tensor) -> Tensor:
        """Return whether observations lie among the targets, `(batch,)`."""
        return self.excess(x) <= 1

    def unusual_features(self, x: Tensor, num_features: int = 3) -> list[int]:
        """Return the features that deviate most, of the most unfamiliar row of `x`."""
        standardized = self._standardize(x)[self.excess(x).argmax()]
        nearest = torch.cdist(standardized[None] @ self.whitening, self.known)
        rows = nearest[0].topk(min(NEIGHBOURS, len(self.known)), largest=False).indices
        known = (self.known[rows] @ torch.linalg.inv(self.whitening)).mean(dim=0)
        deviation = (standardized - known).abs()
        best = deviation.argsort(descending=True)[:num_features]
        return [int(k) for k in best if deviation[k] > 0.5 * deviation[best[0]]]

    def describe(self, features: list[int]) -> str:
        """Return names of features: components of x, or moments of its trials."""
        if not self.on_sets:
            return ", ".join(f"x[{k}]" for k in features)
        dim = len(self.mean) // 2
        kinds = ("mean", "spread")
        return ", ".join(
            f"{kinds[k // dim]} of trials in x[{k % dim}]" for k in features
        )

    def warn_if_unfamiliar(self, x: Tensor) -> None:
        """Warn, in the caller's name, of observations outside the targets."""
        excess = self.excess(x)
        far = int((excess > 1).sum())
        if far == 0 or far <= TAIL * 2 * len(x):
            return
        warn(
            f"x_o lies outside the targets seen in training ({far} of {len(x)} "
            f"observations, {excess.max().item():.2g} times as far as 99.5 % of "
            f"simulations), most of all in {self.describe(self.unusual_features(x))}. "
            "The model may be wrong about it, and the cost is extrapolated: pass "
            "observations like it to append_targets and train again, and read "
            "trainer.diagnose(x_o).",
            ModelWarning,
        )


def _left_out(distance: Tensor, count: int) -> Tensor:
    """Mahalanobis distances of rows from the mean and covariance of the others."""
    squared, n = distance.square(), float(count)
    remaining = (1 - n * squared / (n - 1) ** 2).clamp(min=0.05)
    return (squared * (n - 2) * n**2 / (n - 1) ** 3 / remaining).sqrt()
