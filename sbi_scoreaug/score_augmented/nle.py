r"""Score-augmented likelihood estimation: sbi's `NLE_A` with the score term.

The flow q(x|theta) is trained by maximum likelihood. At the optimum q = p wherever
theta was simulated, whatever the proposal, so that

    f(theta, x) = log q(x|theta),     grad_theta f(theta, x) = grad_theta log p(x|theta)

in the first round and in later ones. A joint score t = grad_theta log p(x, z|theta) has
the same minimiser under the squared loss, since E[t | theta, x] is the score.

References: Papamakarios et al. 2019 (arXiv 1805.07226); Shen & Kuusela 2026 (arXiv
2605.12118); Brehmer et al. 2020 (arXiv 1805.12244), where the idea was first used with
flows.
"""

from __future__ import annotations

from typing import Any

from sbi.inference import NLE_A
from sbi.neural_nets import likelihood_nn
from torch import Tensor

from sbi_scoreaug.score_augmented.densities import ScoreAugmentedDensityTerm


class ScoreAugmentedNLE(ScoreAugmentedDensityTerm, NLE_A):
    """Neural likelihood estimation with exact scores.

    The drop-in for sbi's `NLE_A`: all of its arguments, methods and posteriors. Append
    `score=...` beside `theta, x` and grad_theta log q(x|theta) is trained to match it.
    Without scores it is `NLE_A`, bit for bit.

    Args:
        prior: As in `sbi.inference.NLE_A`.
        density_estimator: As in `sbi.inference.NLE_A`; also the names of zuko's flows.
            "maf" (default) is smooth in theta; others can be taken, but have kinks
            and slower steps: see `densities`.
        args: As in `sbi.inference.NLE_A`.
        score_fn: Optional function `(theta, x) -> score`, see `ScoreCarrier`.
        kwargs: As in `sbi.inference.NLE_A`.

    Raises:
        InvalidInputError: An unknown name of a density estimator.

    Example:
        >>> from sbi_scoreaug import ScoreAugmentedNLE, simulate_with_score
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> simulator = LinearGaussian(dim=2)
        >>> theta, x, score = simulate_with_score(
        ...     simulator, simulator.prior, 100, show_progress_bar=False
        ... )
        >>> trainer = ScoreAugmentedNLE(simulator.prior, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, x, score=score)
        >>> density_estimator = trainer.train(max_num_epochs=1)
        >>> trainer.surrogate_score(theta[:3], x[:3]).shape
        torch.Size([3, 2])
    """

    _flow_by_name = staticmethod(likelihood_nn)

    def _validate_before_storing(self, theta: Tensor, x: Tensor) -> None:
        """Refuse networks that cannot take scores; the host refuses images itself."""
        if x.ndim <= 2:
            super()._validate_before_storing(theta, x)

    def _log_density(self, estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Return f = log q(x|theta) `(batch,)`."""
        return estimator.log_prob(x.unsqueeze(0), theta)[0]
