"""Simulations with scores: one seed, one result; three kinds of simulators; errors."""

import random

import joblib
import numpy as np
import pytest
import torch
from sbi.inference import simulate_for_sbi
from sbi.utils import BoxUniform

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError, ScoreWarning
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
