"""Coordinates in which the prior is N(0, I), over a registry of priors."""

import copy
import math
import pickle

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.user_input_checks_utils import OneDimPriorWrapper
from scipy.stats import kstest
from torch.distributions import (
    Beta,
    Categorical,
    Chi2,
    Exponential,
    Gamma,
    Independent,
    InverseGamma,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    constraints,
)

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe.coordinates import (
    StackedCoordinates,
    TransformedCoordinates,
    normal_coordinates,
)
from sbi_scoreaug.score_npe.coordinates_quantile import TWINS, QuantileCoordinates
from sbi_scoreaug.score_npe.mixed_target import posterior_score

ONE = torch.ones(1)
SHAPES = torch.tensor([2.0, 0.7])
SHAPES_TRIED = torch.tensor([0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.7, 20.0])
COVARIANCE = torch.tensor([[0.04, 0.1], [0.1, 1.0]])


class Mixture(MixtureSameFamily):
    """torch has no map to the real line for the support of its own mixtures."""

    support = constraints.real_vector


def mixture():
    """Two correlated Gaussians: nothing exact is known."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    parts = MultivariateNormal(means, COVARIANCE.expand(2, 2, 2))
    return Mixture(Categorical(torch.tensor([0.3, 0.7])), parts)


def mixed():
    """The host's joint of independent parameters, one block of them correlated."""
    return MultipleIndependent(
        [
            Gamma(2 * ONE, ONE),
            Beta(ONE, ONE),
            BoxUniform(-ONE, 2 * ONE),
            Exponential(ONE),
            Normal(ONE, 2 * ONE),
            MultivariateNormal(torch.zeros(2), COVARIANCE),
            Independent(StudentT(3 * torch.ones(2)), 1),
        ]
    )


PRIORS = {
    "Gaussian": lambda: MultivariateNormal(torch.tensor([3.0, -1.0]), COVARIANCE),
    "independent normal": lambda: Independent(
        Normal(torch.tensor([3.0, 0.0]), torch.tensor([0.1, 10.0])), 1
    ),
    "box": lambda: BoxUniform(torch.tensor([0.0, -5.0]), torch.tensor([1.0, 5.0])),
    "Laplace": lambda: Independent(Laplace(torch.zeros(2), torch.ones(2)), 1),
    "exponential": lambda: Independent(Exponential(torch.ones(2)), 1),
    "gamma": lambda: Independent(Gamma(SHAPES, torch.tensor([3.0, 0.1])), 1),
    "beta": lambda: Independent(Beta(SHAPES, torch.tensor([5.0, 1.0])), 1),
    "Student": lambda: Independent(StudentT(3 * SHAPES, SHAPES, 5 * ONE), 1),
    "chi2": lambda: Independent(Chi2(3 * SHAPES), 1),
    "inverse gamma": lambda: Independent(InverseGamma(3 * SHAPES, SHAPES), 1),
    "mixed": mixed,
    "single": lambda: OneDimPriorWrapper(Gamma(2 * ONE, ONE)),
    "mixture": mixture,
}
EXACT = [name for name in PRIORS if name != "mixture"]
QUANTILES = ["gamma", "beta", "Student", "chi2", "inverse gamma"]
every_prior = pytest.mark.parametrize("name", PRIORS)


def kolmogorov_smirnov(z):
    """The smallest p-value of N(0, 1) over the columns, Bonferroni."""
    columns = z.double().mT.numpy()
    return min(1.0, len(columns) * min(kstest(c, "norm").pvalue for c in columns))


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
    torch.manual_seed(0)
    prior = PRIORS[name]()
    assert normal_coordinates(prior).exact
    z = normal_coordinates(prior).to_normal(prior.sample((20_000,)))
    dim = z.shape[1]
    torch.testing.assert_close(
        torch.cov(z.mT).reshape(dim, dim), torch.eye(dim), atol=0.05, rtol=0
    )
    torch.testing.assert_close(z.pow(4).mean(0), 3 * torch.ones(dim), atol=0.3, rtol=0)
    assert kolmogorov_smirnov(z) > 1e-3


@every_prior
def test_never_leaves_the_support(name):
    prior = PRIORS[name]()
    far = torch.tensor([[-40.0, 40.0], [0.0, 9.0], [-9.0, 0.0]])
    far = far.repeat(1, 9)[:, : prior.sample().shape[-1]]
    theta = normal_coordinates(prior).from_normal(far)
    assert theta.isfinite().all()
    assert prior.support.check(theta).all()
    assert prior.log_prob(theta).isfinite().all()


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_standardised_is_not_normal(name):
    """The negative control of the test above, on the map it was made against."""
    torch.manual_seed(0)
    prior = PRIORS[name]()
    standardised = TransformedCoordinates(prior)
    assert not standardised.exact
    z = standardised.to_normal(prior.sample((20_000,)))
    torch.testing.assert_close(torch.cov(z.mT), torch.eye(2), atol=0.1, rtol=0)
    assert kolmogorov_smirnov(z) < 1e-6


