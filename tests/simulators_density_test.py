"""Densities, posteriors and simulations against independent computations."""

import itertools
import math

import networkx as nx
import pytest
import torch
from sbi.utils import BoxUniform
from scipy.stats import chisquare, multivariate_t
from torch.distributions import MultivariateNormal, Normal

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators import (
    GaussianProcessField,
    GridPosterior,
    LinearGaussian,
    NormalLocationScale,
    SISNetwork,
    SISPopulation,
    StudentTField,
    theta_grid,
)


def full_covariance(theta, grid_size):
    """K of one theta, pixel by pixel."""
    axis = torch.arange(grid_size).double()
    pixels = torch.cartesian_prod(axis, axis)
    distance = (pixels[:, None] - pixels).square().sum(dim=2).sqrt()
    return theta[0].exp() * (-distance / theta[1].exp()).exp()


def frequencies_fit(states, probabilities):
    """Chi-square p-value of drawn states; rare states are pooled.

    Over 10 seeds the smallest was .009 and the largest of a control 1e-112.
    """
    counts = torch.bincount(states.long(), minlength=len(probabilities)).double()
    expected = probabilities.double() * len(states)
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    if expected[-1] < 1:
        assert counts[-1] < 10
        counts, expected = counts[:-1], expected[:-1]
    return chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


# densities


def test_linear_gaussian_obeys_bayes_rule():
    simulator = LinearGaussian()
    theta, x_o = simulator.prior.sample((20,)), torch.randn(1, 5)
    joint = simulator.prior.log_prob(theta) + simulator.log_prob(theta, x_o)
    evidence = joint - simulator.exact_posterior(x_o).log_prob(theta)
    covariance = simulator.mixing @ simulator.mixing.T
    covariance = covariance + simulator.noise_std.square().diag()
    expected = MultivariateNormal(torch.zeros(5).double(), covariance).log_prob(x_o)
    torch.testing.assert_close(evidence, expected.float().expand(20), atol=1e-3, rtol=0)


def test_normal_density_equals_torch():
    simulator = NormalLocationScale()
    theta = simulator.prior.sample((20,))
    x = simulator(theta)
    expected = Normal(theta[:, :1], theta[:, 1:].exp()).log_prob(x).sum(dim=1)
    torch.testing.assert_close(simulator.log_prob(theta, x), expected)


@pytest.mark.parametrize("grid_size", [2, 4, 10])
def test_field_densities_equal_the_full_matrix_ones(grid_size):
    gaussian = GaussianProcessField(grid_size)
    student = StudentTField(grid_size, degrees_of_freedom=4.5)
    theta = gaussian.prior.sample((5,)).double()
    x = gaussian(theta)
    for row, image in zip(theta, x, strict=True):
        covariance = full_covariance(row, grid_size)
        normal = MultivariateNormal(torch.zeros(grid_size**2).double(), covariance)
        expected = normal.log_prob(image.flatten())
        found = gaussian.log_prob(row[None], image[None])[0]
        torch.testing.assert_close(found, expected)
        scale = covariance * (4.5 - 2) / 4.5
        expected = multivariate_t(shape=scale.numpy(), df=4.5).logpdf(image.flatten())
        found = student.log_prob(row[None], image[None])[0]
        assert found.item() == pytest.approx(expected.item())


def test_field_covariance_is_that_of_the_simulations():
    theta = torch.tensor([[0.5, 0.3]]).double()
    expected = full_covariance(theta[0], 4)
    for simulator in (GaussianProcessField(4), StudentTField(4, degrees_of_freedom=9)):
        x = simulator(theta.expand(40000, -1)).flatten(1)
        # largest deviation over 10 seeds: .028 and .036; smallest of a control 1.07
        assert (x.T @ x / len(x) - expected).abs().max() < 0.1
        wrong = full_covariance(theta[0] + 0.5, 4)
        assert (x.T @ x / len(x) - wrong).abs().max() > 0.1


def test_network_probabilities_sum_to_one_and_match_simulations():
    simulator = SISNetwork(nx.path_graph(3), num_steps=1, initial_infected=[0, 1])
    theta = torch.tensor([[-0.5, -1.0]]).double()
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    for state in states:
        steps = torch.stack([state.expand(8, -1), states], dim=1)
        total = simulator.log_prob(theta.expand(8, -1), steps).exp().sum()
        assert total.item() == pytest.approx(1)
    steps = torch.stack([torch.tensor([1.0, 1, 0]).expand(8, -1), states], dim=1)
    probabilities = simulator.log_prob(theta.expand(8, -1), steps).exp()
    x = simulator(theta.expand(5000, -1))
    index = (x[:, 1] * torch.tensor([4, 2, 1])).sum(dim=1)
    assert torch.equal(x[:, 0], torch.tensor([1.0, 1, 0]).double().expand(5000, -1))
    assert frequencies_fit(index, probabilities) > 1e-4
    wrong = simulator.log_prob(theta.flip(1).expand(8, -1), steps).exp()  # control
    assert frequencies_fit(index, wrong) < 1e-4


