r"""sbi's vector-field posterior, for any number of observations.

Everything takes a set `(n, *shape_x)` of observations of one theta, or one observation.
Samples come from `samplers` ("auto", "gauss", "langevin", "composed"; `score_npe`
says which one when) or, for one observation, from the host's "sde" and "ode".
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.composition import ComposedScore
from sbi_scoreaug.score_npe.densities import SetDensities
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.score_npe.samplers import (
    HOST_SAMPLERS,
    SAMPLERS,
    require_sampler,
    sample_set,
)
from sbi_scoreaug.score_npe.sets import as_sets

ANCHORS_FOR_JUMPS = 300  # for the square of the number of observations
COMPOSITION_OPTIONS = ("rows_at_once", "minibatch", "damping")
# The host's options for its rejection loop, which is not needed here.
REJECTION_OPTIONS = (
    "max_sampling_batch_size",
    "reject_outside_prior",
    "max_sampling_time",
    "return_partial_on_timeout",
)


class FactorizedPosterior(SetDensities):
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

    Example:
        >>> from sbi_scoreaug import ScoreNPE
        >>> from sbi_scoreaug.simulators import GaussianGaussian
        >>> problem = GaussianGaussian(dim=2)
        >>> theta = problem.prior.sample((100,))
        >>> trainer = ScoreNPE(problem.prior, num_hidden=8, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, problem(theta))
        >>> estimator = trainer.train(num_steps=5)
        >>> posterior = FactorizedPosterior(estimator, problem.prior)
        >>> x_set = problem(theta[:1].expand(3, -1))  # (n, *shape_x)
        >>> posterior.sample((10,), x=x_set, show_progress_bars=False).shape
        torch.Size([10, 2])
        >>> posterior.log_prob(theta[:4], x=x_set).shape  # up to a constant
        torch.Size([4])
    """

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

    def __repr__(self) -> str:
        return f"{super().__repr__()} with sampler {self.sample_with!r}"

    def __str__(self) -> str:
        return (
            f"Posterior p(θ|x_1..x_n) of type {type(self).__name__}. It composes the "
            "scores of any number of observations, and samples with "
            f"{self.sample_with!r}."
        )

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
            options: Of the sampler: num_steps, t_last, polish, jump, polish_steps for
                "auto"; covariances, num_steps, t_last, num_pilot for "gauss";
                num_levels (T), steps_per_level (L), step and others for "langevin";
                num_levels, prior_score for "composed" (`help` of these functions in
                `score_npe.corrected` and `score_npe.annealed`). Of the composition:
                minibatch, damping, rows_at_once (`ComposedScore`). For "sde" and "ode"
                those of `VectorFieldPosterior.sample`.

        Returns:
            `(*sample_shape, dim_theta)`, inside the prior's support.

        Raises:
            InvalidInputError: If x is not a finite set of the right shape, or a number
                is out of range.
            InvalidTypeError: If an option is not known.
            InvalidStateError: If the sampler diverges.
        """
        x = self._as_set(self._x_else_default_x(x))
        samples, self.diagnostics = self._sample_sets(
            sample_shape, [x], show_progress_bars, options
        )
        return samples[0]

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
        sets = as_sets(x, mask, self.vector_field_estimator.observation_shape)
        samples, self.diagnostics = self._sample_sets(
            sample_shape, sets, show_progress_bars, options
        )
        return torch.stack(samples, dim=-2)

    def _sample_sets(
        self, sample_shape: Any, sets: list[Tensor], bar: bool, options: dict[str, Any]
    ) -> tuple[list[Tensor], list[SamplerDiagnostics]]:
        shape, samples, diagnostics = torch.Size(sample_shape), [], []
        several = len(sets) > 1
        for x in tqdm(sets, disable=not (bar and several), desc="Sampling sets"):
            if self.sample_with in HOST_SAMPLERS:
                samples.append(
                    self._host_sample(shape, x, bar and not several, options)
                )
                continue
            drawn, diagnosed = self._sample_set(
                shape.numel(), x, bar and not several, options
            )
            samples.append(drawn.reshape(*shape, -1))
            diagnostics.append(diagnosed)
        return samples, diagnostics

    def _host_sample(
        self, shape: torch.Size, x: Tensor, bar: bool, options: dict[str, Any]
    ) -> Tensor:
        groups = self.vector_field_estimator.group(x)
        options = {**self.sampler_options, **options}
        if len(groups) > 1:
            raise InvalidInputError(
                f"x: expected one observation for sample_with={self.sample_with!r}, "
                f"got a set of {len(x)}. Build the posterior with one of "
                f"{tuple(SAMPLERS)} for sets."
            )
        return super().sample(shape, groups, show_progress_bars=bar, **options)

    def _sample_set(
        self, num_samples: int, x: Tensor, bar: bool, options: dict[str, Any]
    ) -> tuple[Tensor, SamplerDiagnostics]:
        estimator = self.vector_field_estimator.eval()
        options = {**self.sampler_options, **options}
        options = {k: v for k, v in options.items() if k not in REJECTION_OPTIONS}
        composition = {k: options.pop(k) for k in COMPOSITION_OPTIONS if k in options}
        with torch.no_grad():
            embedded = estimator.embed(estimator.group(x.to(self._device)))
        score = ComposedScore(estimator.set_score, embedded, **composition)
        sampler = options.pop("sampler", self.sample_with)
        if sampler == "auto":
            options.setdefault("polish", self._polishes(score))
            options.setdefault("jump", bool(options["polish"]) and self._jumps(score))
        z, diagnostics = sample_set(
            score,
            estimator.schedule,
            num_samples,
            estimator.input_shape.numel(),
            sampler=sampler,
            show_progress_bar=bar,
            **options,
        )
        diagnostics.num_observations, diagnostics.num_groups = len(x), len(embedded)
        if len(embedded) > 1 and not estimator.coordinates.exact:
            diagnostics.warn(
                f"prior: expected one that a known map makes normal, got "
                f"{type(self.prior).__name__}, which is only about normal in the "
                "network's coordinates. Samples of sets are off, the more the larger "
                "the set; log_prob is not. Parametrise by independent parameters."
            )
        return estimator.from_z(z.float()), diagnostics

    def _polishes(self, score: ComposedScore) -> bool | None:
        """Whether Metropolis steps make samples better; None: `circulation` decides.

        Of networks trained by denoising alone they may sample the error at small noise,
        unless a mixture leads; with scores too between walls, if there are several
        parameters. Minibatches make acceptance random.
        """
        estimator, net = self.vector_field_estimator, self.vector_field_estimator.net
        if score.num_observations == 1 or score.minibatch is not None:
            return False
        own = isinstance(net, PosteriorScoreNet)
        leads = own and net.mixture.leads
        walls = own and net.has_walls and estimator.input_shape.numel() > 1
        return True if leads or (estimator.trained_with_scores and not walls) else None

    def _jumps(self, score: ComposedScore) -> bool:
        """Whether the odds of modes can be trusted: a mixture's, of few observations.

        Fitted to N simulations they are off by some 2 n / sqrt(N) nats (on `SignFlip`).
        """
        estimator, net = self.vector_field_estimator, self.vector_field_estimator.net
        if not isinstance(net, PosteriorScoreNet) or estimator.anchor_z is None:
            return False
        if score.minibatch is not None:
            return False
        enough = ANCHORS_FOR_JUMPS * score.num_observations**2
        return net.mixture.rules and len(estimator.anchor_z) >= enough
