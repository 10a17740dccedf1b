"""Numbers of every size: nothing becomes NaN, and units do not matter."""

import math
import warnings

import pytest
import torch
from drop_in_test import EPOCH, every_trainer, with_data
from registry import SIMULATOR, new_drop_in, simulations, train, weights_of
from torch.distributions import MultivariateNormal, StudentT

from sbi_scoreaug.simulators import LinearGaussian

QUIET = {"show_progress_bars": False}


def numbers(name, theta, x, score, prior, **options):
    """Train; return all weights and three values of the potential."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = new_drop_in(name, prior=prior)
        trainer.append_simulations(theta, x, score=score, score_check=False)
        estimator = train(trainer, **{**EPOCH, **options})
    own = {"beta": 1.0} if name == "ACE" else {}
    potential = trainer.build_posterior(**own).potential(theta[:3], x=x[:1])
    return torch.cat([weights_of(estimator), potential])


@every_trainer
def test_scores_from_a_millionth_to_a_million(name):
    theta, x, score = simulations(60)
    unit = torch.tensor([1e6, 1e-6])
    prior = MultivariateNormal(torch.zeros(2), torch.diag(unit.square()))
    assert numbers(name, unit * theta, x, score / unit, prior).isfinite().all()


@every_trainer
def test_components_that_are_constant(name):
    theta, x, score = simulations(60)
    x = torch.cat([x, torch.full((60, 1), 3.0)], 1)
    score[:, 1] = 0.0
    assert numbers(name, theta, x, score, SIMULATOR.prior).isfinite().all()


@pytest.mark.parametrize("dim", [1, 50])
@every_trainer
def test_one_parameter_and_fifty(name, dim):
    simulator = LinearGaussian(dim=dim)
    theta, x, score = simulations(200, simulator)
    found = numbers(name, theta, x, score, simulator.prior, training_batch_size=60)
    assert found.isfinite().all()


@every_trainer
def test_scores_in_double_precision_are_those_in_single(name):
    theta, x, score = simulations(60)
    found = []
    for given in (score, score.double()):
        found.append(numbers(name, theta, x, given, SIMULATOR.prior))
    assert found[0].isfinite().all() and torch.equal(*found)


@pytest.mark.parametrize("name", ["NLE_A", "NPE_C", "NPSE", "ACE"])
def test_batches_of_one(name):
    """Ratio estimation contrasts the rows of a batch: two at least, as in sbi."""
    theta, x, score = simulations(30)
    found = numbers(name, theta, x, score, SIMULATOR.prior, training_batch_size=1)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["NRE_A", "NLE_A", "NPSE", "ACE"])
def test_a_thousand_observations(name):
    trainer = with_data(name)
    train(trainer, **EPOCH)
    x = SIMULATOR(torch.zeros(1000, 2))
    own = {"beta": 1.0} if name == "ACE" else {}
    posterior = trainer.build_posterior(**own)
    if name == "NPSE":  # its potential solves an ODE for each of them
        samples = posterior.sample((20,), x=x, **QUIET)
        assert samples.isfinite().all()
        return
    potential = posterior.potential(torch.randn(3, 2), x=x)
    assert potential.shape == (3,) and potential.isfinite().all()


@pytest.mark.parametrize("beta", [1e-30, 1e-6, 1e6, 1e30])
def test_extreme_temperatures(beta):
    trainer = with_data("ACE")
    train(trainer, **EPOCH)
    posterior = trainer.build_posterior(sample_with="importance", beta=beta)
    theta = torch.randn(5, 2)
    potential = posterior.potential(theta, x=torch.zeros(1, 2))
    assert not potential.isnan().any()
    if beta < 1:
        assert torch.allclose(potential, SIMULATOR.prior.log_prob(theta), atol=1e-3)
    samples = posterior.sample((5,), x=torch.zeros(1, 2), **QUIET)
    assert samples.isfinite().all()


@pytest.mark.slow
@every_trainer
def test_ten_thousand_steps_on_scores_with_heavy_tails(name):
    """x = theta + Student-t noise of 2.5 degrees of freedom, scores with noise alike.

    The scores of a Student-t are bounded; as joint scores of a latent scale would, they
    get noise of the same law, whose variance barely exists.
    """
    law = StudentT(2.5)
    theta = SIMULATOR.prior.sample((1000,))
    noise = law.sample((1000, 2))
    score = 3.5 * noise / (2.5 + noise.square()) + law.sample((1000, 2))
    trainer = new_drop_in(name)
    trainer.append_simulations(
        theta, theta + noise, score=score, score_kind="joint", score_check=False
    )
    steps = {"num_steps": 10_000} if name == "NPSE" else {}
    epochs = math.ceil(10_000 / 90)
    train(
        trainer,
        training_batch_size=10,
        max_num_epochs=epochs,
        stop_after_epochs=epochs,
        **steps,
    )
    taken = next(iter(trainer.optimizer.state.values()))["step"]
    assert taken >= 10_000 - 90
    assert weights_of(trainer._neural_net).isfinite().all()
