r"""Pictures of training, of scores and of posteriors.

Each function takes `ax=` (matplotlib axes, as many as it has panels) and returns the
figure and the axes, so that a picture can be composed with others. `BetaCalibration`,
`CostDiagnosis` and `ScoreCheck` bring a `plot(ax=None)` of their own, which returns the
same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_scoreaug.amortized_cost import BetaCalibration
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError
from sbi_scoreaug.panels import panels
from sbi_scoreaug.score_augmented.surrogate import require_surrogate
from sbi_scoreaug.score_npe import SamplerDiagnostics


def _names(labels: Sequence[str] | None, dim: int) -> list[str]:
    names = [rf"$\theta_{k + 1}$" for k in range(dim)] if labels is None else labels
    if len(names) != dim:
        raise InvalidInputError(
            f"labels: expected one for each of {dim} parameters, got {len(names)}."
        )
    return list(names)


def training_curves(
    trainer: Any, labels: Sequence[str] | None = None, ax: Any = None
) -> tuple[Any, np.ndarray]:
    """Draw what a training with scores reported: loss, score error, weights.

    Args:
        trainer: A trained trainer with `surrogate_score` that was given scores.
        labels: Names of the parameters.
        ax: Three axes.

    Returns:
        The figure and three axes: the host's validation loss, the standardised score
        error (0 perfect, 1 a surrogate that ignores theta) and the weight of each
        component, over epochs.

    Raises:
        InvalidTypeError: A trainer that reports no score error, with scores or not.
        InvalidStateError: Nothing was trained, or without scores.
        InvalidInputError: A wrong number of axes or labels.

    Example:
        >>> from sbi_scoreaug import ScoreAugmentedNRE, simulate_with_score
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> problem = LinearGaussian(2)
        >>> theta, x, score = simulate_with_score(
        ...     problem, problem.prior, 100, show_progress_bar=False
        ... )
        >>> trainer = ScoreAugmentedNRE(problem.prior, show_progress_bars=False)
        >>> _ = trainer.append_simulations(theta, x, score=score).train(
        ...     training_batch_size=50, max_num_epochs=3)
        >>> figure, axes = training_curves(trainer)
        >>> len(axes)
        3
    """
    require_surrogate(
        trainer,
        "It reports no score error, with scores or without: plot "
        "trainer.summary['validation_loss'], and hold its posterior against that of "
        "a training without scores.",
    )
    summary = trainer.summary
    if not summary.get("score_error"):
        raise InvalidStateError(
            "trainer: expected one that was trained with scores, got none in its "
            "summary. Append score=... and call train() first."
        )
    errors = np.array(summary["score_error"])
    names = _names(labels, errors.shape[1])
    figure, axes = panels(ax, 3)
    axes[0].plot(summary["validation_host_loss"])
    axes[0].set(ylabel="host's validation loss")
    for k, name in enumerate(names):
        axes[1].plot(errors[:, k], label=name)
        axes[2].plot(np.array(summary["score_weights"])[:, k], label=name)
    axes[1].set(ylabel="standardised score error", yscale="log")
    axes[2].set(ylabel="weight of the score term", yscale="log")
    for axis in axes:
        axis.set_xlabel("epoch")
    axes[1].legend(frameon=False)
    return figure, axes


@torch.no_grad()
def score_fit(
    trainer: Any,
    theta: Tensor,
    x: Tensor,
    score: Tensor,
    labels: Sequence[str] | None = None,
    ax: Any = None,
) -> tuple[Any, np.ndarray]:
    """Draw the surrogate's score against the exact one, a panel a parameter.

    Args:
        trainer: A trained trainer with `surrogate_score`.
        theta: `(batch, dim_theta)`, better not those of training.
        x: Simulations at theta, `(batch, *shape_x)`.
        score: Exact scores `(batch, dim_theta)`; NaN components are not drawn.
        labels: Names of the parameters.
        ax: As many axes as parameters.

    Returns:
        The figure and the axes. A perfect fit lies on the diagonal.

    Raises:
        InvalidTypeError: A trainer without `surrogate_score`.
        InvalidStateError: The trainer is not trained.
        InvalidInputError: A wrong number of rows, axes or labels.

    Example:
        >>> from sbi_scoreaug import ScoreAugmentedNRE, simulate_with_score
        >>> from sbi_scoreaug.simulators import LinearGaussian
        >>> problem = LinearGaussian(2)
        >>> theta, x, score = simulate_with_score(
        ...     problem, problem.prior, 100, show_progress_bar=False
        ... )
        >>> trainer = ScoreAugmentedNRE(problem.prior, show_progress_bars=False)
        >>> _ = trainer.append_simulations(theta, x, score=score).train(
        ...     training_batch_size=50, max_num_epochs=3)
        >>> figure, axes = score_fit(trainer, theta, x, score)
    """
    require_surrogate(trainer, "It has no `surrogate_score` to be drawn.")
    found, exact = trainer.surrogate_score(theta, x).cpu(), score.cpu()
    if found.shape != exact.shape:
        raise InvalidInputError(
            f"score: expected the shape of theta {tuple(found.shape)}, got "
            f"{tuple(exact.shape)}."
        )
    names = _names(labels, exact.shape[1])
    figure, axes = panels(ax, len(names))
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        known = exact[:, k].isfinite()
        ends = [exact[known, k].min().item(), exact[known, k].max().item()]
        axis.plot(ends, ends, color="0.6", lw=1)
        axis.plot(exact[known, k], found[known, k], ".", ms=3, alpha=0.6)
        axis.set(title=name, xlabel="exact score")
    axes[0].set_ylabel("surrogate's score")
    return figure, axes


def posterior_against_reference(
    samples: Tensor | Mapping[str, Tensor],
    reference: Any,
    parameters: tuple[int, int] = (0, 1),
    labels: Sequence[str] | None = None,
    truth: Tensor | None = None,
    ax: Any = None,
) -> tuple[Any, np.ndarray]:
    """Draw samples of two parameters over the reference's density.

    Args:
        samples: `(num_samples, dim_theta)`, or several of these by name.
        reference: Exact samples `(num_samples, dim_theta)`, or something to sample
            from, such as a simulator's `exact_posterior`.
        parameters: The two parameters to draw.
        labels: Names of all parameters.
        truth: theta behind the observation `(dim_theta,)`, drawn as a cross.
        ax: As many axes as there are sets of samples.

    Returns:
        The figure and the axes, one for each set of samples, with the same limits.

    Raises:
        InvalidInputError: Parameters that are not there, or a wrong number of axes.

    Example:
        >>> import torch
        >>> exact, samples = torch.randn(2000, 2), torch.randn(500, 2)
        >>> figure, axes = posterior_against_reference(samples, exact)
    """
    named = samples if isinstance(samples, Mapping) else {"": samples}
    given = isinstance(reference, Tensor)
    exact = reference.cpu() if given else reference.sample((20_000,))
    i, j = parameters
    dim = exact.shape[1]
    if not (0 <= i < dim and 0 <= j < dim and i != j):
        raise InvalidInputError(
            f"parameters: expected two different ones below {dim}, got {parameters}."
        )
    names = _names(labels, dim)
    figure, axes = panels(ax, len(named))
    # Of each set by itself: a few samples far away must not fall off the picture.
    levels = torch.tensor([0.005, 0.995]).to(exact)
    ends = [rows.cpu().to(exact).quantile(levels, dim=0) for rows in named.values()]
    ends = torch.stack([exact.quantile(levels, dim=0), *ends])
    low, high = ends[:, 0].amin(0), ends[:, 1].amax(0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    edges = [np.linspace(float(low[k]), float(high[k]), 41) for k in (i, j)]
    density, *_ = np.histogram2d(*exact[:, [i, j]].T.numpy(), bins=edges)
    for axis, (name, rows) in zip(axes, named.items(), strict=True):
        axis.pcolormesh(*edges, density.T, cmap="Greys", rasterized=True)
        axis.plot(*rows.cpu()[:500, [i, j]].T, ".", ms=3, alpha=0.5, color="tab:orange")
        if truth is not None:
            axis.plot(*truth[[i, j]], "X", color="tab:blue", mec="white", ms=10)
        limits = [(edge[0], edge[-1]) for edge in edges]
        axis.set(title=name, xlabel=names[i], xlim=limits[0], ylim=limits[1])
    axes[0].set_ylabel(names[j])
    if ax is None:
        _explain(figure, with_truth=truth is not None)
    return figure, axes


def _explain(figure: Any, with_truth: bool) -> None:
    """Put a legend above the panels of `posterior_against_reference`."""
    from matplotlib.lines import Line2D

    styles: dict[str, dict[str, Any]] = {
        "reference": {"marker": "s", "color": "0.4"},
        "samples": {"marker": ".", "color": "tab:orange"},
        "truth": {"marker": "X", "color": "tab:blue"},
    }
    handles = [
        Line2D([], [], ls="", label=label, **style)
        for label, style in styles.items()
        if label != "truth" or with_truth
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )


def temperature_calibration(
    *calibrations: BetaCalibration, ax: Any = None
) -> tuple[Any, np.ndarray]:
    """Draw what rules for the inverse temperature saw, and what they chose.

    Args:
        calibrations: What `AmortizedCostEstimator.calibrate_beta` returned, one for
            each rule.
        ax: Three axes.

    Returns:
        The figure and three axes over beta: coverage, effective fraction of prior
        draws, predictive cost; dashed lines are the values that were chosen.

    Raises:
        InvalidInputError: No calibration, or a wrong number of axes.

    Example:
        >>> betas = torch.logspace(-1, 2, 20)  # what calibrate_beta("ml") returns
        >>> found = BetaCalibration(
        ...     beta=5.0, method="ml", scale_free=5.0, stderr=0.1, betas=betas,
        ...     coverage=1 / (1 + betas), effective_fraction=1 / (1 + betas),
        ...     predictive_cost=1 / (1 + betas), true_cost=0.1,
        ...     acceptance=torch.ones(20))
        >>> figure, axes = temperature_calibration(found)
    """
    if not calibrations:
        raise InvalidInputError("calibrations: expected at least one, got none.")
    figure, axes = panels(ax, 3)
    for k, calibration in enumerate(calibrations):
        calibration.plot(ax=axes, color=f"C{k}")
    for axis in axes:
        axis.set_title("")
    axes[0].legend(edgecolor="none", framealpha=0.9, fontsize=9)  # over its lines
    return figure, axes


def sampler_traces(
    diagnostics: SamplerDiagnostics,
    labels: Sequence[str] | None = None,
    ax: Any = None,
) -> tuple[Any, np.ndarray]:
    """Draw the particles of a composed sampler from noise to posterior.

    Args:
        diagnostics: Of one set, `posterior.diagnostics[0]` after `posterior.sample`.
        labels: Names of the parameters.
        ax: As many axes as parameters.

    Returns:
        The figure and the axes: twenty particles, and mean and two standard deviations
        of a hundred, in the sampler's coordinates, where the prior is N(0, I).

    Raises:
        InvalidStateError: There are no traces, as after the host's samplers.
        InvalidInputError: A wrong number of axes or labels.

    Example:
        >>> found = SamplerDiagnostics("auto", 3)
        >>> for sd in (1.0, 0.5, 0.1):
        ...     found.keep_trace(sd * torch.randn(200, 2))
        >>> figure, axes = sampler_traces(found, labels=["mean", "scale"])
    """
    if not diagnostics.traces:
        raise InvalidStateError(
            "diagnostics: expected traces of a composed sampler, got none. Sample with "
            "'auto', 'gauss', 'langevin' or 'composed' first."
        )
    traces = torch.stack(diagnostics.traces)
    mean, margin = traces.mean(1), 2 * traces.std(1)
    names = _names(labels, traces.shape[2])
    figure, axes = panels(ax, len(names))
    steps = range(len(traces))
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.plot(steps, traces[:, :20, k], color="C0", lw=0.5, alpha=0.5)
        low, high = (mean - margin)[:, k], (mean + margin)[:, k]
        axis.fill_between(steps, low, high, color="C1", alpha=0.3)
        axis.plot(steps, mean[:, k], color="C1")
        axis.set(title=name, xlabel="step of the sampler")
    axes[0].set_ylabel("in units where\nthe prior is N(0, 1)")
    return figure, axes
