"""Expected costs and generalized posteriors against Monte Carlo, over a registry.

A new problem is one more line in `PROBLEMS`.
"""

import copy
import pickle

import pytest
import torch
from scipy.stats import kstest

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.simulators import (
    BoxCostSimulator,
    GaussianMixtureTrials,
    LinearGaussianCost,
    TwoMoons,
    UniformPolynomial,
)

PROBLEMS = {
    "UniformPolynomial": UniformPolynomial,
    "TwoMoons": TwoMoons,
    "LinearGaussianCost": LinearGaussianCost,
    "GaussianMixtureTrials": GaussianMixtureTrials,
    "GaussianMixtureTrials, 3": lambda: GaussianMixtureTrials(num_trials=3),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


@every_problem
def test_shapes_dtypes_seed_and_copies(name):
    problem = PROBLEMS[name]()
    theta = problem.prior.sample((7,))
    torch.manual_seed(1)
    x = problem(theta)
    torch.manual_seed(1)
    assert torch.equal(problem(theta), x)
    assert x.shape == (7, *problem.shape_x) and x.dtype == torch.float32
    cost = problem.expected_cost(theta, x)
    assert cost.shape == problem.distance(x, x.flip(0)).shape == (7,)
    shared = problem.expected_cost(theta, x[:1])
    torch.testing.assert_close(problem.expected_cost(theta, x[:1].expand_as(x)), shared)
    for twin in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        assert torch.equal(twin.expected_cost(theta, x), cost)


@every_problem
@pytest.mark.parametrize("misspecified", [False, True])
def test_expected_cost_is_the_mean_distance(name, misspecified):
    """Z-tests of 20 pairs; a distance without its noise term is the control."""
    problem = PROBLEMS[name]()
    theta = problem.prior.sample((20,)).double()
    x_t = problem.observations(20, misspecified).double()
    exact = problem.expected_cost(theta, x_t)
    repeated, targets = (v.repeat_interleave(4000, dim=0) for v in (theta, x_t))
    draws = problem.distance(problem(repeated), targets).reshape(20, 4000)
    stderr = draws.std(dim=1) / 4000**0.5
    # over 10 seeds the largest |z| was 3.6, the smallest of the control 19.5
    assert ((draws.mean(dim=1) - exact) / stderr).abs().max() < 5
    wrong = exact + 0.3 * draws.std(dim=1)
    assert ((draws.mean(dim=1) - wrong) / stderr).abs().max() > 10


@every_problem
@pytest.mark.parametrize("level", [0, 1, 2])
def test_exact_posterior_is_the_tempered_one(name, level):
    """Self-normalised importance weights of prior draws give the same mean cost."""
    problem = PROBLEMS[name]()
    beta = problem.betas[level] if "Linear" not in name else (0.5, 1.0, 3.0)[level]
    x_o = problem.observations(1)
    prior_draws = problem.prior.sample((100_000,))
    cost = problem.expected_cost(prior_draws, x_o).double()
    weights = (-beta * cost).softmax(dim=0)
    mean = weights @ cost
    stderr = (weights.square() @ (cost - mean).square()).sqrt()

    def z(other_beta):
        theta = problem.exact_posterior(x_o, other_beta).sample((20_000,))
        costs = problem.expected_cost(theta, x_o).double()
        error = (costs.var() / len(costs) + stderr**2).sqrt()
        return ((costs.mean() - mean) / error).abs()

    assert z(beta) < 4.5  # over 10 seeds at most 2.8
    assert z(1.6 * beta) > 5  # control: over 10 seeds at least 10.7


@every_problem
def test_log_prob_differs_from_the_cost_by_a_constant(name):
    problem = PROBLEMS[name]()
    x_o, beta = problem.observations(1, misspecified=True), problem.betas[0]
    posterior = problem.exact_posterior(x_o, beta)
    theta = posterior.sample((200,))
    if isinstance(problem, BoxCostSimulator):
        theta = posterior.theta[posterior.probs.multinomial(200, True)]
    expected = problem.prior.log_prob(theta) - beta * problem.expected_cost(theta, x_o)
    constant = posterior.log_prob(theta) - expected
    assert constant.max() - constant.min() < 2e-3
    wrong = constant + beta * problem.expected_cost(theta, x_o)  # control
    assert wrong.max() - wrong.min() > 0.05


def test_linear_gaussian_is_calibrated_at_its_beta():
    problem = LinearGaussianCost(dim=2)
    theta = problem.prior.sample((2000,))
    x = problem(theta)

    def pvalue(beta):
        a = 2 * beta / 2
        mean = a / (1 + a) * (x - problem.shift)
        z = (theta - mean) * (1 + a) ** 0.5
        return kstest(z.flatten().numpy(), "norm").pvalue

    posterior = problem.exact_posterior(x[0], problem.calibrated_beta)
    assert posterior.mean.shape == (2,)
    assert pvalue(problem.calibrated_beta) > 1e-3
    assert pvalue(1.5 * problem.calibrated_beta) < 1e-3  # control


@every_problem
def test_misspecified_observations_leave_the_model(name):
    problem = PROBLEMS[name]()
    known = problem(problem.prior.sample((20_000,)))
    known, bad, good = (
        x.flatten(1)
        for x in (known, problem.observations(200, True), problem.observations(200))
    )
    low, high = known.amin(0), known.amax(0)

    def outside(x):
        return ((x < low) | (x > high)).any(dim=1).float().mean()

    if "Mixture" in name:  # leaves the model by its spread, not by its range
        spread = problem.observations(500, True).var(dim=1).mean()
        assert spread > 4 * problem.observations(500).var(dim=1).mean()
    else:
        assert outside(bad) > 0.7  # of this sample; of 100,000 draws, all
        assert outside(good) < 0.05


@every_problem
def test_bad_arguments_raise_typed_errors(name):
    problem = PROBLEMS[name]()
    theta = problem.prior.sample((3,))
    x = problem(theta)
    with pytest.raises(InvalidInputError, match="theta must have shape"):
        problem(theta[0])
    with pytest.raises(InvalidTypeError, match="floating-point"):
        problem(theta.tolist())
    with pytest.raises(InvalidInputError, match="x_t: expected one row"):
        problem.expected_cost(theta, x[:2])
    with pytest.raises(InvalidInputError, match="one observation"):
        problem.exact_posterior(x, 1.0)
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="beta"):
            problem.exact_posterior(x[0], beta)
    with pytest.raises(InvalidInputError, match="num_observations"):
        problem.observations(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearGaussianCost(0),
        lambda: LinearGaussianCost(2, noise_variance=0.0),
        lambda: LinearGaussianCost(2, shift=torch.zeros(3)),
        lambda: GaussianMixtureTrials(1),
    ],
)
def test_bad_construction_raises_typed_errors(make):
    with pytest.raises(InvalidInputError):
        make()
