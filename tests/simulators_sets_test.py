"""Problems whose posteriors are known for sets, at every noise level."""

import math
import pickle

import pytest
import torch
from scipy.stats import kstest

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators import (
    BoundedLinearGaussian,
    GaussianGaussian,
    GaussianMixtureLikelihood,
    SignFlip,
)

MIXTURES = {
    "Gaussian": lambda: GaussianGaussian(3),
    "Gaussian, correlated": lambda: GaussianGaussian(3, correlation=0.8),
    "Gaussian, unequal": lambda: GaussianGaussian(
        3, variances=torch.tensor([0.01, 1.0, 100.0])
    ),
    "Mixture": lambda: GaussianMixtureLikelihood(3),
    "SignFlip": lambda: SignFlip(),
    "SignFlip, .7": lambda: SignFlip(0.7),
}
SIMULATORS = {**MIXTURES, "Bounded": lambda: BoundedLinearGaussian()}
every_mixture = pytest.mark.parametrize("name", MIXTURES)
every_simulator = pytest.mark.parametrize("name", SIMULATORS)


def draw_set(simulator, num_observations):
    theta = simulator.prior.sample((1,))
    return simulator(theta.expand(num_observations, -1).double())


def first_two_moments(theta):
    products = theta[:, :, None] * theta[:, None]
    return torch.cat([theta, products.flatten(1)], 1)


def weighted_prior(simulator, x_o, num=100_000):
    """Prior draws and their normalised likelihood weights: a slow reference."""
    theta = simulator.prior.sample((num,)).double()
    log_weights = sum(simulator.log_prob(theta, x[None]) for x in x_o)
    return theta, log_weights.softmax(0)


# contract


