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

from sbi_scoreaug.amortized_cost.oversampling import (
    CANDIDATES_AT_ONCE,
    FEWEST,
    num_candidates,
)
from sbi_scoreaug.amortized_cost.potential import CostBasedPotential
from sbi_scoreaug.errors import InvalidStateError


class GeneralizedPosterior:
    """Mixin for posteriors over a `CostBasedPotential`."""

    potential_fn: CostBasedPotential
    _kept_at: float | None = None  # beta of what the host keeps

    @property
    def beta(self) -> float:
        """Inverse temperature; may be set, no retraining. VI must be fitted again."""
        return self.potential_fn.beta

    @beta.setter
    def beta(self, beta: float) -> None:
        self.potential_fn.beta = beta
        self._forget()

    def _forget(self) -> None:
        """Drop what the host keeps of another observation or beta."""
        self._map = None
        self._posterior_sampler = None
        self._normalization_constant = None
        self._kept_at = self.beta

    def _forget_at_another_beta(self) -> None:
        """Drop it too where beta was set on the potential, not here."""
        if self._kept_at != self.beta:
            self._forget()

    def map(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maximize as the host, at the present beta."""
        self._forget_at_another_beta()
        return super().map(*args, **kwargs)  # type: ignore[misc]

    def set_default_x(self, x: Any) -> Self:
        """Set the observation; warn when it lies outside the training targets.

        Raises:
            InvalidInputError: A wrong shape, NaN or infinity.
        """
        checked = self.potential_fn.check_x(x)
        super().set_default_x(checked)  # type: ignore[misc]
        self._forget()
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
    """sbi's `ImportanceSamplingPosterior` of a cost, with as many candidates as needed.

    See `oversampling`. A factor given to `sample` or to the constructor is kept; 32,
    the host's default there, counts as not given.
    """

    def sample(
        self,
        sample_shape: Any = (),
        x: Any = None,
        method: str | None = None,
        oversampling_factor: int | None = None,
        max_sampling_batch_size: int | None = None,
        show_progress_bars: bool = False,
    ) -> Any:
        """Sample as the host; by default from about 20 effective candidates a sample.

        Args:
            sample_shape: As in the host class.
            x: As in the host class.
            method: As in the host class.
            oversampling_factor: Candidates a sample; by default the constructor's, or
                what the weights of 10,000 proposals ask for: from 32 to 2000, with a
                warning where that is not enough.
            max_sampling_batch_size: Samples drawn at once, at most; fewer where they
                have more than 200,000 candidates.
            show_progress_bars: As in the host class.

        Returns:
            As in the host class.
        """
        method = self.method if method is None else method
        factor = oversampling_factor
        if factor is None:
            factor = self.oversampling_factor
            if method == "sir" and factor == FEWEST:
                self.potential_fn.set_x(self._x_else_default_x(x))
                factor = num_candidates(self.potential_fn, self.proposal)
        at_once = max_sampling_batch_size or self.max_sampling_batch_size
        return super().sample(
            sample_shape,
            x=x,
            method=method,
            oversampling_factor=factor,
            max_sampling_batch_size=min(at_once, max(1, CANDIDATES_AT_ONCE // factor)),
            show_progress_bars=show_progress_bars,
        )

    def estimate_normalization_constant(self, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate as the host, at the present beta."""
        self._forget_at_another_beta()
        return super().estimate_normalization_constant(*args, **kwargs)


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
