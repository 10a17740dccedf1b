"""Coordinates in which the prior is N(0, I), over a registry of priors."""

import pickle

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import (
    Exponential,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
)

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.coordinates import normal_coordinates

PRIORS = {
    "Gaussian": lambda: MultivariateNormal(
        torch.tensor([3.0, -1.0]), torch.tensor([[0.04, 0.1], [0.1, 1.0]])
    ),
    "independent normal": lambda: Independent(
        Normal(torch.tensor([3.0, 0.0]), torch.tensor([0.1, 10.0])), 1
    ),
    "box": lambda: BoxUniform(torch.tensor([0.0, -5.0]), torch.tensor([1.0, 5.0])),
    "Laplace": lambda: Independent(Laplace(torch.zeros(2), torch.ones(2)), 1),
    "exponential": lambda: Independent(Exponential(torch.ones(2)), 1),
    "gamma": lambda: Independent(Gamma(3 * torch.ones(2), torch.ones(2)), 1),
}
EXACT = [name for name in PRIORS if name != "gamma"]
every_prior = pytest.mark.parametrize("name", PRIORS)


@every_prior
def test_goes_there_and_back(name):
    prior = PRIORS[name]()
    coordinates = normal_coordinates(prior)
    theta = prior.sample((500,))
    z = coordinates.to_normal(theta)
    torch.testing.assert_close(coordinates.from_normal(z), theta, rtol=1e-3, atol=1e-3)
    twin = pickle.loads(pickle.dumps(coordinates))
    assert torch.equal(twin.to_normal(theta), z)


@every_prior
def test_jacobian(name):
    prior = PRIORS[name]()
    coordinates = normal_coordinates(prior)
    for theta in prior.sample((5,)):
        jacobian = torch.autograd.functional.jacobian(
            lambda at: coordinates.from_normal(at), coordinates.to_normal(theta)
        )
        expected = -torch.linalg.slogdet(jacobian)[1]
        found = coordinates.log_abs_det(theta)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("name", EXACT)
def test_prior_becomes_standard_normal(name):
    prior = PRIORS[name]()
    z = normal_coordinates(prior).to_normal(prior.sample((20_000,)))
    torch.testing.assert_close(torch.cov(z.mT), torch.eye(2), atol=0.05, rtol=0)
    torch.testing.assert_close(z.pow(4).mean(0), 3 * torch.ones(2), atol=0.3, rtol=0)


@every_prior
def test_never_leaves_the_support(name):
    prior = PRIORS[name]()
    far = torch.tensor([[-40.0, 40.0], [0.0, 9.0], [-9.0, 0.0]])
    theta = normal_coordinates(prior).from_normal(far)
    assert theta.isfinite().all() or name == "gamma"
    inside = theta[theta.isfinite().all(1)]
    assert prior.support.check(inside).all()
    assert prior.log_prob(inside).isfinite().all()


def test_walls_of_a_box_are_finite():
    coordinates = normal_coordinates(PRIORS["box"]())
    assert coordinates.to_normal(torch.tensor([[0.0, 5.0]])).isfinite().all()


def test_bad_priors():
    with pytest.raises(InvalidTypeError, match="prior: expected a distribution"):
        normal_coordinates(None)

    with pytest.raises(InvalidInputError, match="prior: expected one that can be"):
        normal_coordinates(Independent(Poisson(torch.ones(2)), 1))
