"""The outcome of a score check: to be read, and to be looked at."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sbi_scoreaug.panels import panels


@dataclass(frozen=True)
class ScoreCheck:
    """The outcome of `check_score`.

    Attributes:
        z: The statistics, `(num_tests, dim_theta)`, NaN where nothing was tested.
        names: What each test multiplies: a function of x, and level or slope in theta.
        threshold: A larger |z| is an alarm.
        num_rows: Simulations that were used.
        cause: The likely cause of the alarm, None without alarm.
        notes: What could not be checked, and why.
        theta_fits_prior: Whether theta could be draws from the prior; also True where
            that was not tested. If False nothing was tested of the scores.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.3, -7.0]])
        >>> found = ScoreCheck(z, ("mean of x level",), 4.0, 500)
        >>> print(found)
        score check on 500 simulations: FAILED, largest |z| = 7.0 (component 1,
        mean of x level), threshold 4.0
        >>> found.passed, found.component
        (False, 1)
    """

    z: Tensor
    names: tuple[str, ...]
    threshold: float
    num_rows: int
    cause: str | None = None
    notes: tuple[str, ...] = field(default=())
    theta_fits_prior: bool = True

    @property
    def passed(self) -> bool:
        """Whether no test raised an alarm; also True if nothing could be tested."""
        return not bool((self.z.abs() > self.threshold).any())

    @property
    def component(self) -> int | None:
        """The component with the largest |z|, None if nothing was tested."""
        size = self.z.abs().nan_to_num(-1.0)
        return int(size.amax(0).argmax()) if (size >= 0).any() else None

    def __str__(self) -> str:
        lines = [f"score check on {self.num_rows} simulations: "]
        if self.component is None:
            lines[0] += "nothing tested"
        else:
            k = self.component
            j = int(self.z[:, k].abs().nan_to_num(-1.0).argmax())
            lines[0] += "passed" if self.passed else "FAILED"
            lines[0] += (
                f", largest |z| = {float(self.z[j, k].abs()):.1f} (component {k}, "
                f"{self.names[j]}), threshold {self.threshold:.1f}"
            )
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw z per test and component; alarms are white and bold.

        Args:
            ax: Matplotlib axes; None for new ones.

        Returns:
            The matplotlib figure and axes.
        """
        num_tests, dim_theta = self.z.shape
        size = (3.5 + 0.7 * dim_theta, 1.2 + 0.35 * num_tests)
        fig, (ax,) = panels(ax, 1, size)
        limit = 2 * self.threshold
        image = ax.imshow(
            self.z.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto"
        )
        for j in range(num_tests):
            for k in range(dim_theta):
                value = float(self.z[j, k])
                style: dict[str, Any] = {"ha": "center", "va": "center"}
                if abs(value) > self.threshold:  # On a dark cell.
                    style |= {"weight": "bold", "color": "white"}
                ax.text(k, j, f"{value:.1f}", **style)
        ax.set_xticks(range(dim_theta))
        ax.set_yticks(range(num_tests), self.names[:num_tests])
        ax.set_xlabel("component of the score")
        ax.set_title("passed" if self.passed else "failed")
        bar = fig.colorbar(image, ax=ax, label="z")
        bar.set_ticks([-limit, -self.threshold, 0, self.threshold, limit])
        return fig, ax
