"""An inverse temperature with the curves that tell what others would have done."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sbi_scoreaug.amortized_cost.target_range import ModelWarning
from sbi_scoreaug.errors import warn
from sbi_scoreaug.panels import panels


@dataclass
class BetaCalibration:
    """An inverse temperature and how it was found.

    Attributes:
        beta: The value.
        method: The rule that gave it.
        scale_free: beta times the mean distance of random pairs.
        stderr: Standard error of log beta from the finite number of simulations, NaN
            for rules without one.
        betas: The ladder `(num_rungs,)`.
        coverage: Mean coverage over all levels (exact: .5), or at `level`.
        effective_fraction: Median effective fraction of prior draws.
        predictive_cost: Mean expected cost of posterior draws.
        true_cost: Mean expected cost at the true parameters.
        acceptance: Acceptance rate of the moves: the figure of merit.
        target_coverage: What the rule "coverage" asks of `coverage`.
        solved: Whether the rule has a solution on the ladder; if not, `beta` is the
            nearer end of it.
        warnings: Why the value is doubtful.

    Example:
        >>> from sbi_scoreaug import AmortizedCostEstimator
        >>> from sbi_scoreaug.simulators import TwoMoons
        >>> problem = TwoMoons()
        >>> theta = problem.prior.sample((300,))
        >>> trainer = AmortizedCostEstimator(problem.prior, show_progress_bars=False)
        >>> trainer = trainer.append_simulations(theta, problem(theta))
        >>> _ = trainer.train(max_num_epochs=2)
        >>> calibration = trainer.calibrate_beta("ml")
        >>> calibration.method, len(calibration.betas) == len(calibration.coverage)
        ('ml', True)
    """

    beta: float
    method: str
    scale_free: float
    stderr: float
    betas: Tensor
    coverage: Tensor
    effective_fraction: Tensor
    predictive_cost: Tensor
    true_cost: float
    acceptance: Tensor
    target_coverage: float = 0.5
    solved: bool = True
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        error = self.beta * self.stderr
        spread = "" if math.isnan(error) else f" +- {error:.2g}"
        doubt = "" if self.solved else "; the rule has no solution, see warnings"
        if self.solved and self.warnings:
            doubt = "; doubtful, see warnings"
        return (
            f"{self.method}: beta {self.beta:.3g}{spread} ({self.scale_free:.3g} over "
            f"the mean distance of random simulations{doubt})"
        )

    def warn(self) -> None:
        """Warn, in the caller's name, of everything that makes the value doubtful."""
        for message in self.warnings:
            warn(f"beta = {self.beta:.3g} is doubtful: {message}.", ModelWarning)

    def plot(self, ax: Any = None, color: str = "C0") -> tuple[Any, np.ndarray]:
        """Draw the three curves over beta, and the value.

        Args:
            ax: Three matplotlib axes; None for new ones.
            color: Of the curves and of the line at the value.

        Returns:
            The figure and the three axes.

        Raises:
            InvalidInputError: Another number of axes.
        """
        figure, axes = panels(ax, 3)
        curves = {
            "coverage": (self.coverage, self.target_coverage),
            "effective fraction of prior draws": (self.effective_fraction, None),
            "predictive cost": (self.predictive_cost, self.true_cost),
        }
        for axis, (label, (curve, reference)) in zip(axes, curves.items(), strict=True):
            axis.semilogx(self.betas, curve, color=color)
            chosen = f"{self.method}: {self.beta:.3g}"
            axis.axvline(self.beta, color=color, ls="--", lw=1, label=chosen)
            if reference is not None:
                axis.axhline(reference, color="gray", linewidth=1)
            axis.set(xlabel=r"$\beta$", ylabel=label)
        axes[1].set_yscale("log")
        axes[1].set_title(f"beta = {self.beta:.3g} ({self.method})")
        return figure, axes