def test_network_at_extreme_rates():
    simulator = SISNetwork(nx.star_graph(4), num_steps=3, initial_infected=2)
    x = simulator(torch.zeros(1, 2))
    assert x[0, 0].sum() == 2
    for log_rate in (-30.0, 5.0):
        theta = torch.full((1, 2), log_rate)
        x = simulator(theta)
        assert simulator.log_prob(theta, x).isfinite().all()
        assert simulator.score(theta, x).isfinite().all()
    x = torch.zeros(1, *simulator.shape_x)
    x[0, 1:] = 1  # infected without a source
    assert simulator.log_prob(torch.zeros(1, 2), x) == -math.inf
    with pytest.raises(InvalidInputError, match="impossible"):
        simulator.exact_posterior(x)
    with pytest.raises(InvalidInputError, match="0 .* and 1"):
        simulator.log_prob(torch.zeros(1, 2), x + 0.5)


# jump process


@pytest.fixture
def snapshots():
    return SISPopulation(observe="snapshots", population=12, num_snapshots=6)


def test_transition_matrix_matches_simulations(snapshots):
    theta = torch.tensor([[0.2, -1.0]]).double()
    transition = snapshots.transition_matrix(theta)[0]
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(13).double())
    x = snapshots(theta.expand(5000, -1))
    wrong = snapshots.transition_matrix(theta + torch.tensor([0.3, 0.0]))[0]  # control
    for j in (0, 5):
        row = torch.linalg.matrix_power(transition, j + 1)[snapshots.initial_infected]
        assert frequencies_fit(x[:, j], row) > 1e-4
        row = torch.linalg.matrix_power(wrong, j + 1)[snapshots.initial_infected]
        assert frequencies_fit(x[:, j], row) < 1e-4


def test_joint_score_has_the_score_as_its_mean(snapshots):
    """E[joint | x] = score: mean zero of the difference, regression slope one."""
    theta = torch.tensor([[0.2, -1.0]]).double().expand(5000, -1)
    x, joint = snapshots.simulate_with_joint_score(theta)
    exact = snapshots.score(theta, x)

    def largest_z(candidate):
        noise = candidate - exact
        tests = [
            noise,
            noise * exact,
            noise * exact.flip(1),
            noise * x.mean(1)[:, None],
        ]
        values = torch.cat(tests, dim=1)
        return (values.mean(dim=0) / values.std(dim=0)).abs().max() * 5000**0.5

    # over 10 seeds: largest 2.6, smallest of the controls 39 and 17.7
    assert largest_z(joint) < 4.5
    assert (joint.var(dim=0) > exact.var(dim=0)).all()
    assert largest_z(joint.roll(1, dims=0)) > 8  # control: another row's path
    assert largest_z(1.3 * joint) > 8  # control: wrong scale


def test_joint_score_of_an_observed_path_is_the_score():
    simulator = SISPopulation()
    theta = simulator.prior.sample((20,))
    x, joint = simulator.simulate_with_joint_score(theta)
    torch.testing.assert_close(joint, simulator.score(theta, x), rtol=1e-4, atol=1e-3)


def test_extinction_is_absorbing():
    theta = torch.tensor([[-5.0, 3.0]]).expand(50, -1)
    snapshots = SISPopulation(observe="snapshots", duration=50.0)
    x = snapshots(theta)
    assert (x[:, -1] == 0).all()
    assert snapshots.score(theta, x).isfinite().all()
    path = SISPopulation(population=20, duration=50.0, initial_infected=4)(theta)
    assert (path[:, 1] - path[:, 0] == 4).all()
    with pytest.raises(InvalidInputError, match="numbers of infected"):
        snapshots.score(theta, x + 0.5)


# grid


def test_grid_posterior_of_a_known_density():
    prior = BoxUniform(torch.tensor([-4.0, -8.0]), torch.tensor([6.0, 8.0]))
    normal = MultivariateNormal(
        torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 1.5]])
    )
    theta = theta_grid(prior, 80)
    posterior = GridPosterior(theta, normal.log_prob(theta))
    torch.testing.assert_close(posterior.mean, normal.mean, atol=1e-2, rtol=0)
    torch.testing.assert_close(posterior.stddev, normal.stddev, atol=1e-2, rtol=0)
    density = posterior.log_prob(theta).exp()
    assert (density.sum() * 10 * 16 / 80**2).item() == pytest.approx(1, abs=1e-4)
    near = normal.log_prob(theta).exp()
    torch.testing.assert_close(density, near, atol=1e-3, rtol=0)
    jittered = theta + 0.06 * (torch.rand_like(theta) * 2 - 1)
    assert torch.equal(posterior.log_prob(jittered), posterior.log_prob(theta))
    assert posterior.log_prob(torch.tensor([[-4.1, 0.0]])) == -math.inf
    samples = posterior.sample((20000,))
    assert (samples.mean(dim=0) - normal.mean).abs().max() < 0.05
    assert (samples.std(dim=0) - normal.stddev).abs().max() < 0.05
    assert posterior.sample((3, 2)).shape == (3, 2, 2)
    assert len(samples.unique(dim=0)) == len(samples)


def test_grid_posterior_refuses_what_is_no_grid():
    theta = theta_grid(BoxUniform(-torch.ones(2), torch.ones(2)), 4)
    with pytest.raises(InvalidInputError, match="full grid"):
        GridPosterior(theta.flip(0), torch.zeros(16))
    with pytest.raises(InvalidInputError, match="num_cells"):
        GridPosterior(theta, torch.zeros(15))
    with pytest.raises(InvalidInputError, match="NaN"):
        GridPosterior(theta, torch.full((16,), math.nan))
    with pytest.raises(InvalidInputError, match="batch"):
        GridPosterior(theta, torch.zeros(16)).log_prob(torch.zeros(2))
