r"""Score-augmented ratio estimation: sbi's NRE trainers with the score term.

The classifier's logit is f(theta, x) = log r(x|theta) = log p(x|theta) - log p(x), up
to a function c(x) in NRE-B. Under grad_theta both log p(x) and c(x) vanish, so that

    grad_theta f(theta, x) = grad_theta log p(x|theta)

at the optimum of NRE-A, NRE-B, NRE-C and BNRE (whose balance condition the optimal
classifier fulfils), in the first round and in later ones. One mixin serves all four.

With scores the mixin also embeds x once a batch. sbi repeats x for every contrasting
theta and embeds each copy. Contrasting parameters are theta_(i+o mod B) for o - 1
drawn without replacement from B - 1 offsets: each is a draw from the batch's other
rows, as in the host, without a B x B table of probabilities.

Reference: Shen & Kuusela 2026 (arXiv 2605.12118); Hermans et al. 2020 (1903.04057).
"""

from __future__ import annotations

from typing import Any

import torch
from sbi.inference import NRE_A
from sbi.neural_nets import classifier_nn
from torch import Tensor

from sbi_scoreaug._host import (
    embed_x,
    log_ratio,
    splits_into_embedding_and_head,
)
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_augmented.classifiers import smooth_classifier_nn
from sbi_scoreaug.score_augmented.joint_pass import JointPass
from sbi_scoreaug.score_augmented.trainer import ScoreTerm

SMOOTH_CLASSIFIERS = {"smooth_resnet": "resnet", "smooth_mlp": "mlp"}
HOST_CLASSIFIERS = ("linear", "mlp", "resnet")


class EmbedOnce(JointPass):
    """Mixin for ratio estimation whose logits embed each x once a batch."""

    def _classifier_logits(self, theta: Tensor, x: Tensor, num_atoms: int) -> Tensor:
        """Return logits `(batch * num_atoms, ...)`, the joint pair first in each group.

        Args:
            theta: `(batch, dim_theta)`.
            x: `(batch, *shape_x)`.
            num_atoms: Parameters an x, one of them its own.
        """
        net = self._neural_net
        batch_size, others = len(theta), num_atoms - 1
        split = self._steady and splits_into_embedding_and_head(net)
        if not split or others >= batch_size:  # the host refuses too few rows
            return super()._classifier_logits(theta, x, num_atoms)
        embedded_x = embed_x(net, x)
        offsets = torch.arange(others, device=theta.device)
        if net.training:
            offsets = torch.randperm(batch_size - 1, device=theta.device)[:others]
        rows = torch.arange(batch_size, device=theta.device).unsqueeze(1)
        contrasting = theta[(rows + 1 + offsets) % batch_size].flatten(0, 1)
        leaf = theta.detach().clone().requires_grad_(torch.is_grad_enabled())
        joint = log_ratio(net, leaf, embedded_x)
        self._joint = (leaf, joint)
        marginal = log_ratio(
            net, contrasting, embedded_x.repeat_interleave(others, dim=0)
        )
        logits = torch.cat([joint.unsqueeze(1), marginal.view(batch_size, others)], 1)
        return logits.flatten()


class ScoreAugmentedRatioTerm(EmbedOnce, ScoreTerm):
    """Mixin of the score term for any ratio trainer of sbi; see `nre`'s docstring.

    Put it in front of the host class. Arguments as in `ScoreAugmentedNRE`.

    Raises:
        InvalidInputError: An unknown name of a classifier.

    Example:
        A score-augmented NRE-C, in four lines:

        >>> from sbi.inference import NRE_C
        >>> class ScoreAugmentedNRE_C(ScoreAugmentedRatioTerm, NRE_C):
        ...     '''NRE-C with exact scores.'''
        >>> theta = torch.randn(20, 2)  # (num_simulations, dim_theta), as is score
        >>> trainer = ScoreAugmentedNRE_C(show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, theta, score=-theta)
    """

    def __init__(
        self,
        prior: Any = None,
        classifier: Any = "smooth_resnet",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if isinstance(classifier, str) and classifier in SMOOTH_CLASSIFIERS:
            classifier = smooth_classifier_nn(SMOOTH_CLASSIFIERS[classifier])
        elif isinstance(classifier, str) and classifier in HOST_CLASSIFIERS:
            classifier = classifier_nn(classifier)  # sbi's main branch warns of names
        elif isinstance(classifier, str):
            known = (*SMOOTH_CLASSIFIERS, *HOST_CLASSIFIERS)
            raise InvalidInputError(
                f"classifier: expected one of {known} or a function (theta, x) -> "
                f"RatioEstimator, got {classifier!r}."
            )
        super().__init__(prior, classifier, *args, **kwargs)

    def _log_density(self, estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Return f = log r(x|theta) `(batch,)`."""
        return estimator(theta, x)


class ScoreAugmentedNRE(ScoreAugmentedRatioTerm, NRE_A):
    """Neural ratio estimation with exact scores (Shen & Kuusela 2026, 2605.12118).

    The drop-in for sbi's `NRE_A`: all of its arguments, methods and posteriors. Append
    `score=...` beside `theta, x` and the classifier's theta-gradient is trained to
    match it. Without scores it is `NRE_A`, bit for bit, given the same classifier.

    Args:
        prior: As in `sbi.inference.NRE_A`.
        classifier: "smooth_resnet" (default), "smooth_mlp", or whatever
            `sbi.inference.NRE_A` takes. Scores need a smooth one.
        args: As in `sbi.inference.NRE_A`.
        score_fn: Optional function `(theta, x) -> score`, see `ScoreCarrier`.
        kwargs: As in `sbi.inference.NRE_A`.

    Raises:
        InvalidInputError: An unknown name of a classifier.

    Example:
        >>> from sbi_scoreaug import ScoreAugmentedNRE, simulate_with_score
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> simulator = LinearGaussian()
        >>> theta, x, score = simulate_with_score(
        ...     simulator, simulator.prior, 200, show_progress_bar=False
        ... )
        >>> trainer = ScoreAugmentedNRE(simulator.prior, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, x, score=score)
        >>> ratio_estimator = trainer.train(max_num_epochs=1)
        >>> posterior = trainer.build_posterior()
        >>> posterior.potential(theta[:3], x=x[:1]).shape
        torch.Size([3])
    """
