r"""Score-augmented posterior estimation: sbi's `NPE_C` with the score term.

By Bayes' rule log p(theta|x) = log p(x|theta) + log p(theta) - log p(x), so that

    f(theta, x) = log q(theta|x) - log p(theta),
    grad_theta f(theta, x) = grad_theta log p(x|theta) = s.

*Which density.* q is the flow itself, `log_prob` of the network, in every round. In the
first round it is fitted to the posterior by maximum likelihood. In later rounds
sbi's atomic loss is a softmax of log q(theta'|x) - log p(theta') over atoms theta': its
optimum is f = log p(x|theta) + c(x) whatever the proposal, and c(x) has no
theta-gradient. The proposal-posterior of the non-atomic loss (mixture densities) is a
function of the same q. Only `force_first_round_loss=True` fits q to the *proposal's*
posterior; rows that were not drawn from the (restricted) prior then keep their place in
the host's loss and are left out of the score term, with a warning.

*Edges of the prior.* p(theta|x) jumps to zero where a prior is cut off, and a flow that
lives on R^d must fall off within the support: there grad log q and the target disagree,
whatever the flow. So residuals are faded out towards a finite edge a of parameter k,

    r_i = W t(theta_i) (grad_theta f(theta_i, x_i) - s_i),
    t_k(theta) = prod_a min(1, |theta_k - a| / (EDGE * width_k)),

with width_k the distance of the two edges, or four standard deviations of the simulated
theta_k if one edge is infinite. t is 1 away from the edges and 0 on them: the weight
function of generalised score matching on bounded domains. W whitens t (s + grad log p),
the gradient that a flow has to have. Rows outside the support are left out altogether.
Where sbi's flow itself lives inside the box (zuko's flows, with
`z_score_theta="transform_to_unconstrained"`) the same weights apply.

References: Greenberg, Nonnenmacher & Macke 2019 (arXiv 1905.07488); Shen & Kuusela 2026
(arXiv 2605.12118); Yu, Drton & Shojaie 2019 (arXiv 1812.10551).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sbi.inference import NPE_C
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn

from sbi_scoreaug.errors import warn
from sbi_scoreaug.score_augmented.densities import ScoreAugmentedDensityTerm
from sbi_scoreaug.score_augmented.edges import (
    Support,
    prior_gradient,
    require_prior_gradient,
)


class ScoreAugmentedNPE(ScoreAugmentedDensityTerm, NPE_C):
    """Neural posterior estimation with exact scores.

    The drop-in for sbi's `NPE_C`: all of its arguments, methods and posteriors, one
    round or several. Append `score=...`, the *likelihood* score, beside `theta, x`, and
    grad_theta log q(theta|x) is trained to match score + grad log prior. Near a finite
    edge of the prior's support, within 10 % of its width, the match is faded out, since
    flows cannot follow a cut: see `npe`. Without scores it is `NPE_C`, bit for bit.

    Args:
        prior: As in `sbi.inference.NPE_C`. Scores need its density: one whose
            `log_prob` has a gradient in theta, or is constant.
        density_estimator: As in `sbi.inference.NPE_C`; also the names of zuko's flows.
            "maf" (default) is smooth in theta; others can be taken, but have kinks
            and slower steps: see `densities`.
        args: As in `sbi.inference.NPE_C`.
        score_fn: Optional function `(theta, x) -> score`, see `ScoreCarrier`.
        kwargs: As in `sbi.inference.NPE_C`.

    Raises:
        InvalidInputError: An unknown name of a density estimator.

    Example:
        >>> from sbi_scoreaug import ScoreAugmentedNPE, simulate_with_score
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> simulator = LinearGaussian(dim=2)
        >>> theta, x, score = simulate_with_score(
        ...     simulator, simulator.prior, 100, show_progress_bar=False
        ... )
        >>> trainer = ScoreAugmentedNPE(simulator.prior, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, x, score=score)
        >>> density_estimator = trainer.train(max_num_epochs=1)
        >>> posterior = trainer.build_posterior()
        >>> posterior.sample((4,), x=x[:1], show_progress_bars=False).shape
        torch.Size([4, 2])
    """

    _flow_by_name = staticmethod(posterior_nn)
    _support: Support | None = None
    _first_round_loss = False
    # theta of a batch and the prior's gradient there
    _known_gradient: tuple[Tensor, Tensor] | None = None

    # --- before training -----------------------------------------------------------

    def _validate_before_storing(self, theta: Tensor, x: Tensor) -> None:
        """Refuse priors without a gradient and networks that cannot take scores."""
        if theta.ndim == 2 and theta.is_floating_point():
            require_prior_gradient(self._prior, theta)
        super()._validate_before_storing(theta, x)

    def _modules_after_theta(self, estimator: Any) -> Iterator[nn.Module]:
        """Yield the flow's modules, less those of the embedding net of x."""
        embedding = getattr(estimator, "embedding_net", None)
        embeds_x = set(embedding.modules()) if embedding is not None else set()
        return (module for module in estimator.modules() if module not in embeds_x)

    def _get_start_index(self, context: Any) -> int:
        """Note whether the proposal is to be ignored, as the host does."""
        self._first_round_loss = context.force_first_round_loss
        return super()._get_start_index(context)

    def _scores(self, starting_round: int = 0) -> tuple[Tensor, Tensor] | None:
        """Return `(score, mask)`, with rows masked whose posterior score is unknown."""
        scores = super()._scores(starting_round)
        if scores is None:
            return None
        theta, _, from_prior = self.get_simulations(starting_round)
        self._support = Support(self._prior, theta)
        score, mask = scores
        mask = mask & self._support.contains(theta).unsqueeze(1)
        if self._first_round_loss and not from_prior.all():
            warn(
                "force_first_round_loss=True fits the flow to the posterior under the "
                f"proposal: the scores of {int((from_prior == 0).sum())} simulations "
                "that were not drawn from the prior are left out."
            )
            mask = mask & from_prior.reshape(-1, 1).bool()
        return (score * mask, mask) if mask.any() else None

    def _columns(self, starting_round: int) -> tuple[Tensor, ...]:
        """Return the columns of `ScoreTerm`, then the prior's gradient at every row."""
        columns = super()._columns(starting_round)
        if not columns:
            return ()
        theta = self.get_simulations(starting_round)[0]
        return (*columns, self._prior_gradient(theta))

    # --- during training -----------------------------------------------------------

    def _get_losses(self, batch: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the losses of `ScoreTerm`, with the prior's gradient at hand."""
        if len(batch) > 3:
            theta, gradient = batch[0].to(self._device), batch[-1].to(self._device)
            self._known_gradient = (theta, gradient)
        try:
            return super()._get_losses(batch, *args, **kwargs)
        finally:
            self._known_gradient = None

    def _log_density(self, estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Return log q(theta|x) `(batch,)`; `_surrogate_gradient` adds the prior's."""
        return estimator.log_prob(theta.unsqueeze(0), x)[0]

    def _surrogate_gradient(
        self, theta: Tensor, x: Tensor, create_graph: bool = False
    ) -> Tensor:
        """Return grad_theta log q(theta|x) - grad log p(theta): of the likelihood."""
        gradient = super()._surrogate_gradient(theta, x, create_graph)
        return gradient - self._prior_gradient(theta)

    def _prior_gradient(self, theta: Tensor) -> Tensor:
        known = self._known_gradient
        if known is not None and torch.equal(known[0], theta):
            return known[1]
        support = self._support or Support(self._prior, theta)
        on_device = theta.to(self._device)
        inside = support.contains(on_device)
        return prior_gradient(self._prior, on_device, inside).to(theta.device)

    def _loss_is_minus_f(
        self,
        x: Tensor,
        calibration_kernel: Callable[[Tensor], Tensor] | None = None,
        force_first_round_loss: bool = False,
        **loss_args: Any,
    ) -> bool:
        """Whether this is the first round's loss, without a calibration kernel."""
        if self._round > 0 and not force_first_round_loss:
            return False
        return calibration_kernel is None or bool((calibration_kernel(x) == 1).all())

    def _score_losses(
        self, theta: Tensor, gradient: Tensor, score: Tensor, mask: Tensor
    ) -> Tensor:
        """Return ell `(dim_theta,)` of residuals that fade out towards the edges."""
        assert self._support is not None
        fade = self._support.fade(theta)
        return super()._score_losses(theta, fade * gradient, fade * score, mask)

    def _whitened_by(self, theta: Tensor, score: Tensor) -> Tensor:
        """Return the faded gradient of the log posterior, `(num_simulations, d)`."""
        assert self._support is not None
        return self._support.fade(theta) * (score + self._prior_gradient(theta))

    # --- after training --------------------------------------------------------------

    def surrogate_score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return grad_theta log q(theta|x) - grad log p(theta), a likelihood score.

        Arguments, return value and errors as in `SurrogateScore.surrogate_score`; also:

        Raises:
            InvalidInputError: A prior without gradient.
        """
        if isinstance(theta, Tensor):
            require_prior_gradient(self._prior, theta)
        return super().surrogate_score(theta, x)
