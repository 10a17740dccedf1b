r"""Distances between simulations and targets, and what is known about each.

A distance d(x, x_t) replaces the likelihood: the network learns its expectation over
x ~ p(x | theta). Each class states

    on_sets         whether an event is a set of trials (n, dim) instead of one point
    lower_bound     the least value that it can take
    differentiable  whether it has gradients in x, so that particles can be trained
    features        phi with d = mean_k (phi_k(x) - phi_k(x_t))^2, where there is one

and `fit` freezes its scales from prior predictive simulations, so that a distance does
not change between rounds. Events:

    mse          mean of squared differences
    mae          mean of absolute differences
    huber        mean of h(r / s_k), h(u) = u^2/2 for |u| < 1, |u| - 1/2 beyond; s_k the
                 prior predictive standard deviation of component k
    euclidean    square root of the sum of squared differences
    mahalanobis  (x - x_t)' S^-1 (x - x_t) / dim, S the prior predictive covariance

Sets, with the trials x_i and y_j of x and x_t, which may differ in number:

    energy  k(r) = -|r|,        mmd  k(r) = exp(-|r|^2 / (2 bandwidth^2)),
    d = mean_{i != j} k(x_i - x_j) - 2 mean_ij k(x_i - y_j) + mean_{i != j} k(y_i - y_j)

This U-statistic is unbiased for the distance of the distributions, so it can be
negative. A missing trial is a row of NaN: it is left out.

How to implement your own: any function (x, x_t) -> (batch,) will do; subclass
`Distance` to declare what is known. Every generic test runs on the names in DISTANCES.

References: Gao, Deistler & Macke (2023), arXiv 2305.15208; Gretton et al. (2012), A
kernel two-sample test; Székely & Rizzo (2013), Energy statistics.
"""

from __future__ import annotations

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError

CHECKED_ROWS = 6


class Distance(nn.Module, ABC):
    """A distance on batches; see the module's docstring for its attributes."""

    on_sets: bool = False
    lower_bound: float = 0.0
    differentiable: bool = True

    def fit(self, x: Tensor) -> Distance:
        """Freeze the scales from simulations `(num_simulations, *shape_x)`."""
        return self

    def features(self, x: Tensor) -> Tensor | None:
        """Return phi(x) `(batch, num_features)`, None if d is not quadratic."""
        return None

    @abstractmethod
    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return d(x, x_t) `(batch,)` of rows `(batch, *shape_x)` each."""


class QuadraticDistance(Distance):
    """Mean squared difference of features: of the components of x themselves."""

    def features(self, x: Tensor) -> Tensor:
        """Return the components of x, `(batch, num_features)`."""
        return x.flatten(1)

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the mean over features of squared differences, `(batch,)`."""
        return (self.features(x) - self.features(x_t)).square().mean(dim=1)


class MahalanobisDistance(QuadraticDistance):
    """Mean squared difference of whitened components."""

    whitening: Tensor

    def fit(self, x: Tensor) -> Distance:
        """Freeze S^(-1/2), S the covariance of `x (num_simulations, *shape_x)`."""
        flat = x.flatten(1).double()
        covariance = torch.atleast_2d(flat.T.cov())
        values, vectors = torch.linalg.eigh(covariance)
        floor = values.max().clamp(min=1e-12) * 1e-8
        whitening = vectors * values.clamp(min=floor).rsqrt()
        self.register_buffer("whitening", whitening.to(x))
        return self

    def features(self, x: Tensor) -> Tensor:
        """Return the whitened components, `(batch, num_features)`."""
        return x.flatten(1) @ self.whitening


