r"""The mixin that adds the score term to a trainer of sbi.

`ScoreTerm` overrides the host's `_get_losses`, which sbi calls for every batch. On
batches with scores it returns

    training:    L_host + gain * sum_k w_k ell_k      (w detached, see `weighting`)
    validation:  L_host + sum_k ell_k                 (unweighted, see `monitor`)

How training is stopped, selected and reported is in `monitor`, its schedule in
`schedule`.

A subclass names the function whose theta-gradient is matched, `_log_density(theta, x)`:
log r(x|theta) for ratio estimation, log q(x|theta) for likelihood estimation. Where the
target is not the score itself, as for posteriors, it also overrides the gradient, the
weight of residuals and what they are whitened by (`npe`).

Reference: Shen & Kuusela 2026 (arXiv 2605.12118).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_scoreaug._host import assert_all_finite
from sbi_scoreaug.errors import (
    InvalidInputError,
    require_positive,
)
from sbi_scoreaug.fused import parameters_of
from sbi_scoreaug.score_augmented.joint_pass import JointPass
from sbi_scoreaug.score_augmented.loss import (
    resolve_score_loss,
    score_losses,
    square,
    whitening_matrix,
)
from sbi_scoreaug.score_augmented.monitor import ScoreMonitor
from sbi_scoreaug.score_augmented.pairs import SCORE_PAIRS, PairTable, supervised_pairs
from sbi_scoreaug.score_augmented.schedule import SteadyTraining
from sbi_scoreaug.score_augmented.smoothness import require_smooth
from sbi_scoreaug.score_augmented.surrogate import SurrogateScore
from sbi_scoreaug.score_augmented.weighting import (
    FixedWeights,
    ScoreWeighting,
    require_weights,
    resolve_weighting,
)
from sbi_scoreaug.scores.carrier import ScoreCarrier


class ScoreTerm(SurrogateScore, ScoreMonitor, SteadyTraining, JointPass, ScoreCarrier):
    """Mixin that augments the loss of a trainer of sbi with exact scores."""

    _weighting_rule = "uncertainty"
    _smooth = False
    _score_pairs = "joint"
    _has_columns = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weighting: ScoreWeighting | None = None
        self._pairs: PairTable | None = None

    def _log_density(self, estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Hook: f `(batch,)` whose theta-gradient is the score at the optimum."""
        raise NotImplementedError

    # --- before training -----------------------------------------------------------

    def _validate_before_storing(self, theta: Tensor, x: Tensor) -> None:
        """Build the network once on a copy, to refuse piecewise-linear ones early."""
        if self._smooth or self._build_neural_net is None:
            return
        if len(theta) != len(x) or {theta.dtype, x.dtype} != {torch.float32}:
            return  # the host refuses these, and says why
        rows = x.reshape(len(x), -1).isfinite().all(1).nonzero().squeeze(1)[:100]
        if len(rows) < 2:
            return
        require_smooth(
            self._build_trial, self._log_density, theta[rows].cpu(), x[rows].cpu()
        )
        self._smooth = True

    def _build_trial(self, theta: Tensor, x: Tensor) -> Any:
        """Hook: build a network on a trial; raise where it cannot take scores."""
        return self._build_neural_net(theta, x)

    def train(
        self,
        *args: Any,
        score_weighting: str | float | Tensor | ScoreWeighting | None = None,
        score_loss: str | Callable[[Tensor], Tensor] = "square",
        score_every: int = 1,
        score_gain: float = 1.0,
        score_pairs: str = "joint",
        **kwargs: Any,
    ) -> Any:
        """Train as the host, with the score term where scores were appended.

        All other arguments as in the host class. Without scores, or with
        `score_weighting=0`, this is the host's training, bit for bit.

        Args:
            args: As in the host class.
            score_weighting: "uncertainty", "pooled_uncertainty", "gradient_norm", a
                number, a tensor `(dim_theta,)`, or an object with
                `weights(host_loss, score_losses, parameters) -> (dim_theta,)`. None:
                the first for ratios, the second for flows.
            score_loss: "square", "huber" (exact scores only), or a function from
                residuals `(batch, dim_theta)` to losses of the same shape.
            score_every: Add the term at every such step. Larger is cheaper and weaker.
            score_gain: Factor on all weights.
            score_pairs: "joint"; with a `score_fn` also "local" (the same x at
                parameters near its own) and "both" (marginal pairs as well).
            kwargs: As in the host class.

        Returns:
            The trained estimator of the host.

        Raises:
            InvalidInputError, InvalidTypeError: An option that cannot be used.
        """
        if not self._theta_roundwise:
            return super().train(*args, **kwargs)
        dim_theta = self._theta_roundwise[0].shape[-1]
        chosen = self._weighting_rule if score_weighting is None else score_weighting
        weighting = resolve_weighting(chosen, dim_theta)
        given = inspect.signature(type(self).train).bind(self, *args, **kwargs)
        resume = given.arguments.get("resume_training", False)
        if not (resume and score_weighting is None and self._weighting is not None):
            self._weighting = weighting
        self._rho = resolve_score_loss(score_loss, self._score_kinds)
        require_positive("score_every", score_every, integer=True)
        require_positive("score_gain", score_gain)
        self._score_every, self._score_gain, self._step = score_every, score_gain, 0
        self._check_score_pairs(score_pairs)
        self._score_pairs = score_pairs
        self._last_weights = torch.full((dim_theta,), torch.nan)  # none used yet
        try:
            return super().train(*args, **kwargs)
        finally:
            self._pairs, self._rho = None, square  # to be pickled

    def _check_score_pairs(self, score_pairs: str) -> None:
        if score_pairs not in SCORE_PAIRS:
            raise InvalidInputError(
                f"score_pairs: expected one of {SCORE_PAIRS}, got {score_pairs!r}."
            )
        if score_pairs == "joint":
            return
        if self._score_fn is None:
            raise InvalidInputError(
                f"score_pairs: {score_pairs!r} needs the score as a function, got none."
                " Give score_fn=... to the constructor, or use 'joint'."
            )
        if "joint" in self._score_kinds:
            raise InvalidInputError(
                f"score_pairs: expected 'joint' for joint scores, got {score_pairs!r}. "
                "A joint score is valid only at the pair that it was simulated with."
            )

    @property
    def _steady(self) -> bool:
        """Whether the batches at hand have scores to use."""
        return self._has_columns

    def _columns(self, starting_round: int) -> tuple[Tensor, ...]:
        """Return `(score, mask)` and prepare what the term needs of all rows."""
        off = (
            isinstance(self._weighting, FixedWeights)
            and not self._weighting.value.any()
        )
        columns = () if off else super()._columns(starting_round)
        self._has_columns = bool(columns)
        if columns:
            score, mask = columns
            theta, x, _ = self.get_simulations(starting_round)
            rows = self.train_indices
            partly = (mask.any(1) & ~mask.all(1)).any()
            target = self._whitened_by(theta, score)
            whitening = whitening_matrix(
                target[rows], mask[rows], theta[rows], diagonal=bool(partly)
            )
            self._whitening = whitening.to(self._device)
            if self._score_pairs != "joint":
                assert self._score_fn is not None
                self._pairs = supervised_pairs(
                    self._score_pairs,
                    self._score_fn,
                    theta,
                    x,
                    whitening,
                    self._prior,
                    self._device,
                )
                columns = (*columns, torch.arange(len(theta), device=theta.device))
        return columns

    # --- during training -----------------------------------------------------------

    def _get_losses(self, batch: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the host's losses plus the score term; the host's without scores."""
        training = self._neural_net.training
        self._step += training
        if len(batch) <= 3 or (training and self._step % self._score_every):
            return super()._get_losses(batch, *args, **kwargs)
        theta, x, score, mask = (
            column.to(self._device) for column in (*batch[:2], *batch[3:5])
        )
        with torch.enable_grad():  # the host validates under no_grad
            host_losses = super()._get_losses(batch[:3], *args, **kwargs)
            gradient = self._surrogate_gradient(theta, x, create_graph=training)
            ell = self._score_losses(theta, gradient, score, mask)
            if training and self._pairs is not None:
                ell = ell + self._pair_losses(x, batch[5])
        assert_all_finite(ell, f"{type(self).__name__} score loss")
        host_loss = host_losses.mean()
        if training:
            every = parameters_of(self.optimizer)
            parameters = [p for p in every if p.requires_grad]
            assert self._weighting is not None
            w = self._weighting.weights(host_loss, ell, parameters)
            require_weights(w, ell)
            self._last_weights = self._score_gain * w.detach()
            return host_losses + (self._last_weights * ell).sum()
        self._note_validation(host_loss, gradient, score, mask)
        return (host_losses + ell.sum()).detach()

    def _surrogate_gradient(
        self, theta: Tensor, x: Tensor, create_graph: bool = False
    ) -> Tensor:
        """Return grad_theta f(theta, x) `(batch, dim_theta)` of the current network.

        At the batch's own pairs it comes from the host's forward pass (`joint_pass`).
        """
        joint, self._joint = self._joint, None
        if joint is not None and torch.equal(joint[0], theta):
            (leaf, f), keep_graph = joint, True  # the host's loss needs it still
        else:
            leaf, keep_graph = theta.detach().clone().requires_grad_(), create_graph
            f = self._log_density(self._neural_net, leaf, x)
        return torch.autograd.grad(
            f.sum(), leaf, create_graph=create_graph, retain_graph=keep_graph
        )[0]

    def _pair_losses(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return ell `(dim_theta,)` over pairs beyond the simulated ones."""
        assert self._pairs is not None
        theta, score, mask = (c.to(x.device) for c in self._pairs.draw(rows))
        gradient = self._surrogate_gradient(theta, x, create_graph=True)
        return self._score_losses(theta, gradient, score, mask)

    def _score_losses(
        self, theta: Tensor, gradient: Tensor, score: Tensor, mask: Tensor
    ) -> Tensor:
        """Hook: ell `(dim_theta,)`; the arguments are all `(batch, dim_theta)`."""
        return score_losses(gradient, score, mask, self._whitening, self._rho)

    def _whitened_by(self, theta: Tensor, score: Tensor) -> Tensor:
        """Hook: the targets `(num_simulations, dim_theta)` that set the scale."""
        return score
