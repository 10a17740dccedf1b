"""The conductance model spikes as neurons do, and does not depend on its step."""

import copy
import math
import pickle

import pytest
import torch
from scipy.integrate import solve_ivp

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.simulators import HodgkinHuxley
from sbi_scoreaug.simulators.conductances import E_K, E_NA
from sbi_scoreaug.simulators.hodgkin_huxley import (
    OFFSET,
    ONSET,
    REST,
    SPIKE_LEVEL,
)

# g_Na, g_K, g_leak, g_M, tau_max, -V_T, sigma, -E_leak: a regular spiking neuron
REGULAR = (50.0, 5.0, 0.1, 0.07, 600.0, 60.0, 0.0, 70.0)


def neurons(*changes):
    """Regular spiking neurons, each with some parameters replaced."""
    theta = torch.tensor(REGULAR).repeat(len(changes) or 1, 1)
    for row, replaced in zip(theta, changes, strict=False):
        for column, value in replaced.items():
            row[column] = value
    return theta


def test_shapes_dtypes_seed_chunks_and_copies():
    neuron = HodgkinHuxley(time_step=1.0)
    theta = neuron.prior.sample((4,))
    torch.manual_seed(1)
    x = neuron(theta)
    torch.manual_seed(1)
    assert torch.equal(neuron(theta), x)
    assert not torch.equal(neuron(theta), x)  # control: another seed
    assert x.shape == (4, *neuron.shape_x) and x.dtype == torch.float32
    assert neuron(theta.double()).dtype == torch.float64
    theta[:, 6] = 0  # without noise chunks do not matter
    whole, neuron.rows_at_once = neuron(theta), 3
    torch.testing.assert_close(neuron(theta), whole, rtol=1e-4, atol=1e-3)
    for twin in (pickle.loads(pickle.dumps(neuron)), copy.deepcopy(neuron)):
        assert torch.equal(twin(theta), neuron(theta))


def test_prior_simulations_are_finite_and_varied():
    neuron = HodgkinHuxley(time_step=0.2)
    x = neuron(neuron.prior.sample((200,)))
    assert x.isfinite().all()
    count, rest, variance = x[:, 0], x[:, 1], x[:, 4]
    assert (count == 0).any() and ((count >= 5) & (count <= 40)).any()
    assert (rest > E_K).all() and (rest < E_NA).all() and (variance > 0).all()


def test_spikes_rise_with_the_current_and_need_sodium():
    counts = [
        HodgkinHuxley(current, time_step=0.2)(neurons())[0, 0].item()
        for current in (0.0, 3.0, 6.0)
    ]
    assert counts[0] == 0 and counts == sorted(counts) and counts[2] > counts[1] > 3
    silent = neurons({0: 0.0})
    assert HodgkinHuxley(6.0, time_step=0.2)(silent)[0, 0] == 0
    assert HodgkinHuxley(6.0, 0.2, change="no_sodium")(neurons())[0, 0] == 0


def test_slow_potassium_slows_spiking_down():
    """Adaptation: fewer spikes, and the first interval shorter than the last."""
    neuron = HodgkinHuxley(time_step=0.2)
    with_m, without_m = neuron(neurons({}, {3: 0.0}))[:, 0]
    assert with_m < without_m - 5
    time, voltage = neuron.traces(neurons({}, {3: 0.0}))

    def intervals(trace):
        above = trace > SPIKE_LEVEL
        return time[1:][above[1:] & ~above[:-1]].diff()

    adapting, steady = intervals(voltage[0]), intervals(voltage[1])
    assert adapting[-1] > 1.3 * adapting[0]
    assert (steady[-1] / steady[1] - 1).abs() < 0.05  # control


