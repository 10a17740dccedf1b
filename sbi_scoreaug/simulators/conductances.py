r"""Conductances of a cortical neuron, and how its voltage moves.

V in mV, v = V - V_T, t in ms, C = 1 uF/cm^2, currents in uA/cm^2:

    C V' = g_Na m^3 h (E_Na - V) + (g_K n^4 + g_M p) (E_K - V) + g_leak (E_leak - V)
           + I(t) + sigma W'
    g'   = a_g (1 - g) - b_g g                              for the gates g = m, h, n, p

    a_m = 1.28 L((13 - v)/4)       b_m = 1.4 L((v - 40)/5)        L(z) = z / (e^z - 1)
    a_h = .128 exp((17 - v)/18)    b_h = 4 / (1 + exp((40 - v)/5))
    a_n = .16 L((15 - v)/5)        b_n = .5 exp((10 - v)/40)
    a_p + b_p = (3.3 u + 1/u) / tau_max,    a_p / b_p = u^2,    u = exp((V + 35)/20)

E_Na = 53, E_K = -107. V starts at E_leak, the gates where they rest there. Gates live
at half steps and V at whole ones, and each moves exponentially as if the other stood
still: stable for every step, and of second order without noise.

Reference: Pospischil et al. (2008), Biological Cybernetics 99, 427.
"""

import math

import torch
from torch import Tensor

E_NA, E_K = 53.0, -107.0
TINY = 1e-30
SLOWED = 0.3
CHANGES = {  # factors of (g_Na, g_K, g_leak, g_M) and of the speed of (m, n, h, p)
    "no_sodium": ((0.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)),
    "no_potassium": ((1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)),
    "no_m_current": ((1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)),
    "slow_inactivation": ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, SLOWED, 1.0)),
}


class Neurons:
    """State and parameters of many neurons; the mathematics stands above.

    Gates are rows in the order m, n, h, p. The arguments of all exponentials are linear
    in V, one row each:

        m, n up and m down, of L | h up, n down, u | h down and p up, of 1 / (1 + e^-z)
    """

    slopes = (-1 / 4, -1 / 5, 1 / 5, -1 / 18, -1 / 40, 1 / 20, 1 / 5, 1 / 10)
    offsets = (13 / 4, 3.0, -8.0, 17 / 18 + math.log(0.128), 1 / 4 + math.log(0.5))
    offsets = (*offsets, 35 / 20, -8.0, 35 / 10)
    relative = (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)  # to V_T, or of V itself

    def __init__(self, theta: Tensor, time_step: float, change: str | None) -> None:
        columns = theta.T.contiguous()
        factors, speed = CHANGES.get(change or "", ((1.0,) * 4, (1.0,) * 4))
        self.conductances = columns[:4] * _column(factors)
        self.tau_max, e_leak = columns[4], -columns[7]
        self.noise = columns[6] / math.sqrt(time_step)
        self.leak_source = self.conductances[2] * e_leak
        self.time_step = time_step
        self.gate_step = -time_step * _column(speed)
        self.slope, self.scale = _column(self.slopes), _column((1.28, 0.16, 1.4))
        shift = self.slope * _column(self.relative) * columns[5]  # minus V_T
        self.offset = _column(self.offsets) + shift
        self.voltage = e_leak
        self.gates, _ = self._target()

    def run(self, num_steps: int, current: float) -> Tensor:
        """Advance and return voltages `(num_steps, batch)`."""
        g_na, g_k, g_leak, g_m = self.conductances
        source = self.leak_source + current
        voltages = source.new_empty(num_steps, len(source))
        for step in range(num_steps):
            target, rate = self._target()
            decay = rate.mul_(self.gate_step).exp_()
            self.gates = torch.lerp(target, self.gates, decay)
            m, n, h, p = self.gates
            sodium = (m * m).mul_(m).mul_(h).mul_(g_na)
            potassium = (n * n).square_().mul_(g_k).addcmul_(g_m, p)
            drive = torch.randn_like(source).mul_(self.noise).add_(source)
            drive.add_(sodium, alpha=E_NA).add_(potassium, alpha=E_K)
            total = sodium.add_(potassium).add_(g_leak)
            drive.div_(total)
            decay = total.mul_(-self.time_step).exp_()
            self.voltage = torch.lerp(drive, self.voltage, decay, out=voltages[step])
        return voltages

    def _target(self) -> tuple[Tensor, Tensor]:
        """Return a / (a + b), to which the gates tend, and a + b, `(4, batch)` each."""
        z = torch.addcmul(self.offset, self.voltage, self.slope)
        linear = z[:3].add_(TINY)  # where z is zero, L is one
        linear = linear.div_(linear.expm1()).mul_(self.scale)
        exponential, sigmoid = z[3:6].exp_(), z[6:].sigmoid_()
        u = exponential[2:]
        speed = u.reciprocal().add_(u, alpha=3.3).div_(self.tau_max)
        p_up = speed * sigmoid[1:]
        up = torch.cat([linear[:2], exponential[:1], p_up])
        down = torch.cat(
            [linear[2:], exponential[1:2], sigmoid[:1].mul_(4.0), speed.sub_(p_up)]
        )
        rate = down.add_(up)
        return up.div_(rate), rate


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).unsqueeze(1)