@every_prior
def test_density_of_the_coordinates(name):
    """log_prior is the prior's density times |dtheta/dz|, with any leading shape."""
    prior = PRIORS[name]()
    coordinates = normal_coordinates(prior)
    z = coordinates.to_normal(prior.sample((6,)))
    theta = coordinates.from_normal(z)
    expected = prior.log_prob(theta).reshape(6) - coordinates.log_abs_det(theta)
    torch.testing.assert_close(coordinates.log_prior(z), expected, rtol=0, atol=1e-2)
    found = coordinates.log_prior(z.reshape(2, 3, -1))
    torch.testing.assert_close(found, coordinates.log_prior(z).reshape(2, 3))


@pytest.mark.parametrize("make", [PRIORS["gamma"], mixture])
def test_density_of_standardised_coordinates(make):
    """It integrates to one, with the covariance of N(0, I) and another shape."""
    coordinates = TransformedCoordinates(make())
    line = torch.linspace(-25, 10, 2000)
    z = torch.cartesian_prod(line, line)
    log_prior = coordinates.log_prior(z).double().nan_to_num(-torch.inf)
    log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    mass = log_prior.exp() * (line[1] - line[0]) ** 2
    assert abs(mass.sum() - 1) < 1e-3
    covariance = (z.mT.double() * mass) @ z.double()
    assert (covariance - torch.eye(2)).abs().max() < 0.05
    divergence = (mass * (log_prior - log_normal).nan_to_num(0.0, 0.0, 0.0)).sum()
    assert divergence > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", QUANTILES)
def test_both_tails_are_resolved(name, dtype):
    prior = PRIORS[name]()
    coordinates = normal_coordinates(prior)
    assert isinstance(coordinates, QuantileCoordinates)
    # Near 1 a beta's parameter is resolved by the numbers to 1e-7, 1e-16 only.
    top = 7.5 if name != "beta" else (3.0 if dtype == torch.float32 else 6.0)
    z = torch.linspace(-7.5, top, 61, dtype=dtype)[:, None].repeat(1, 2)
    theta = coordinates.from_normal(z)
    assert theta.dtype == dtype
    assert (theta.diff(dim=0) > 0).all()
    precision = 1e-3 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(
        coordinates.to_normal(theta), z, rtol=precision, atol=precision
    )


@pytest.mark.parametrize("kind", TWINS)
def test_quantiles_at_many_shapes(kind):
    """Half-integer shapes too: there, scipy.stats.beta finds wrong quantiles."""
    a, b = torch.cartesian_prod(SHAPES_TRIED, SHAPES_TRIED).unbind(-1)
    arguments = (2 * a,) if kind is Chi2 else (a, b)
    coordinates = QuantileCoordinates(kind(*arguments)).double()
    z = torch.linspace(-7.6, 0, 100).double()[:, None].repeat(1, len(a))
    theta = coordinates.from_normal(z)
    resolved = theta > 1e-300 if kind is not StudentT else theta.isfinite()
    error = (coordinates.to_normal(theta) - z).abs()[resolved]
    assert resolved.double().mean() > 0.9 and error.max() < 1e-6


@pytest.mark.parametrize("name", QUANTILES)
def test_gradients_of_quantiles_twice(name):
    coordinates = normal_coordinates(PRIORS[name]()).double()
    z = torch.linspace(-2, 2, 8).double().reshape(4, 2).requires_grad_()
    theta = coordinates.from_normal(z).detach().requires_grad_()
    for function, at in (
        (coordinates.from_normal, z),
        (coordinates.to_normal, theta),
        (coordinates.log_abs_det, theta),
    ):
        assert torch.autograd.gradcheck(function, (at,), rtol=1e-4)
    assert torch.autograd.gradgradcheck(coordinates.from_normal, (z,), rtol=1e-3)


