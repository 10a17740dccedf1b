"""The log posterior of a set, against closed forms."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
)
from zuko.distributions import DiagNormal

from sbi_scoreaug.errors import ScoreWarning
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.coordinates import normal_coordinates
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.score_npe.potential import FactorizedPotential

MIXING = torch.tensor([[1.0, 0.4], [0.0, 0.5]])
QUIET = {"show_progress_bars": False}


class Mixture(MixtureSameFamily):
    """torch has no map to the real line for the support of its own mixtures."""

    support = constraints.real_vector


class ExactNet(PosteriorScoreNet):
    """The score of theta ~ N(0, I), x ~ N(theta, MIXING MIXING'), at every level."""

    def embed(self, x):
        return x

    def pairs(self, z, features, m, s):
        noise_precision = torch.linalg.inv(MIXING @ MIXING.mT)
        covariance = torch.linalg.inv(torch.eye(2) + noise_precision)
        mean = features @ noise_precision @ covariance
        spread = m[..., None] ** 2 * covariance + s[..., None] ** 2 * torch.eye(2)
        score = torch.linalg.solve(spread, (m * mean - z)[..., None]).squeeze(-1)
        return score + z + 0 * self.output[1].bias.sum()


@pytest.fixture
def potential():
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    net = ExactNet(torch.randn(50, 2), torch.randn(50, 2), num_hidden=4)
    net.requires_grad_(False)
    coordinates = normal_coordinates(prior)
    estimator = FactorizedScoreEstimator(net, coordinates, torch.Size([2]), 2)
    return FactorizedPotential(estimator, prior)


def exact_posterior(x):
    noise_precision = torch.linalg.inv(MIXING @ MIXING.mT)
    precision = torch.eye(2) + len(x) * noise_precision
    mean = torch.linalg.solve(precision, noise_precision @ x.sum(0))
    return MultivariateNormal(mean, precision_matrix=precision)


def shift(log_prob, theta, exact):
    """Largest error of the mean over the posterior, in its standard deviations."""
    weights = (log_prob - exact.log_prob(theta)).double().softmax(0)
    mean = (weights[:, None] * theta).sum(0)
    return float(((mean - theta.mean(0)) / exact.stddev).abs().max())


@pytest.mark.parametrize("num_observations", [1, 10, 300])
def test_it_is_exact_at_any_number_of_observations(
    potential, num_observations, monkeypatch
):
    x = torch.tensor([2.0, -1.5]) + torch.randn(num_observations, 2) @ MIXING.mT
    exact = exact_posterior(x)
    theta = exact.sample((400,))
    potential.set_x(x)
    found = potential(theta)
    constant = 0.0 if num_observations == 1 else (found - exact.log_prob(theta)).mean()
    assert torch.allclose(found, exact.log_prob(theta) + constant, atol=0.05)
    assert shift(found, theta, exact) < 0.03
    # The host's base, N(0, I), pulls towards the prior, the more the larger n.
    if num_observations == 300:
        standard = DiagNormal(torch.zeros(2), torch.ones(2))
        base = lambda x: standard.expand(x.shape[:1])  # noqa: E731
        monkeypatch.setattr(potential, "_base", base)
        assert shift(potential(theta), theta, exact) > 0.3


def test_pairs_of_parameters_and_observations(potential):
    theta, x = torch.randn(6, 2), torch.randn(6, 2)
    potential.set_x(x, x_is_iid=False)
    rows = torch.stack(
        [exact_posterior(x[i : i + 1]).log_prob(theta[i]) for i in range(6)]
    )
    assert torch.allclose(potential(theta), rows, atol=0.01)
    potential.set_x(x)
    assert not torch.allclose(potential(theta), rows, atol=0.5)


@pytest.mark.parametrize("model", ["factorized", "mlp"])
def test_outside_the_support_it_is_minus_infinity(model):
    prior = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    theta = prior.sample((100,))
    x = theta.log() + torch.randn(100, 2)
    trainer = ScoreNPE(prior, model, **QUIET).append_simulations(theta, x)
    trainer.train(num_steps=4)
    at = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    found = trainer.build_posterior().log_prob(at, x=x[:3])
    assert found[0].isfinite() and found[1] == -math.inf


def test_sets_under_a_prior_that_is_only_about_normal_are_said():
    weights = Categorical(torch.tensor([0.5, 0.5]))
    parts = MultivariateNormal(
        torch.tensor([[-2.0], [2.0]]), torch.eye(1).expand(2, 1, 1)
    )
    prior = Mixture(weights, parts)
    theta = prior.sample((100,))
    x = theta + torch.randn(100, 1)
    trainer = ScoreNPE(prior, num_hidden=8, **QUIET).append_simulations(theta, x)
    trainer.train(num_steps=4)
    posterior = trainer.build_posterior()
    posterior.sample((20,), x=x[:1], **QUIET)
    assert not posterior.diagnostics[0].messages
    with pytest.warns(ScoreWarning, match="only about normal"):
        posterior.sample((20,), x=x[:2], **QUIET)


class ShiftedNet(ExactNet):
    """Its posteriors all lie a bit too high: what an average error is."""

    def pairs(self, z, features, m, s):
        noise_precision = torch.linalg.inv(MIXING @ MIXING.mT)
        covariance = torch.linalg.inv(torch.eye(2) + noise_precision)
        shift = (0.1 * torch.ones(2)) @ torch.linalg.inv(noise_precision @ covariance)
        return super().pairs(z, features + shift, m, s)


def test_log_densities_of_sets_are_centred_as_their_samples_are(potential):
    torch.manual_seed(0)
    theta = torch.randn(20_000, 2)
    net = ShiftedNet(theta, theta, num_hidden=4).requires_grad_(False)
    estimator = potential.vector_field_estimator
    estimator.net = net
    estimator.set_anchors(theta, theta + torch.randn(20_000, 2) @ MIXING.mT)
    x = 0.5 + torch.randn(30, 2) @ MIXING.mT
    exact = exact_posterior(x)
    at = exact.sample((50,))

    def error():
        """Standard deviation of errors, which a constant does not change."""
        potential.set_x(x)
        return (potential(at) - exact.log_prob(at)).std()

    assert error() < 0.3
    estimator.empty()
    assert error() > 1