@every_simulator
def test_score_is_the_gradient_of_log_prob(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((20,)).double().requires_grad_()
    x = simulator(theta)
    gradient = torch.autograd.grad(simulator.log_prob(theta, x).sum(), theta)[0]
    torch.testing.assert_close(simulator.score(theta, x), gradient)
    wrong = simulator.score(theta, x.flip(0))
    assert not torch.allclose(wrong, gradient, rtol=0.1)


@every_simulator
def test_simulations_follow_log_prob(name):
    """E[score] = 0 under the simulator, and not under another parameter."""
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((1,)).double()
    x = simulator(theta.expand(20_000, -1))

    def z(at):
        scores = simulator.score(at.expand(len(x), -1), x)
        return (scores.mean(0) / scores.std(0) * len(x) ** 0.5).abs().max()

    assert z(theta) < 4.5
    assert z(theta + 0.3) > 6


@every_simulator
def test_pickles(name):
    simulator = SIMULATORS[name]()
    x_o, theta = draw_set(simulator, 3), simulator.prior.sample((4,))
    twin = pickle.loads(pickle.dumps(simulator))
    score = simulator.diffused_score(theta, 0.5, x_o)
    assert score.shape == (4, 3, simulator.dim_theta)
    assert torch.equal(twin.diffused_score(theta, 0.5, x_o), score)


# the diffused posterior of one observation


@every_mixture
@pytest.mark.parametrize("mean_factor", [0.0, 0.3, 0.9, 0.9999, 1.0])
def test_diffused_score_is_the_gradient_of_the_diffused_density(name, mean_factor):
    simulator = MIXTURES[name]()
    x_o = draw_set(simulator, 4)
    theta = torch.randn(6, simulator.dim_theta).double().requires_grad_()
    score = simulator.diffused_score(theta, mean_factor, x_o)
    for j in range(4):
        log_prob = simulator.diffused_log_prob(theta, mean_factor, x_o)[:, j]
        gradient = torch.autograd.grad(log_prob.sum(), theta)[0]
        torch.testing.assert_close(score[:, j], gradient, rtol=1e-6, atol=1e-8)


@every_mixture
def test_without_noise_the_diffused_density_is_prior_times_likelihood(name):
    simulator = MIXTURES[name]()
    x_o = draw_set(simulator, 2)
    theta = torch.randn(6, simulator.dim_theta).double()
    prior = -0.5 * theta.square().sum(-1)
    for j in range(2):
        joint = simulator.log_prob(theta, x_o[j : j + 1]) + prior
        constant = simulator.diffused_log_prob(theta, 1.0, x_o)[:, j] - joint
        torch.testing.assert_close(constant, constant[:1].expand(6))


def test_diffused_density_is_the_posterior_with_noise():
    simulator = SignFlip(0.7)
    x_o, m = draw_set(simulator, 1), 0.8
    posterior = simulator.exact_posterior(x_o).sample((200_000,))
    noisy = m * posterior + math.sqrt(1 - m**2) * torch.randn_like(posterior)
    score = simulator.diffused_score(noisy, m, x_o)[:, 0]
    identity = -(score[:, :, None] * noisy[:, None]).mean(0)
    torch.testing.assert_close(identity, torch.eye(2).double(), atol=0.02, rtol=0)
    clean = simulator.diffused_score(posterior, m, x_o)[:, 0]
    assert -(clean * posterior).mean(0).sum() < 1.9


def test_bounded_diffused_score_against_a_fine_grid():
    simulator = BoundedLinearGaussian(1)
    x_o, z_t = torch.tensor([[0.9], [-0.2]]), torch.linspace(-2, 2, 9)[:, None]
    z = torch.linspace(-9, 9, 40_001).double()
    likelihood = simulator.log_prob(
        2 * torch.special.ndtr(z[:, None]) - 1, x_o[:1].double()
    )
    for m in (0.1, 0.7, 0.99, 0.9997):
        s2 = 1 - m**2
        log_joint = likelihood - 0.5 * z**2 - 0.5 * (z_t.double() - m * z) ** 2 / s2
        mean = (log_joint.softmax(1) * z).sum(1, keepdim=True)
        exact = (m * mean - z_t) / s2
        score = simulator.diffused_score(z_t.double(), m, x_o)[:, 0]
        torch.testing.assert_close(score, exact, rtol=1e-4, atol=1e-4)


# sets


@every_simulator
@pytest.mark.parametrize("num_observations", [1, 3])
def test_reference_agrees_with_weighted_prior(name, num_observations):
    simulator = SIMULATORS[name]()
    ess, x_o, theta, weights = 0, None, None, None
    while ess < 300:  # until the prior's draws say enough about this set
        x_o = draw_set(simulator, num_observations)
        theta, weights = weighted_prior(simulator, x_o)
        ess = 1 / weights.square().sum()
    tolerance = 5 * (1 / ess + 1 / 5000) ** 0.5

    def largest_difference(x):
        moments = first_two_moments(simulator.reference_samples(5000, x))
        expected = weights @ first_two_moments(theta)
        return ((moments.mean(0) - expected) / moments.std(0)).abs().max()

    assert largest_difference(x_o) < tolerance
    elsewhere = x_o * torch.tensor([1.0, -1.0, 1.0])[: simulator.dim_theta] + 0.7
    assert largest_difference(elsewhere) > tolerance


@pytest.mark.parametrize("name", ["Mixture", "SignFlip", "SignFlip, .7"])
def test_chains_agree_with_enumeration(name):
    """The chains are for n > 10; at n = 10 both are there to be compared."""
    simulator = MIXTURES[name]()
    x_o = draw_set(simulator, 10)
    exact = simulator.exact_posterior(x_o).sample((2000,))
    start = torch.randn(2000, simulator.dim_theta).double()
    chains = simulator._gibbs(start, x_o, 60)
    for i in range(simulator.dim_theta):
        assert kstest(chains[:, i], exact[:, i]).pvalue > 1e-4
    shifted = chains + 0.25 * chains.std(0)
    assert kstest(shifted[:, 0], exact[:, 0]).pvalue < 1e-6


def test_gaussian_posterior_is_the_conjugate_one():
    simulator = GaussianGaussian(3, correlation=0.5)
    x_o = draw_set(simulator, 7)
    precision = torch.linalg.inv(simulator.covariances[0])
    covariance = torch.linalg.inv(torch.eye(3).double() + 7 * precision)
    posterior = simulator.exact_posterior(x_o)
    torch.testing.assert_close(posterior.mean, covariance @ precision @ x_o.sum(0))
    torch.testing.assert_close(
        posterior.component_distribution.covariance_matrix[0], covariance
    )


def test_bounded_samples_stay_inside_at_the_corner():
    simulator = BoundedLinearGaussian(2, noise_std=0.3)
    x_o = torch.tensor([[1.4, -1.6], [1.1, -1.2]])
    samples = simulator.reference_samples(2000, x_o)
    assert (samples.abs() <= 1).all() and samples.std(0).min() > 0.01


def test_sign_flip_has_two_modes_of_the_right_mass():
    x_o = torch.tensor([[1.0, 1.0]]).expand(40, 2) + 0.5 * torch.randn(40, 2)
    even, odd = SignFlip(0.5), SignFlip(0.7)
    share = (even.reference_samples(2000, x_o)[:, 0] > 0).double().mean()
    assert abs(share - 0.5) < 0.05
    assert (odd.reference_samples(500, x_o)[:, 0] > 0).double().mean() > 0.99


# bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianGaussian(0),
        lambda: GaussianGaussian(2, variances=torch.tensor([1.0, -1.0])),
        lambda: GaussianGaussian(2, correlation=1.0),
        lambda: GaussianMixtureLikelihood(0),
        lambda: SignFlip(1.0),
        lambda: BoundedLinearGaussian(2, noise_std=0.0),
        lambda: SignFlip().exact_posterior(torch.zeros(11, 2)),
        lambda: SignFlip().exact_posterior(torch.full((3, 2), torch.nan)),
        lambda: SignFlip().reference_samples(5, torch.zeros(0, 2)),
        lambda: SignFlip().diffused_score(torch.zeros(3, 2), 1.5, torch.zeros(1, 2)),
    ],
)
def test_bad_input(call):
    with pytest.raises(InvalidInputError, match="must|expected"):
        call()
