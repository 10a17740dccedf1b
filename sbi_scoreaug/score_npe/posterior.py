r"""sbi's vector-field posterior, for any number of observations.

Everything takes a set `(n, *shape_x)` of observations of one theta, or one observation.
Samples come from `samplers` ("auto", "gauss", "langevin", "composed"; see there which
one when) or, for one observation, from the host's "sde" and "ode".
"""

from typing import Any

import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.composition import ComposedScore, require_set
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.potential import FactorizedPotential
from sbi_scoreaug.score_npe.samplers import SAMPLERS, sample_set

HOST_SAMPLERS = ("sde", "ode")
COMPOSITION_OPTIONS = ("rows_at_once", "minibatch", "damping")
# The host's options for its rejection loop, which is not needed here.
REJECTION_OPTIONS = (
    "max_sampling_batch_size",
    "reject_outside_prior",
    "max_sampling_time",
    "return_partial_on_timeout",
)


class FactorizedPosterior(VectorFieldPosterior):
    """Posterior given one observation or a set of independent ones.

    Args:
        vector_field_estimator: The trained estimator.
        prior: The prior that it was trained with.
        sample_with: "auto", "gauss", "langevin", "composed", "sde" or "ode".
        sampler_options: Options of the sampler and of `ComposedScore`, by name.
        kwargs: As in `sbi.inference.posteriors.VectorFieldPosterior`.

    Attributes:
        diagnostics: What the samplers of the last call did, one entry a set.

    Raises:
        InvalidInputError: If the sampler is not known.
    """

    vector_field_estimator: FactorizedScoreEstimator

    def __init__(
        self,
        vector_field_estimator: FactorizedScoreEstimator,
        prior: Distribution,
        sample_with: str = "auto",
        sampler_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        require_sampler(sample_with)
        super().__init__(vector_field_estimator, prior, sample_with="sde", **kwargs)
        self.sample_with = sample_with  # type: ignore[assignment]
        self.sampler_options = dict(sampler_options or {})
        self.diagnostics: list[SamplerDiagnostics] = []
        self._use_own_potential()

    def _use_own_potential(self) -> None:
        self.potential_fn = FactorizedPotential(
            self.vector_field_estimator, self.prior, device=self._device
        )

    def to(self, device: str | torch.device) -> None:
        """Move the posterior to a device, as the host does."""
        super().to(device)
        self.vector_field_estimator.coordinates.to(device)  # type: ignore[union-attr]
        self._use_own_potential()

    # sampling

    def sample(  # type: ignore[override]
        self,
        sample_shape: torch.Size | tuple[int, ...] = torch.Size(),  # noqa: B008
        x: Tensor | None = None,
        *,
        show_progress_bars: bool = True,
        **options: Any,
    ) -> Tensor:
        """Sample the posterior of a set.

        Args:
            sample_shape: Shape of the samples to be drawn.
            x: The set `(n, *shape_x)`, or one observation; None for the default.
            show_progress_bars: Whether to show a progress bar.
            options: Options of the sampler (see `samplers`) or of `ComposedScore`; for
                "sde" and "ode" those of the host's `sample`.

        Returns:
            `(*sample_shape, dim_theta)`, inside the prior's support.

        Raises:
            InvalidInputError: If x is not a finite set of the right shape, or a number
                is out of range.
            InvalidTypeError: If an option is not known.
            InvalidStateError: If the sampler diverges.
        """
        x = self._require_set(self._x_else_default_x(x))
        shape = torch.Size(sample_shape)
        if self.sample_with in HOST_SAMPLERS:
            self._refuse_sets(len(x))
            return super().sample(
                shape, x, show_progress_bars=show_progress_bars, **options
            )
        samples, diagnostics = self._sample_set(
            shape.numel(), x, show_progress_bars, options
        )
        self.diagnostics = [diagnostics]
        return samples.reshape(*shape, -1)

    def sample_batched(  # type: ignore[override]
        self,
        sample_shape: torch.Size | tuple[int, ...],
        x: Tensor,
        *,
        mask: Tensor | None = None,
        show_progress_bars: bool = True,
        **options: Any,
    ) -> Tensor:
        """Sample the posteriors of several sets, or of several observations.

        Args:
            sample_shape: Shape of the samples to be drawn for each.
            x: Observations `(B, *shape_x)` of B different theta, or sets
                `(B, n, *shape_x)`.
            mask: For sets of unequal sizes, True where `x` holds an observation,
                `(B, n)`. What is masked out may be anything.
            show_progress_bars: Whether to show a progress bar.
            options: As in `sample`.

        Returns:
            `(*sample_shape, B, dim_theta)`.

        Raises:
            InvalidInputError, InvalidTypeError, InvalidStateError: As `sample`; also if
                the mask has another shape or leaves a set without observations.
        """
        sets = self._require_sets(x, mask)
        shape, samples, diagnostics = torch.Size(sample_shape), [], []
        bar = tqdm(sets, disable=not show_progress_bars, desc="Sampling sets")
        for one in bar:
            if self.sample_with in HOST_SAMPLERS:
                self._refuse_sets(len(one))
                samples.append(
                    super().sample(shape, one, show_progress_bars=False, **options)
                )
                continue
            drawn, diagnosed = self._sample_set(shape.numel(), one, False, options)
            samples.append(drawn.reshape(*shape, -1))
            diagnostics.append(diagnosed)
        self.diagnostics = diagnostics
        return torch.stack(samples, dim=-2)

    def _sample_set(
        self, num_samples: int, x: Tensor, bar: bool, options: dict[str, Any]
    ) -> tuple[Tensor, SamplerDiagnostics]:
        estimator = self.vector_field_estimator.eval()
        options = {**self.sampler_options, **options}
        options = {k: v for k, v in options.items() if k not in REJECTION_OPTIONS}
        composition = {k: options.pop(k) for k in COMPOSITION_OPTIONS if k in options}
        with torch.no_grad():
            embedded = estimator.embed(x.to(self._device))
        score = ComposedScore(estimator.set_score, embedded, **composition)
        z, diagnostics = sample_set(
            score,
            estimator.schedule,
            num_samples,
            estimator.input_shape.numel(),
            sampler=options.pop("sampler", self.sample_with),
            show_progress_bar=bar,
            **options,
        )
        return estimator.from_z(z.float()), diagnostics

    # densities

    def log_prob(
        self,
        theta: Tensor,
        x: Tensor | None = None,
        track_gradients: bool = False,
        ode_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Log posterior density; for n > 1 up to a constant.

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
        x = self._require_set(self._x_else_default_x(x))
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

        All arguments as in the host. The ascent follows the composed score at a small
        noise level plus grad log |dz/dtheta|; the best end by `log_prob` is returned.

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
        estimator, t = self.vector_field_estimator.eval(), 0.01
        x_set = self._require_set(self.default_x)
        with torch.no_grad():
            score = ComposedScore(estimator.set_score, estimator.embed(x_set))
        z = estimator.to_z(theta[:num_to_optimize]).detach().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iter)
        for _ in tqdm(range(num_iter), disable=not show_progress_bars):
            optimizer.zero_grad()
            log_det = estimator.coordinates.log_abs_det(estimator.from_z(z)).sum()
            if log_det.requires_grad:
                log_det.backward()
            gradient = 0.0 if z.grad is None else z.grad
            z.grad = -(gradient + score(z.detach(), t).to(z))
            optimizer.step()
            decay.step()
        ends = estimator.from_z(z.detach())
        best = self.log_prob(ends).argmax()
        self._map = ends[best : best + 1]
        return self._map

    # what a set is

    def _require_set(self, x: Tensor) -> Tensor:
        shape = self.vector_field_estimator.condition_shape
        if x.ndim == len(shape):
            x = x.unsqueeze(0)
        if x.shape[1:] != shape:
            raise InvalidInputError(
                f"x: expected a set (n, {', '.join(map(str, shape))}) or one "
                f"observation, got shape {tuple(x.shape)}. Use sample_batched for "
                "several sets."
            )
        require_set(x)
        return x

    def _require_sets(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        shape = self.vector_field_estimator.condition_shape
        if not isinstance(x, Tensor):
            raise InvalidTypeError(f"x: expected a tensor, got {type(x).__name__}.")
        x = x.float()
        lead = x.shape[: x.ndim - len(shape)]
        if x.shape[len(lead) :] != shape or len(lead) not in (1, 2) or len(x) == 0:
            raise InvalidInputError(
                f"x: expected observations (B, {', '.join(map(str, shape))}) or sets "
                f"(B, n, {', '.join(map(str, shape))}), got shape {tuple(x.shape)}."
            )
        if mask is None:
            sets = list(x if len(lead) == 2 else x[:, None])
        else:
            if not isinstance(mask, Tensor) or mask.shape != lead or len(lead) != 2:
                found = getattr(mask, "shape", type(mask).__name__)
                raise InvalidInputError(
                    f"mask: expected the shape (B, n) of sets x, {tuple(lead)}, got "
                    f"{found}."
                )
            mask = mask.to(x.device).bool()
            empty = (~mask.any(1)).nonzero().flatten().tolist()
            if empty:
                raise InvalidInputError(
                    f"mask: expected at least one observation in each set, got none in "
                    f"sets {empty[:10]}. Leave these sets out."
                )
            sets = [one[keep] for one, keep in zip(x, mask, strict=True)]
        return [self._require_set(one) for one in sets]

    def _refuse_sets(self, num_observations: int) -> None:
        if num_observations > 1:
            raise InvalidInputError(
                f"x: expected one observation for sample_with={self.sample_with!r}, "
                f"got a set of {num_observations}. Build the posterior with one of "
                f"{tuple(SAMPLERS)} for sets."
            )


def require_sampler(sample_with: str) -> None:
    """Raise unless the sampler is known; the message lists the known ones."""
    known = (*SAMPLERS, *HOST_SAMPLERS)
    if sample_with not in known:
        raise InvalidInputError(
            f"sample_with: expected one of {known}, got {sample_with!r}."
        )
