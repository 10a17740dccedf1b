"""Simulations with scores: one seed, one result; three kinds of simulators; errors."""

import random
import time

import joblib
import numpy as np
import pytest
import torch
from sbi.inference import simulate_for_sbi
from sbi.utils import BoxUniform

from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
    ScoreWarning,
    SimulationTimeoutError,
)
from sbi_scoreaug.scores.simulate import simulate_with_score

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def pair_simulator(theta):
    """x ~ N(theta, I), with noise from all three generators; score = x - theta."""
    noise = torch.randn_like(theta)
    noise = noise + torch.as_tensor(np.random.randn(*theta.shape)).float()
    noise = noise + random.gauss(0.0, 1.0)
    return theta + noise, noise


class WithScore:
    def __call__(self, theta):
        return theta + torch.randn_like(theta)

    def score(self, theta, x):
        return x - theta


class WithLogProb:
    def __call__(self, theta):
        return theta + torch.randn_like(theta)

    def log_prob(self, theta, x):
        return -0.5 * (x - theta).square().sum(1)


class WithBoth(WithScore, WithLogProb):
    def log_prob(self, theta, x):
        raise AssertionError("score comes first")


class WithAll(WithBoth):
    def __call__(self, theta):
        x = super().__call__(theta)
        return x, x - theta

    def score(self, theta, x):
        raise AssertionError("the pair comes first")


def numpy_simulator(theta):
    theta = theta.numpy()
    noise = np.random.randn(*theta.shape)
    return theta + noise, noise


def simulate(simulator=pair_simulator, num_simulations=11, **arguments):
    arguments = {"seed": 3, "show_progress_bar": False, **arguments}
    return simulate_with_score(simulator, PRIOR, num_simulations, **arguments)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "simulator",
    [
        pair_simulator,
        WithScore(),
        WithLogProb(),
        WithBoth(),
        WithAll(),
        numpy_simulator,
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4, None, 100])
def test_every_kind_of_simulator(simulator, batch_size):
    theta, x, score = simulate(simulator, simulation_batch_size=batch_size)
    for values in (theta, x, score):
        assert values.shape == (11, 2) and values.dtype == torch.float32
        assert not values.requires_grad
    torch.testing.assert_close(score, x - theta, atol=1e-5, rtol=1e-5)
    assert len(x.unique(dim=0)) == 11


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_number_of_workers_does_not_matter(batch_size):
    alone = simulate(simulation_batch_size=batch_size)
    assert_same(alone, simulate(simulation_batch_size=batch_size, num_workers=2))


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_joblib_moves_it_to_another_backend(backend):
    """Threads share generators; multiprocessing returns lists only."""
    alone = simulate(num_simulations=40)
    with joblib.parallel_config(backend=backend):
        assert_same(alone, simulate(num_simulations=40, num_workers=3))


def test_seeds():
    assert_same(simulate(seed=5), simulate(seed=5))
    assert not torch.equal(simulate(seed=5)[1], simulate(seed=6)[1])
    torch.manual_seed(1)
    first = simulate(seed=None)
    assert not torch.equal(first[1], simulate(seed=None)[1])
    torch.manual_seed(1)
    assert_same(first, simulate(seed=None))


def test_theta_and_the_generators_are_as_in_sbi():
    theta, _, _ = simulate(WithScore(), seed=7)
    after = torch.rand(1), np.random.rand(), random.random()
    expected, _ = simulate_for_sbi(
        WithScore(), PRIOR, 11, seed=7, show_progress_bar=False
    )
    assert torch.equal(theta, expected)
    simulate(WithScore(), seed=7, num_workers=2)
    assert after == (torch.rand(1), np.random.rand(), random.random())


def test_the_progress_bar_counts_simulations(capsys):
    simulate(simulation_batch_size=4, show_progress_bar=True)
    assert "11/11" in capsys.readouterr().err


def test_no_simulations():
    assert all(values.numel() == 0 for values in simulate(num_simulations=0))


def test_images_and_failed_simulations():
    class Image(WithLogProb):
        def __call__(self, theta):
            x = theta[:, :, None] + torch.randn(len(theta), 2, 4)
            x[theta[:, 0] > 0] = torch.nan
            return x

        def log_prob(self, theta, x):
            assert x.isfinite().all()
            return -0.5 * (x - theta[:, :, None]).square().sum((1, 2))

    theta, x, score = simulate(Image(), simulation_batch_size=4)
    failed = theta[:, 0] > 0
    assert x.shape == (11, 2, 4) and x[failed].isnan().all() and failed.any()
    assert torch.equal(score.isnan().all(1), failed)
    torch.testing.assert_close(
        score[~failed], (x - theta[:, :, None]).sum(2)[~failed], atol=1e-5, rtol=1e-5
    )


def test_infinite_scores_become_unknown_with_a_warning():
    with pytest.warns(ScoreWarning, match="11 of 11 scores have infinite"):
        _, _, score = simulate(lambda t: (t, t / torch.tensor([0.0, 1.0])))
    assert score[:, 0].isnan().all() and score[:, 1].isfinite().all()
    with pytest.warns(ScoreWarning, match="nothing to learn"):
        simulate(lambda theta: (theta, theta * torch.nan))


