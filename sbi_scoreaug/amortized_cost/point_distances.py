r"""Distances between points: events whose components are compared one by one.

    mse          mean of squared differences
    mae          mean of absolute differences
    huber        mean of h(r / s_k), h(u) = u^2/2 for |u| < 1, |u| - 1/2 beyond; s_k the
                 prior predictive standard deviation of component k
    euclidean    square root of the sum of squared differences
    mahalanobis  (x - x_t)' S^-1 (x - x_t) / dim, S the prior predictive covariance

The first and the last are quadratic: they have features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbi_scoreaug.amortized_cost.distance import Distance


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
