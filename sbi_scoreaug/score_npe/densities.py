"""Log densities of sets, and where they are largest."""

from typing import Any

import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.ascent import ascend
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.potential import FactorizedPotential
from sbi_scoreaug.score_npe.sets import as_set


class SetDensities(VectorFieldPosterior):
    """The part of `FactorizedPosterior` that evaluates in place of sampling."""

    vector_field_estimator: FactorizedScoreEstimator

    def _use_own_potential(self) -> None:
        self.potential_fn = FactorizedPotential(
            self.vector_field_estimator, self.prior, device=self._device
        )

    def to(self, device: str | torch.device) -> None:
        """Move the posterior to a device, as the host does."""
        super().to(device)
        self.vector_field_estimator.coordinates.to(device)  # type: ignore[union-attr]
        self._use_own_potential()

    def log_prob(
        self,
        theta: Tensor,
        x: Tensor | None = None,
        track_gradients: bool = False,
        ode_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Log posterior density; for n > 1 up to a constant.

        The constant, log evidence of the set over that of its observations, grows with
        n and may be tens of nats: compare parameters, not heights. An
        `EnsemblePosterior` would weigh its members by these constants; its samples do
        not depend on them.

        Args:
            theta: `(batch, dim_theta)`.
            x: The set `(n, *shape_x)`, or one observation; None for the default.
            track_gradients: As in the host.
            ode_kwargs: `atol`, `rtol` and `exact` of the ODE solver.

        Returns:
            `(batch,)`, -inf outside the prior's support.

        Raises:
            InvalidInputError: If x is not a finite set of the right shape.
        """
        x = self._as_set(self._x_else_default_x(x))
        self.potential_fn.set_x(x.to(self._device), **(ode_kwargs or {}))
        return self.potential_fn(
            torch.as_tensor(theta).to(self._device), track_gradients
        )

    def potential(
        self, theta: Tensor, x: Tensor | None = None, track_gradients: bool = False
    ) -> Tensor:
        """Log posterior up to a constant: `log_prob`."""
        return self.log_prob(theta, x, track_gradients)

    def map(  # type: ignore[override]
        self,
        x: Tensor | None = None,
        num_iter: int = 200,
        num_to_optimize: int = 100,
        learning_rate: float = 0.05,
        init_method: str | Tensor = "posterior",
        num_init_samples: int = 300,
        save_best_every: int = 1000,
        show_progress_bars: bool = False,
        force_update: bool = False,
    ) -> Tensor:
        """Most probable parameters given the default set, by ascent on its score.

        All arguments as in sbi's `map`. The best end, by `log_prob`, of ascents on the
        composed score at small noise (`ascent`): some hundredths to tenths of a nat
        below the top of `log_prob`, whose ODE is another approximation.

        Returns:
            `(1, dim_theta)`.
        """
        if x is not None or self.default_x is None:
            raise InvalidInputError(
                "x: expected a default observation, set with set_default_x() before "
                "map(). map() takes no x."
            )
        if self._map is not None and not force_update:
            return self._map
        if isinstance(init_method, Tensor):
            theta = init_method.to(self._device)
        else:
            theta = self.sample((num_init_samples,), show_progress_bars=False)
        ends = ascend(
            self.vector_field_estimator.eval(),
            self._as_set(self.default_x).to(self._device),
            theta[:num_to_optimize],
            num_iter=num_iter,
            learning_rate=learning_rate,
            show_progress_bars=show_progress_bars,
        )
        best = self.log_prob(ends).argmax()
        self._map = ends[best : best + 1]
        return self._map

    def _as_set(self, x: Tensor) -> Tensor:
        return as_set(x, self.vector_field_estimator.observation_shape)
