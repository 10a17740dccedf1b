r"""ScoreNPE: a trainer of sbi whose posterior takes any number of observations.

    p(theta|x_1..x_n)  proportional to  p(theta)^(1-n) prod_j p(theta|x_j)

The network learns the posterior score of *single* observations; sets are composed when
sampling (`composition`, `samplers`). It sees coordinates in which the prior is N(0, I).

Reference: Geffner, Papamakarios & Mnih (2023), arXiv 2209.14249.
"""

from collections.abc import Callable
from typing import Any

import torch
from sbi.inference import NPSE
from sbi.inference.posteriors.posterior_parameters import VectorFieldPosteriorParameters
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_scoreaug._host import within_support
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError, warn
from sbi_scoreaug.score_npe.builder import FactorizedScoreBuilder, require_model
from sbi_scoreaug.score_npe.composition import require_count
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.posterior import FactorizedPosterior
from sbi_scoreaug.score_npe.refinement import Refinement
from sbi_scoreaug.score_npe.samplers import require_sampler
from sbi_scoreaug.score_npe.training import AveragedTraining


class ScoreNPE(AveragedTraining, Refinement, NPSE):
    """Factorized neural posterior score estimation.

    All other arguments as in `sbi.inference.NPSE`. Append `score=...` beside
    `theta, x` and the training target gains by the exact score (`mixed_target`), at no
    cost a step; without scores it is denoising score matching.

    Args:
        prior: Prior over theta; needed, since sets divide by it.
        vf_estimator: "factorized" for this package's network, or what `NPSE` takes (a
            name, builder or configuration of VP score estimators).
        sde_type: "vp", the only one whose diffused prior stays N(0, I).
        parametrization: "bounded", or the paper's "noise"; for "factorized" only.
        embedding_net: Embeds x `(batch, *shape_x)` to `(batch, num_features)`.
        num_hidden: Width of the network.
        num_blocks: Residual blocks of each of its parts.
        max_set_size: Observations m that the network takes at once; x is then
            `(num_simulations, m, *shape_x)`, m simulations at each theta, and a set of
            n is composed of ceil(n / m) groups. For "factorized" only.
        score_fn: Optional function `(theta, x) -> score`, see `ScoreCarrier`.

    Raises:
        InvalidTypeError, InvalidInputError: If the prior has no map to N(0, I), or an
            argument is out of range.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> theta = prior.sample((500,))
        >>> x = theta + torch.randn_like(theta)
        >>> trainer = ScoreNPE(prior, show_progress_bars=False)
        >>> _ = trainer.append_simulations(theta, x).train(num_steps=20)
        >>> posterior = trainer.build_posterior()
        >>> x_set = torch.randn(8, 2) + 1
        >>> posterior.sample((100,), x=x_set, show_progress_bars=False).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        vf_estimator: str | Callable[..., nn.Module] = "factorized",
        score_estimator: str | Callable[..., nn.Module] | None = None,
        density_estimator: Callable[..., nn.Module] | None = None,
        sde_type: str = "vp",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: Any = None,
        tracker: Any = None,
        show_progress_bars: bool = True,
        *,
        parametrization: str = "bounded",
        embedding_net: nn.Module | None = None,
        num_hidden: int = 128,
        num_blocks: int = 2,
        max_set_size: int = 1,
        score_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        vf_estimator = score_estimator or density_estimator or vf_estimator
        require_model(vf_estimator)
        if sde_type != "vp":
            raise InvalidInputError(
                f"sde_type: expected 'vp', got {sde_type!r}: under any other the prior "
                "changes with the noise level, and sets cannot be composed."
            )
        require_count("num_hidden", num_hidden)
        require_count("num_blocks", num_blocks)
        require_count("max_set_size", max_set_size)
        if max_set_size > 1 and vf_estimator != "factorized":
            raise InvalidInputError(
                "max_set_size: expected 1 for a network of the host, got "
                f"{max_set_size}. Take vf_estimator='factorized'."
            )
        builder = FactorizedScoreBuilder(
            prior,
            vf_estimator,
            parametrization=parametrization,
            embedding_net=embedding_net,
            num_hidden=num_hidden,
            num_blocks=num_blocks,
            max_set_size=max_set_size,
        )
        super().__init__(
            prior=prior,
            vf_estimator=builder,  # type: ignore[arg-type]
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
            score_fn=score_fn,
        )
        self._max_set_size = max_set_size
        self._coordinates = builder.coordinates
        self._rows_were_dropped = False
        self._start_averaging(0.999, None)
        self._pending: tuple[str, dict[str, Any]] = ("auto", {})

    def append_simulations(
        self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Store simulations, as in `NPSE.append_simulations`.

        Args:
            theta: `(num_simulations, dim_theta)`.
            x: `(num_simulations, *shape_x)`, or `(num_simulations, m, *shape_x)` with
                `max_set_size=m` above 1.
            args: As in the host.
            kwargs: As in the host.

        Raises:
            InvalidInputError: If x does not hold m simulations of each theta.

        Warns:
            UserWarning: If theta lies outside the prior's support.
        """
        m, shape = self._max_set_size, tuple(getattr(x, "shape", ()))
        if m > 1 and (len(shape) < 3 or shape[1] != m):
            raise InvalidInputError(
                f"x: expected ({len(theta)}, {m}, *shape_x) for max_set_size={m}, got "
                f"{shape}. Simulate {m} times at each theta."
            )
        trainer = super().append_simulations(theta, x, *args, **kwargs)
        kept = self._theta_roundwise[-1]
        self._rows_were_dropped |= len(kept) < len(theta)
        outside = ~within_support(self._prior, kept)
        if outside.any():
            warn(
                f"theta: expected parameters inside the prior's support, got "
                f"{int(outside.sum())} of {len(outside)} outside. They are learned as "
                "if at its edge; leave them out, or widen the prior.",
                UserWarning,
            )
        return trainer

    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 1e-3,
        *args: Any,
        num_steps: int = 8000,
        ema_decay: float = 0.999,
        mixture: bool = True,
        **kwargs: Any,
    ) -> FactorizedScoreEstimator:
        """Train by denoising score matching.

        All other arguments as in `NPSE.train`.

        Args:
            training_batch_size: As in the host.
            learning_rate: At the start; it falls as a half cosine.
            args: As in the host.
            num_steps: Optimiser steps over which the learning rate falls, rounded up to
                epochs. Training ends there, or earlier by the host's rules.
            ema_decay: Decay of the average of weights, in [0, 1); 0 for none.
            mixture: Whether a mixture of Gaussians may take a share of the score after
                training, as validation decides; False for the network alone.
            kwargs: As in the host, but for `stop_after_epochs`: 20, or as many as make
                400 steps where simulations are few.

        Returns:
            The trained estimator, with averaged weights.

        Raises:
            InvalidInputError: If a number is out of range.
        """
        require_count("num_steps", num_steps)
        if not 0 <= ema_decay < 1:
            raise InvalidInputError(
                f"ema_decay: expected a number in [0, 1), got {ema_decay}."
            )
        self._unrefine()
        estimator = self._train_averaged(
            (training_batch_size, learning_rate, *args), num_steps, ema_decay, kwargs
        )
        return self._refine(estimator, mixture)

    def build_posterior(  # type: ignore[override]
        self,
        vector_field_estimator: FactorizedScoreEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: str = "auto",
        vectorfield_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: Any = None,
        *,
        sampler_options: dict[str, Any] | None = None,
    ) -> FactorizedPosterior:
        """Build the posterior.

        All other arguments as in `NPSE.build_posterior`.

        Args:
            vector_field_estimator: As in the host.
            prior: As in the host; it has to be the one of training.
            sample_with: "auto" (default), "gauss", "langevin" or "composed" for any
                number of observations, "sde" or "ode" for one; see `score_npe`.
            vectorfield_sampling_parameters: As in the host.
            posterior_parameters: As in the host.
            sampler_options: Options of the sampler, by name.

        Returns:
            The posterior, with a copy of the network.

        Raises:
            InvalidInputError: If the sampler is not known, or the prior is another.
            InvalidTypeError: If the estimator was not built by `ScoreNPE`, or the
                parameters are those of another posterior.
        """
        require_sampler(sample_with)
        self._pending = (sample_with, dict(sampler_options or {}))
        return super().build_posterior(  # type: ignore[return-value]
            vector_field_estimator,
            prior,
            "sde",
            vectorfield_sampling_parameters,
            posterior_parameters,
        )

    def _create_posterior(
        self,
        estimator: Any,
        prior: Any,
        sample_with: str,
        device: Any,
        posterior_parameters: Any,
    ) -> FactorizedPosterior:
        if not isinstance(estimator, FactorizedScoreEstimator):
            raise InvalidTypeError(
                "vector_field_estimator: expected a FactorizedScoreEstimator, got "
                f"{type(estimator).__name__}. Train it with ScoreNPE."
            )
        if not isinstance(posterior_parameters, VectorFieldPosteriorParameters):
            raise InvalidTypeError(
                "posterior_parameters: expected VectorFieldPosteriorParameters, got "
                f"{type(posterior_parameters).__name__}."
            )
        self._require_prior_of_training(prior)
        name, options = self._pending
        return FactorizedPosterior(
            estimator,
            prior,
            sample_with=name,
            sampler_options=options,
            device=device,
            max_sampling_batch_size=posterior_parameters.max_sampling_batch_size,
            enable_transform=posterior_parameters.enable_transform,
        )

    def _require_prior_of_training(self, prior: Any) -> None:
        """Refuse another density than the one whose coordinates the network sees."""
        if prior is self._prior or not self._theta_roundwise:
            return
        theta = self._theta_roundwise[0][:100]
        theta = theta[within_support(self._prior, theta)]
        given, trained = (p.log_prob(theta) for p in (prior, self._prior))
        if not torch.allclose(given, trained, atol=1e-3, rtol=1e-3):
            raise InvalidInputError(
                "prior: expected the prior of training, got one with another density. "
                "The network has learned posteriors under that prior: train a new "
                "trainer, or weight the samples by the ratio of the priors."
            )