def test_changes_remove_what_they_say():
    theta = neurons()
    options = {"time_step": 0.2}
    without = HodgkinHuxley(change="no_m_current", **options)(theta)
    zero = HodgkinHuxley(**options)(neurons({3: 0.0}))
    torch.testing.assert_close(without, zero)
    assert not torch.allclose(without, HodgkinHuxley(**options)(theta))
    slow = HodgkinHuxley(change="slow_inactivation", **options)(theta)
    assert slow[0, 4] > 1.2 * HodgkinHuxley(**options)(theta)[0, 4]  # broader spikes


def test_passive_membrane_charges_exponentially():
    """No sodium, potassium or slow current: V = E_leak + I/g (1 - exp(-g t))."""
    neuron = HodgkinHuxley(current=2.0, time_step=0.5)
    passive = neurons({0: 0.0, 1: 0.0, 3: 0.0})
    time, voltage = neuron.traces(passive)
    during = (time > ONSET + 1e-3) & (time <= OFFSET + 1e-3)
    exact = -70 + 20 * (1 - torch.exp(-0.1 * (time[during] - ONSET)))
    assert (voltage[0, during] - exact).abs().max() < 0.01
    x = neuron(passive)[0]
    assert x[0] == 0 and (x[1] + 70).abs() < 1e-3 and x[2] < 1e-3
    assert (x[3] - exact.mean()).abs() < 0.01


def test_noise_of_a_passive_membrane_is_that_of_its_diffusion():
    """A leak alone makes V an Ornstein-Uhlenbeck process with sd sigma/sqrt(2 g)."""
    passive = neurons({0: 0.0, 1: 0.0, 3: 0.0, 6: 0.15, 2: 0.3}).repeat(200, 1)
    time, voltage = HodgkinHuxley(current=0.0, time_step=0.25).traces(passive)
    settled = voltage[:, time > REST]
    assert abs(settled.std() / (0.15 / 0.6**0.5) - 1) < 0.02
    assert (settled.mean() + 70).abs() < 0.01


def derivative(time, state, current):
    """The equations once more, in float64 and without a common line of code."""
    import numpy as np

    g_na, g_k, g_leak, g_m, tau_max, minus_vt, _, minus_el = REGULAR
    voltage, m, h, n, p = state
    v = voltage + minus_vt
    a_m = -0.32 * (v - 13) / (np.exp(-(v - 13) / 4) - 1)
    b_m = 0.28 * (v - 40) / (np.exp((v - 40) / 5) - 1)
    a_h = 0.128 * np.exp(-(v - 17) / 18)
    b_h = 4 / (1 + np.exp(-(v - 40) / 5))
    a_n = -0.032 * (v - 15) / (np.exp(-(v - 15) / 5) - 1)
    b_n = 0.5 * np.exp(-(v - 10) / 40)
    tau = tau_max / (3.3 * np.exp((voltage + 35) / 20) + np.exp(-(voltage + 35) / 20))
    p_inf = 1 / (1 + np.exp(-(voltage + 35) / 10))
    total = g_na * m**3 * h * (voltage - 53) + g_k * n**4 * (voltage + 107)
    total += g_m * p * (voltage + 107) + g_leak * (voltage + minus_el)
    gates = a_m * (1 - m) - b_m * m, a_h * (1 - h) - b_h * h, a_n * (1 - n) - b_n * n
    return [current - total, *gates, (p_inf - p) / tau]


def test_traces_agree_with_an_adaptive_solver():
    step = 0.02
    blocks = HodgkinHuxley(time_step=step)._blocks(neurons(), until=300.0)
    ours = torch.cat(list(blocks))[:, 0]
    times = step * torch.arange(1, len(ours) + 1)
    ours, times = ours[times > 200 + step / 2], times[times > 200 + step / 2]
    start = [-70.0, 0.0, 1.0, 0.0, 1 / (1 + math.exp(3.5))]  # p is slow: at rest
    options = {"method": "LSODA", "rtol": 1e-8, "atol": 1e-8}
    rest = solve_ivp(derivative, (0, 200), start, args=(0.0,), **options)
    evaluate = times.double().clamp(max=300.0).numpy()
    end = rest.y[:, -1]
    stimulated = solve_ivp(
        derivative, (200, 300), end, t_eval=evaluate, args=(4.0,), **options
    )
    theirs = torch.as_tensor(stimulated.y[0])

    def upstrokes(trace):
        above = trace > SPIKE_LEVEL
        return times[1:][above[1:] & ~above[:-1]]

    assert len(upstrokes(ours)) == len(upstrokes(theirs)) >= 2
    assert (upstrokes(ours) - upstrokes(theirs)).abs().max() < 0.1  # ms
    assert (ours.mean() - theirs.mean()).abs() < 0.1
    assert abs(ours.max() - theirs.max()) < 0.5