class AbsoluteDistance(Distance):
    """Mean absolute difference."""

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the mean absolute difference, `(batch,)`."""
        return (x - x_t).flatten(1).abs().mean(dim=1)


class HuberDistance(Distance):
    """Mean Huber loss of differences in units of prior predictive deviations."""

    scale: Tensor

    def fit(self, x: Tensor) -> Distance:
        """Freeze the standard deviations of `x (num_simulations, *shape_x)`."""
        scale = x.flatten(1).std(dim=0)
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))
        return self

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the mean Huber loss, `(batch,)`."""
        residual = (x - x_t).flatten(1) / self.scale
        losses = nn.functional.huber_loss(
            residual, torch.zeros_like(residual), reduction="none"
        )
        return losses.mean(dim=1)


class EuclideanDistance(Distance):
    """Length of the difference; smoothed below 1e-6 so that its gradient exists."""

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the length of x - x_t, `(batch,)`."""
        return ((x - x_t).flatten(1).square().sum(dim=1) + 1e-12).sqrt()


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
        mask = _present(x).unsqueeze(-1) & _present(x_t).unsqueeze(-2)
        values = self.kernel(_squared_differences(x, x_t)) * mask
        return values.sum(dim=(-2, -1)) / mask.sum(dim=(-2, -1)).clamp(min=1)

    def within(self, x: Tensor) -> Tensor:
        """Return the mean of k over pairs of different present trials, `(...)`."""
        mask = _present(x).unsqueeze(-1) & _present(x).unsqueeze(-2)
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
            trials = trials[_present(trials)]
            rows = torch.linspace(0, len(trials) - 1, min(len(trials), 1000)).long()
            lengths = torch.pdist(trials[rows])
            self.bandwidth = lengths.median().clamp(min=1e-12).to(self.bandwidth)
        return self

    def kernel(self, squared: Tensor) -> Tensor:
        """Return the Gaussian kernel."""
        return (-squared / (2 * self.bandwidth**2)).exp()


class CallableDistance(Distance):
    """A user's function `(x, x_t) -> (batch,)`.

    Args:
        function: The distance of `x` and `x_t`, both `(batch, *shape_x)`.
        on_sets: Whether events are sets of trials, with NaN rows for missing ones.
        lower_bound: The least value that it can take, minus infinity if unknown.
        differentiable: Whether it has useful gradients in x.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        on_sets: bool = False,
        lower_bound: float = -math.inf,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.function = function
        self.on_sets = on_sets
        self.lower_bound = lower_bound
        self.differentiable = differentiable

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(x, x_t)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableDistance:
        return CallableDistance(
            self.function,
            on_sets=self.on_sets,
            lower_bound=self.lower_bound,
            differentiable=self.differentiable,
        )

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self.function)
        except Exception as error:
            raise InvalidTypeError(
                "distance: expected a function that can be pickled, got "
                f"{self.function!r}. Define it with `def` at the top of a module "
                "instead of as a lambda or inside a function; nothing is lost, train "
                "and sample on in this session."
            ) from error
        return dict(self.__dict__)


DISTANCES: dict[str, type[Distance]] = {
    "mse": QuadraticDistance,
    "mae": AbsoluteDistance,
    "huber": HuberDistance,
    "euclidean": EuclideanDistance,
    "mahalanobis": MahalanobisDistance,
    "energy": EnergyDistance,
    "mmd": MMDDistance,
}


def resolve_distance(distance: Any) -> Distance:
    """Return the distance of that name, or the function or object that was given.

    Raises:
        InvalidInputError: An unknown name.
        InvalidTypeError: Neither a name nor callable.

    Example:
        >>> resolve_distance("mmd").on_sets
        True
    """
    if isinstance(distance, Distance):
        return distance
    if isinstance(distance, str):
        if distance not in DISTANCES:
            raise InvalidInputError(
                f"distance: expected one of {tuple(DISTANCES)} or a function "
                f"(x, x_t) -> (batch,), got {distance!r}."
            )
        return DISTANCES[distance]()
    if callable(distance) and not isinstance(distance, type):
        return CallableDistance(distance)  # type: ignore[arg-type]
    raise InvalidTypeError(
        f"distance: expected one of {tuple(DISTANCES)}, a Distance or a function "
        f"(x, x_t) -> (batch,), got {distance!r}."
    )


