"""sbi's posteriors with a temperature that shows, and a word on odd observations.

The host builds its own posterior; it then becomes one of the classes below, which add
`beta` to `repr` and warn in `set_default_x` and `sample` when an observation lies
outside the targets that the cost network was trained on, as does `sample_batched`.
Everything else is sbi's.
"""

from __future__ import annotations

from typing import Any

from sbi.inference import (
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor
from typing_extensions import Self

from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.errors import InvalidStateError


class GeneralizedPosterior:
    """Mixin for posteriors over a `CostBasedPotential`."""

    potential_fn: CostBasedPotential

    @property
    def beta(self) -> float:
        """Inverse temperature; may be set, no retraining. VI must be fitted again."""
        return self.potential_fn.beta

    @beta.setter
    def beta(self, beta: float) -> None:
        self.potential_fn.beta = beta
        self._map = None
        self._posterior_sampler = None

    def set_default_x(self, x: Any) -> Self:
        """Set the observation; warn when it lies outside the training targets.

        Raises:
            InvalidInputError: A wrong shape, NaN or infinity.
        """
        checked = self.potential_fn.check_x(x)
        super().set_default_x(checked)  # type: ignore[misc]
        self._warn_if_unfamiliar(checked)
        return self

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample as the host; warn when `x` lies outside the training targets."""
        x = kwargs.get("x", args[1] if len(args) > 1 else None)
        if x is not None:
            self._warn_if_unfamiliar(self.potential_fn.check_x(x))
        return super().sample(*args, **kwargs)  # type: ignore[misc]

    def sample_batched(
        self, sample_shape: Any, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample as the host; warn when rows of `x` lie outside the training targets.

        Raises:
            InvalidInputError: A wrong shape, NaN or infinity.
        """
        checked = self.potential_fn.check_x(x)
        self._warn_if_unfamiliar(checked)
        return super().sample_batched(  # type: ignore[misc]
            sample_shape, checked, *args, **kwargs
        )

    def _warn_if_unfamiliar(self, x: Tensor) -> None:
        if self.potential_fn.target_range is not None:
            self.potential_fn.target_range.warn_if_unfamiliar(x)

    def __repr__(self) -> str:
        return f"{super().__repr__()} at beta={self.beta:.4g}"

    def __str__(self) -> str:
        return f"{super().__str__()} Generalized posterior at beta={self.beta:.4g}."


class GeneralizedMCMCPosterior(GeneralizedPosterior, MCMCPosterior):
    """sbi's `MCMCPosterior` of a cost."""


class GeneralizedRejectionPosterior(GeneralizedPosterior, RejectionPosterior):
    """sbi's `RejectionPosterior` of a cost."""


class GeneralizedImportancePosterior(GeneralizedPosterior, ImportanceSamplingPosterior):
    """sbi's `ImportanceSamplingPosterior` of a cost."""


class GeneralizedVIPosterior(GeneralizedPosterior, VIPosterior):
    """sbi's `VIPosterior` of a cost; refuses to answer at a beta it was not fitted at.

    Raises:
        InvalidStateError: `beta` changed after `train`; train again.
    """

    _fitted_beta: float | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Fit as the host, at the present beta."""
        result = super().train(*args, **kwargs)
        self._fitted_beta = self.beta
        return result

    def train_amortized(self, *args: Any, **kwargs: Any) -> Any:
        """Fit as the host, at the present beta."""
        result = super().train_amortized(*args, **kwargs)
        self._fitted_beta = self.beta
        return result

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample as the host, at the beta of the fit."""
        self._check_beta()
        return super().sample(*args, **kwargs)

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample as the host, at the beta of the fit."""
        self._check_beta()
        return super().sample_batched(*args, **kwargs)

    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate as the host, at the beta of the fit."""
        self._check_beta()
        return super().log_prob(*args, **kwargs)

    def _check_beta(self) -> None:
        if self._fitted_beta not in (None, self.beta):
            raise InvalidStateError(
                f"beta: expected {self._fitted_beta:.4g}, at which the variational "
                f"posterior was fitted, got {self.beta:.4g}. Call its train again."
            )


GENERALIZED: dict[type, type] = {
    MCMCPosterior: GeneralizedMCMCPosterior,
    RejectionPosterior: GeneralizedRejectionPosterior,
    ImportanceSamplingPosterior: GeneralizedImportancePosterior,
    VIPosterior: GeneralizedVIPosterior,
}


def generalized(posterior: NeuralPosterior) -> Any:
    """Return `posterior` as one that tells its beta."""
    posterior.__class__ = GENERALIZED[type(posterior)]
    return posterior
