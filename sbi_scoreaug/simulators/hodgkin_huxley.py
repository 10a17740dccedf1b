r"""A cortical neuron under a current step: eight parameters, seven features.

One compartment with sodium, delayed-rectifier potassium, slow potassium (M type) and
leak currents, whose equations stand in `conductances`:

    theta = (g_Na, g_K, g_leak, g_M, tau_max, -V_T, sigma, -E_leak)

in mS/cm^2, ms, mV and uA ms^(1/2)/cm^2, uniform in a box; a step of current from 200 to
1200 ms of 1450 ms.

    features   spike count; mean and sd of V at rest, the 100 ms before the step; mean,
               variance, skewness and kurtosis (3 for a Gaussian) of V during the step

Spiking is a matter of thresholds: close to one, features jump with any change of the
step of integration or of the noise.

References: Pospischil et al. (2008), Biological Cybernetics 99, 427, the currents; Gao,
Deistler & Macke (2023), arXiv 2305.15208, features and prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError, require_positive
from sbi_scoreaug.simulators.base import Simulator, _check_tensor
from sbi_scoreaug.simulators.conductances import CHANGES, Neurons

LOWER = (0.5, 1e-4, 1e-4, 1e-4, 50.0, 40.0, 1e-4, 35.0)
UPPER = (80.0, 15.0, 0.6, 0.6, 3000.0, 90.0, 0.15, 100.0)
REST, ONSET, OFFSET, END = 100.0, 200.0, 1200.0, 1450.0
BLOCK = 10.0  # ms; these times are ends of blocks
SPIKE_LEVEL = -10.0  # a spike is an upward crossing
REFERENCE = -60.0  # powers of V are summed about it
SMALLEST_VARIANCE = 1e-6


class HodgkinHuxley(Simulator):
    """The conductance model, in float32 and vectorised over parameters.

    Args:
        current: Height of the step of current, in uA/cm^2.
        time_step: Of the integration, in ms; rounded so that it divides 10 ms.
        change: What recordings of another neuron lack: "no_sodium", "no_potassium",
            "no_m_current", or "slow_inactivation" (h at .3 of its speed, which no
            parameters imitate). None for the model itself.

    Attributes:
        prior: Uniform prior over `theta`.
        shape_x: Shape of the features of one simulation.
        betas: A low, a middle and a high inverse temperature for benchmarks.
        distance_name: The distance for standardized features.
        rows_at_once: Simulations that run together; bounds memory, and what the
            overhead of a step is shared by.

    Raises:
        InvalidInputError: A `current` that is not finite, a `time_step` that is not
            positive or above 1 ms, or an unknown `change`.
        InvalidTypeError: A `time_step` that is no number.

    Example:
        >>> neuron = HodgkinHuxley(time_step=0.5)
        >>> theta = torch.tensor([[50.0, 5.0, 0.1, 0.07, 600.0, 60.0, 0.05, 70.0]])
        >>> neuron(theta).shape, neuron(theta)[0, 0] > 3
        (torch.Size([1, 7]), tensor(True))
    """

    betas = (25.0, 50.0, 100.0)
    distance_name = "mae"

    def __init__(
        self, current: float = 4.0, time_step: float = 0.05, change: str | None = None
    ) -> None:
        require_positive("time_step", time_step)
        if time_step > 1 or not math.isfinite(current):
            raise InvalidInputError(
                "current, time_step: expected a finite current and a step of at most "
                f"1 ms, got {current} and {time_step}."
            )
        if change is not None and change not in CHANGES:
            raise InvalidInputError(
                f"change: expected None or one of {(*CHANGES,)}, got {change!r}."
            )
        self.prior = BoxUniform(torch.tensor(LOWER), torch.tensor(UPPER))
        self.shape_x = torch.Size([7])
        self.current, self.change = current, change
        self.steps_per_block = round(BLOCK / time_step)
        self.time_step = BLOCK / self.steps_per_block

    def _simulate(self, theta: Tensor) -> Tensor:
        return _summarize(self._blocks(theta, OFFSET))

    @torch.no_grad()
    def traces(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Simulate and return voltages; with the same seed those behind a call.

        Args:
            theta: Parameters `(batch, 8)`.

        Returns:
            Times `(num_steps,)` in ms and voltages `(batch, num_steps)` in mV.

        Raises:
            InvalidInputError, InvalidTypeError: As a call.
        """
        chunks = self._check_theta(theta).split(self.rows_at_once)
        voltage = [torch.cat(list(self._blocks(rows, END))).T for rows in chunks]
        steps = torch.arange(1, voltage[0].shape[1] + 1)
        return steps * self.time_step, torch.cat(voltage).to(theta)

    @torch.no_grad()
    def features(self, voltage: Tensor) -> Tensor:
        """Return the features of voltages, simulated or recorded.

        Args:
            voltage: In mV, `(batch, num_steps)`, at the times that `traces` returns.

        Returns:
            Features `(batch, 7)`.

        Raises:
            InvalidInputError: If `voltage` has another length or is not finite.
            InvalidTypeError: If `voltage` is not a floating-point tensor.
        """
        num_steps = round(END / BLOCK) * self.steps_per_block
        checked = _check_tensor("voltage", voltage, torch.Size([num_steps]))
        blocks = checked.float().T.split(self.steps_per_block)
        return _summarize(blocks[: round(OFFSET / BLOCK)]).to(voltage)

    def _check_theta(self, theta: Tensor) -> Tensor:
        checked = super()._check_theta(theta)
        if (checked[:, [0, 1, 3, 6]] < 0).any() or (checked[:, [2, 4]] <= 0).any():
            raise InvalidInputError(
                "theta: expected conductances and noise of at least 0, positive g_leak "
                f"and tau_max, got the least values {checked.amin(0).tolist()}. "
                "Simulate parameters inside the prior."
            )
        return checked.float()

    def _blocks(self, theta: Tensor, until: float) -> Iterator[Tensor]:
        """Yield voltages `(steps_per_block, batch)` of 10 ms each."""
        neurons = Neurons(theta, self.time_step, self.change)
        for block in range(1, round(until / BLOCK) + 1):
            stimulated = ONSET < block * BLOCK <= OFFSET
            current = self.current if stimulated else 0.0
            yield neurons.run(self.steps_per_block, current)