@pytest.mark.parametrize("name", [*QUANTILES, "mixed"])
def test_posterior_scores(name):
    """Against finite differences of log p(z) + log p(x|theta(z)), in double."""
    torch.manual_seed(0)
    prior = PRIORS[name]()
    coordinates = normal_coordinates(prior).double()
    theta = prior.sample((6,)).double()
    x = torch.randn_like(theta)
    found = posterior_score(torch.cos(theta) * x, theta, coordinates, prior)
    z, step = coordinates.to_normal(theta), 1e-3

    def log_density(z):
        mapped = coordinates.from_normal(z)
        return (mapped.sin() * x).sum(-1) + coordinates.log_prior(z)

    for k in range(theta.shape[1]):
        shift = step * torch.eye(theta.shape[1])[k]
        slope = (log_density(z + shift) - log_density(z - shift)) / (2 * step)
        torch.testing.assert_close(found[:, k], slope, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_product_of_posteriors_is_the_posterior_of_the_set(name):
    """prod_j p(z|x_j) / N(z; 0, I)^(n-1), which standardised coordinates miss."""
    prior = Independent(Gamma(2 * ONE, ONE), 1)
    truth, noise, n = 3.0, 1.0, 30
    if name == "beta":
        prior, truth, noise = Independent(Beta(ONE, ONE), 1), 0.8, 0.2
    torch.manual_seed(1)
    x = truth + noise * torch.randn(n)
    half = 6 * noise / n**0.5
    high = min(float(x.mean()) + half, 0.9999 if name == "beta" else math.inf)
    theta = torch.linspace(float(x.mean()) - half, high, 2001).double()[:, None]
    likelihood = -0.5 * ((x - theta) / noise).square()

    def moments(log_density):
        weight = log_density.softmax(0)
        mean = (weight * theta[:, 0]).sum()
        return mean, (weight * (theta[:, 0] - mean).square()).sum().sqrt()

    mean, sd = moments(likelihood.sum(1) + prior.log_prob(theta))
    shifts = []
    for kind in (normal_coordinates, TransformedCoordinates):
        coordinates = kind(prior)
        z = coordinates.to_normal(theta)
        log_det = coordinates.log_abs_det(theta)
        log_single = likelihood + (prior.log_prob(theta) - log_det)[:, None]
        log_normal = -0.5 * z.square().sum(-1)
        composed = log_single.sum(1) - (n - 1) * log_normal + log_det
        shifts.append(float((moments(composed)[0] - mean) / sd))
        assert (
            kind is TransformedCoordinates or abs(moments(composed)[1] / sd - 1) < 0.01
        )
    assert abs(shifts[0]) < 0.01 and abs(shifts[1]) > 0.1


@pytest.mark.parametrize("name", EXACT)
def test_copies_and_moves(name):
    coordinates = normal_coordinates(PRIORS[name]())
    theta = PRIORS[name]().sample((5,))
    twin = copy.deepcopy(coordinates).to("cpu")
    assert torch.equal(twin.to_normal(theta), coordinates.to_normal(theta))
    assert {buffer.device.type for buffer in twin.to("meta").buffers()} == {"meta"}
    prior = getattr(twin, "prior", None)
    assert prior is None or prior.mean.device.type == "meta"
    assert coordinates.from_normal(torch.zeros_like(theta)).device.type == "cpu"


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_of_the_same_law(name):
    """torch's density is the derivative of scipy's CDF, by integrating it."""
    arguments = [(ONE + 1.3 * k) for k in range(3 if name is StudentT else 2)]
    prior = name(*(arguments[:1] if name is Chi2 else arguments))
    coordinates = QuantileCoordinates(prior)
    ends = coordinates.from_normal(torch.tensor([[-0.5], [1.5]]).double())
    theta = torch.linspace(float(ends[0]), float(ends[1]), 20_001).double()
    mass = torch.trapezoid(prior.log_prob(theta).exp(), theta)
    expected = torch.special.ndtr(torch.tensor([1.5, -0.5]).double())
    assert abs(mass - (expected[0] - expected[1])) < 1e-5


def test_blocks_fall_back_together():
    """One block without exact coordinates, and none are claimed."""
    assert isinstance(normal_coordinates(mixed()), StackedCoordinates)
    skewed = Independent(LogNormal(torch.zeros(1), torch.ones(1)), 1)
    exact = normal_coordinates(MultipleIndependent([skewed, Gamma(ONE, ONE)]))
    assert exact.exact
    parts = [mixture(), Gamma(ONE, ONE)]
    assert not normal_coordinates(MultipleIndependent(parts)).exact


def test_walls_of_a_box_are_finite():
    coordinates = normal_coordinates(PRIORS["box"]())
    assert coordinates.to_normal(torch.tensor([[0.0, 5.0]])).isfinite().all()


def test_bad_priors():
    with pytest.raises(InvalidTypeError, match="prior: expected a distribution"):
        normal_coordinates(None)

    with pytest.raises(InvalidInputError, match="prior: expected one that can be"):
        normal_coordinates(Independent(Poisson(torch.ones(2)), 1))