def check_event_shape(distance: Distance, x: Tensor) -> None:
    """Raise if events of `x (batch, *shape_x)` are not what the distance compares.

    Raises:
        InvalidInputError: Points for a distance on sets, or sets for one on points.
    """
    shape = tuple(x.shape[1:])
    name = type(distance).__name__
    if distance.on_sets and len(shape) != 2:
        raise InvalidInputError(
            f"x: expected sets of trials (batch, num_trials, dim) for {name}, got "
            f"events of shape {shape}. Stack the trials along the second axis, or use "
            "a distance on points such as 'mse'."
        )
    if not distance.on_sets and len(shape) == 2 and has_missing_trials(x).any():
        raise InvalidInputError(
            f"x: expected points for {name}, got sets of trials with missing ones "
            "(rows of NaN). Use a distance on sets such as 'mmd' or 'energy'."
        )


@torch.no_grad()
def check_distance(distance: Distance, x: Tensor) -> None:
    """Call the distance on a few valid simulations and check what it returns.

    Args:
        distance: The distance, fitted.
        x: Valid simulations `(num_simulations, *shape_x)`.

    Raises:
        InvalidTypeError: It does not return a floating tensor.
        InvalidInputError: A wrong shape, NaN or infinity, values below the declared
            bound, or a row's value that depends on the other rows of the batch.
    """
    x = x[:CHECKED_ROWS]
    x_t = x.roll(1, dims=0)
    values = distance(x, x_t)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise InvalidTypeError(
            "distance: expected a floating tensor (batch,), got "
            f"{values.dtype if isinstance(values, Tensor) else type(values).__name__}."
        )
    if values.shape != (len(x),):
        raise InvalidInputError(
            f"distance: expected shape (batch,) = ({len(x)},), got "
            f"{tuple(values.shape)}. Average over the components of each row."
        )
    if not values.isfinite().all():
        raise InvalidInputError(
            "distance: expected finite values, got NaN or infinity between two valid "
            "simulations."
        )
    if (values < distance.lower_bound - 1e-5).any():
        raise InvalidInputError(
            f"distance: expected at least its lower bound {distance.lower_bound}, got "
            f"{values.min().item():.3g}."
        )
    alone = torch.cat([distance(x[i : i + 1], x_t[i : i + 1]) for i in range(len(x))])
    if not torch.allclose(values, alone, rtol=1e-3, atol=1e-5 * _spread(values)):
        raise InvalidInputError(
            "distance: expected each row's value to depend on that row alone, got "
            "other values when rows come one by one. Reduce over the components of a "
            "row, never over the batch."
        )


def has_missing_trials(x: Tensor) -> Tensor:
    """Whether sets `x (batch, num_trials, dim)` have missing trials but not only."""
    present = _present(x)
    return present.any(dim=1) & ~present.all(dim=1)


def is_valid(distance: Distance, x: Tensor) -> Tensor:
    """Return which simulations `(batch, *shape_x)` are usable, `(batch,)`.

    A point needs all components finite. A set needs two trials, and each trial either
    finite throughout or missing (NaN) throughout.
    """
    if not distance.on_sets or x.ndim != 3:
        return x.flatten(1).isfinite().all(dim=1)
    present, missing = x.isfinite().all(dim=2), x.isnan().all(dim=2)
    return (present | missing).all(dim=1) & (present.sum(dim=1) >= 2)


def _present(x: Tensor) -> Tensor:
    return ~x.isnan().any(dim=-1)


def _squared_differences(x: Tensor, x_t: Tensor) -> Tensor:
    """Return `(..., num_trials, num_trials_t)`; missing trials count as zeros."""
    difference = x.nan_to_num().unsqueeze(-2) - x_t.nan_to_num().unsqueeze(-3)
    return difference.square().sum(dim=-1)


def _spread(values: Tensor) -> float:
    return max(1e-12, values.abs().max().item())