def _summarize(blocks: Iterable[Tensor]) -> Tensor:
    """Return features `(batch, 7)` of voltages `(steps_per_block, batch)` a block."""
    rest, step, spikes = [], [], []
    last = torch.zeros(0)
    for number, voltage in enumerate(blocks, start=1):
        end = number * BLOCK
        if REST < end <= ONSET:
            rest.append(_mean_powers(voltage))
        elif end > ONSET:
            above = torch.cat([last, voltage]) > SPIKE_LEVEL
            spikes.append((above[1:] & ~above[:-1]).sum(dim=0))
            step.append(_mean_powers(voltage))
        last = voltage[-1:]
    mean, variance, third, fourth = _central_moments(step)
    rest_mean, rest_variance, *_ = _central_moments(rest)
    floored = variance + SMALLEST_VARIANCE
    shape = third / floored**1.5, fourth / floored**2
    resting = rest_mean, rest_variance.clamp(min=0).sqrt()
    count = torch.stack(spikes).sum(dim=0)
    return torch.stack([count, *resting, mean, variance, *shape], dim=1)


def _mean_powers(voltage: Tensor) -> Tensor:
    """Means over time of four powers about the reference, in float64 `(4, batch)`."""
    first = (voltage - REFERENCE).double()
    second = first.square()
    powers = first, second, first * second, second.square()
    return torch.stack([power.mean(dim=0) for power in powers])


def _central_moments(means: list[Tensor]) -> tuple[Tensor, ...]:
    """Mean, variance, third and fourth central moment from blocks of equal length."""
    a, b, c, d = torch.stack(means).mean(dim=0)
    variance = b - a.square()
    third = c - 3 * a * b + 2 * a**3
    fourth = d - 4 * a * c + 6 * a.square() * b - 3 * a**4
    return a + REFERENCE, variance, third, fourth
