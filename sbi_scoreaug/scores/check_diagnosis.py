"""The likely cause of an alarm: the repair of the score under which the tests pass."""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sbi_scoreaug.scores.check_statistics import TestFunctions, z_statistic


def likely_cause(
    tests: TestFunctions, score: Tensor, mask: Tensor, threshold: float
) -> str:
    """Name the likely cause, from the simplest repair to the vaguest.

    Args:
        tests: The tests, of which at least one raised an alarm.
        score: `(num_simulations, dim_theta)`.
        mask: `(num_simulations, dim_theta)`, true where the score is known.
        threshold: A larger |z| is an alarm.
    """
    return _Diagnosis(tests, score, mask, threshold).cause()


class _Diagnosis:
    """Finds the repair of the score under which the tests pass."""

    def __init__(
        self, tests: TestFunctions, score: Tensor, mask: Tensor, threshold: float
    ) -> None:
        self.tests, self.score, self.mask = tests, score, mask
        self.threshold = threshold
        self.failing = self._failing(tests.z(score, mask)).nonzero().squeeze(1).tolist()

    def _failing(self, z: Tensor) -> Tensor:
        return z.abs().amax(0) > self.threshold

    def _repaired(self, score: Tensor) -> Tensor:
        """Which components pass, and not for noise: E[phi w s] must be clear."""
        mask = self.mask & score.isfinite()
        return self._related(score) & ~self._failing(self.tests.z(score, mask))

    def _related(self, score: Tensor) -> Tensor:
        """Which components have a clear E[phi w s]: true scores know their x."""
        mask = self.mask & score.isfinite()
        z = z_statistic(self.tests.g * torch.where(mask, score, 0.0), mask)
        return self._failing(z[2:])

    def cause(self) -> str:
        """Return the likely cause, from the simplest repair to the vaguest."""
        joint = self._columns() or self._prior_included() or self._rows()
        if joint:
            return joint
        found: dict[str, list[int]] = {}
        for k in self.failing:
            found.setdefault(self._component(k), []).append(k)
        return "; ".join(
            f"{label} ({'components' if len(ks) > 1 else 'component'} "
            f"{', '.join(map(str, ks))})"
            for label, ks in found.items()
        )

    def _columns(self, max_dim: int = 16) -> str | None:
        """Whether a permutation of the columns passes."""
        dim_theta = self.score.shape[1]
        if dim_theta > max_dim or not bool(self.mask.any(0).all()):
            return None
        cost = torch.empty(dim_theta, dim_theta)
        for j in range(dim_theta):
            column = self.score[:, [j]].expand_as(self.score)
            z = self.tests.z(column, self.mask & column.isfinite())
            cost[:, j] = z.square().sum(0)
        order = linear_sum_assignment(cost.numpy())[1]
        moved = [k for k in range(dim_theta) if order[k] != k]
        if not moved or not self._repaired(self.score[:, order])[moved].all():
            return None
        if len(moved) == 2:
            return f"columns {moved[0]} and {moved[1]} are swapped"
        return "the columns are permuted: " + ", ".join(
            f"component {k} stands in column {order[k]}" for k in moved
        )

    def _prior_included(self) -> str | None:
        """Whether this is the score of the posterior."""
        if not self.tests.weights.gradient.any():
            return None
        if not self._repaired(self.score - self.tests.weights.gradient)[
            self.failing
        ].all():
            return None
        return "the gradient of the log prior is included: give the likelihood's alone"

    def _rows(self) -> str | None:
        """Whether the scores know nothing of the x beside them."""
        if self._related(self.score)[self.failing].any():
            return None
        flipped = self.tests.z(-self.score, self.mask)
        if not self._failing(flipped).any():  # Right, but for the sign, and few rows.
            return None
        return (
            "the rows are not aligned: the scores have no relation to theta and x "
            "(shuffled, of other simulations, or constant)"
        )

    def _component(self, k: int) -> str:
        """Return the repair of component k that fits best among those that pass."""
        scale = self._scale(k)
        sign = "the sign is flipped and it is " if scale < 0 else "it is "
        # A price as in Akaike's criterion, but higher: the usual cause comes first.
        candidates = [
            ("the sign is flipped", -1.0, 0.0),
            (f"{sign}scaled by about {abs(1 / scale):.2g}", scale, 15.0),
        ]
        candidates += [
            (f"it is the derivative with respect to {name}, not theta", factor, 20.0)
            for name, factor in self._parametrisations(k).items()
        ]
        best, lowest = (
            "its size changes with theta: another parametrisation, or a wrong formula",
            math.inf,
        )
        for label, factor, price in candidates:
            repaired = self.score.clone()
            repaired[:, k] *= factor
            z = self.tests.z(repaired, self.mask)[:, k]
            misfit = float(z.square().sum()) + price
            passes = bool(z.abs().max() <= self.threshold) and (
                label == "the sign is flipped" or bool(self._related(repaired)[k])
            )
            if passes and misfit < lowest:
                best, lowest = label, misfit
        return best

    def _scale(self, k: int, num_steps: int = 5) -> float:
        """The factor a for which the means of a g s + h are nearest to zero."""
        rows = self.mask[:, k]
        gs = self.tests.g[:, rows, k] * self.score[rows, k]
        h = self.tests.h[:, rows, k]
        scale = 1.0
        for _ in range(num_steps):
            weight = 1 / (scale * gs + h).var(1).clamp_min(1e-30)
            moment = gs.mean(1)
            curvature = float((weight * moment.square()).sum())
            scale = -float((weight * moment * h.mean(1)).sum()) / max(curvature, 1e-30)
        return scale or 1e-30

    def _parametrisations(self, k: int) -> dict[str, Tensor]:
        """The derivative d phi / d theta_k of the usual coordinates phi."""
        theta, (lower, upper) = (
            self.tests.weights.theta[:, k],
            self.tests.weights.bounds,
        )
        jacobians = {"exp(theta)": theta.exp(), "theta^2": 2 * theta}
        if (theta > 0).all():
            jacobians["log(theta)"] = 1 / theta
            jacobians["sqrt(theta)"] = 0.5 / theta.sqrt()
        if math.isfinite(float(upper[k] - lower[k])):
            above, below = theta - lower[k], upper[k] - theta
            jacobians["logit(theta)"] = 1 / above + 1 / below
        return {name: j for name, j in jacobians.items() if j.isfinite().all()}