def changing_shape(theta):
    return (theta if theta[0, 0] > 0 else torch.cat([theta, theta], 1)), theta


@pytest.mark.parametrize(
    ("simulator", "error", "message"),
    [
        (3, InvalidTypeError, "function of theta"),
        (lambda theta: theta, InvalidTypeError, r"pair.*score\(theta, x\).*log_prob"),
        (
            lambda theta: (theta, theta[:, :1]),
            InvalidInputError,
            r"score.*got \(1, 1\)",
        ),
        (lambda theta: (theta, theta, theta), InvalidInputError, "a tuple of 3"),
        (lambda theta: [theta, theta], InvalidInputError, "a list of 2"),
        (lambda theta: (theta[0], theta), InvalidInputError, "batch = 1"),
        (changing_shape, InvalidInputError, "one shape of x"),
    ],
)
def test_unusable_simulators_are_refused(simulator, error, message):
    with pytest.raises(error, match=message):
        simulate(simulator)


def test_errors_come_through_from_the_workers():
    with pytest.raises(InvalidTypeError, match="log_prob"):
        simulate(lambda theta: theta, num_workers=2)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InvalidInputError, match="num_simulations"):
        simulate(num_simulations=-1)
    with pytest.raises(InvalidInputError, match="simulation_batch_size"):
        simulate(simulation_batch_size=0)
    scalar = torch.distributions.Uniform(0.0, 1.0)
    with pytest.raises(InvalidInputError, match="event dimension"):
        simulate_with_score(pair_simulator, scalar, 4, show_progress_bar=False)


# --- Simulators that fail ------------------------------------------------------------


HANGS_ABOVE = 0.75


def sometimes_raises(theta):
    if theta[0, 0] > 0:
        raise FloatingPointError("the solver diverged")
    return theta, -theta


def sometimes_hangs(theta):
    if theta[0, 0] > HANGS_ABOVE:
        time.sleep(600)
    return theta, -theta


def always_raises(theta):
    raise FloatingPointError("the solver diverged")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_simulator_raises_comes_through_or_costs_its_batch_only(num_workers):
    options = {"num_workers": num_workers, "num_simulations": 20}
    if num_workers == 1:
        with pytest.raises(FloatingPointError, match="diverged"):
            simulate(sometimes_raises, **options)
        with pytest.raises(InvalidStateError, match="Nothing is left"):
            simulate(always_raises, return_partial=True, **options)
    with pytest.warns(UserWarning, match=r"of 20 sim.*left out.*the solver diverged"):
        theta, x, score = simulate(sometimes_raises, return_partial=True, **options)
    wanted = simulate(WithScore(), num_simulations=20)[0]
    assert torch.equal(theta, wanted[wanted[:, 0] <= 0]) and 0 < len(theta) < 20
    assert torch.equal(x, theta) and torch.equal(score, -theta)


def test_partial_results_of_a_run_without_failures_are_the_whole():
    assert_same(simulate(), simulate(return_partial=True))
    assert_same(simulate(), simulate(num_workers=2, timeout=60.0, return_partial=True))


def test_a_simulator_that_hangs_is_stopped_and_the_others_are_kept():
    wanted = simulate(WithScore(), num_simulations=30)[0]
    hung = wanted[:, 0] > HANGS_ABOVE
    assert hung.sum() == 1
    start = time.monotonic()
    with pytest.warns(UserWarning, match="1 of 30 .*TimeoutError.* within 2 seconds"):
        theta, x, score = simulate(
            sometimes_hangs,
            num_workers=2,
            num_simulations=30,
            timeout=2.0,
            return_partial=True,
        )
    assert time.monotonic() - start < 500  # it would sleep for longer
    assert torch.equal(theta, wanted[~hung])
    assert torch.equal(x, theta) and torch.equal(score, -theta)


@pytest.mark.slow
def test_a_simulator_that_hangs_is_an_error_by_default():
    options = {"num_workers": 2, "num_simulations": 30, "timeout": 2.0}
    with pytest.raises(SimulationTimeoutError, match="within 2 seconds") as caught:
        simulate(sometimes_hangs, **options)
    assert isinstance(caught.value, TimeoutError)


def test_an_interrupt_from_the_keyboard_keeps_what_is_finished():
    calls = []

    def interrupted(theta):
        calls.append(theta)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return theta, -theta

    with pytest.warns(UserWarning, match="8 of 11 simulations.*KeyboardInterrupt"):
        theta, _, _ = simulate(interrupted, return_partial=True)
    assert torch.equal(theta, torch.cat(calls[:3]))
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        simulate(interrupted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 1.0}, InvalidInputError, "num_workers=2"),
        ({"timeout": 0.0, "num_workers": 2}, InvalidInputError, "positive"),
        ({"timeout": "1", "num_workers": 2}, InvalidTypeError, "number"),
    ],
)
def test_timeouts_that_cannot_be_kept_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        simulate(**options)