def test_halving_the_step_changes_little():
    """Without noise, over neurons with 5 to 40 spikes, in prior standard deviations."""
    theta = HodgkinHuxley().prior.sample((400,))
    theta[:, 6] = 0
    x, half, coarse = (
        HodgkinHuxley(time_step=step)(theta) for step in (0.1, 0.05, 0.8)
    )
    target = (half[:, 0] >= 5) & (half[:, 0] <= 40)
    assert target.sum() > 20
    error = ((x - half).abs() / half.std(dim=0))[target]
    wrong = ((coarse - half).abs() / half.std(dim=0))[target]
    # a neuron close to a threshold may change altogether
    assert (x - half)[target, 0].abs().quantile(0.95) <= 2
    assert error.mean(dim=0).max() < 0.01
    assert wrong.mean(dim=0).max() > 0.03  # control: a step that is too long


def test_features_of_traces_are_those_of_a_call():
    neuron = HodgkinHuxley(time_step=0.2)
    theta = neuron.prior.sample((5,))
    torch.manual_seed(2)
    x = neuron(theta)
    torch.manual_seed(2)
    time, voltage = neuron.traces(theta)
    assert voltage.shape == (5, len(time)) and time[-1] == 1450
    torch.testing.assert_close(neuron.features(voltage), x)
    during = voltage[:, (time > ONSET + 1e-3) & (time <= OFFSET + 1e-3)].double()
    centred = during - during.mean(dim=1, keepdim=True)
    skewness = centred.pow(3).mean(dim=1) / centred.square().mean(dim=1) ** 1.5
    kurtosis = centred.pow(4).mean(dim=1) / centred.square().mean(dim=1) ** 2
    rest = voltage[:, (time > REST + 1e-3) & (time <= ONSET + 1e-3)].double()
    expected = [rest.mean(1), rest.std(1, correction=0), during.mean(1)]
    expected += [during.var(1, correction=0), skewness, kurtosis]
    expected = torch.stack(expected, dim=1).float()
    torch.testing.assert_close(x[:, 1:], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "column, value", [(0, -1.0), (2, 0.0), (4, 0.0), (6, -0.01), (5, float("nan"))]
)
def test_impossible_parameters_raise(column, value):
    with pytest.raises(InvalidInputError, match="theta"):
        HodgkinHuxley()(neurons({column: value}))


def test_bad_arguments_raise_typed_errors():
    neuron = HodgkinHuxley(time_step=0.5)
    for bad in (neurons()[0], neurons()[:, :7], neurons()[:0]):
        with pytest.raises(InvalidInputError, match="theta must have shape"):
            neuron(bad)
    with pytest.raises(InvalidTypeError, match="floating-point"):
        neuron(neurons().long())
    with pytest.raises(InvalidInputError, match="voltage must have shape"):
        neuron.features(torch.zeros(2, 100))
    for options in ({"time_step": 0.0}, {"time_step": 2.0}, {"current": float("inf")}):
        with pytest.raises(InvalidInputError, match="time_step"):
            HodgkinHuxley(**options)
    with pytest.raises(InvalidTypeError, match="time_step"):
        HodgkinHuxley(time_step="short")
    with pytest.raises(InvalidInputError, match="change: expected None or one of"):
        HodgkinHuxley(change="no_calcium")
