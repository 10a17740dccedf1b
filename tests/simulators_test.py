"""Generic properties of every simulator, over a registry.

A new problem is one more line in `SIMULATORS`.
"""

import copy
import doctest
import importlib
import math
import pickle
import pkgutil

import joblib
import networkx as nx
import pytest
import torch
from scipy.stats import chi2, kstest

import sbi_scoreaug.simulators as simulators
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)
from sbi_scoreaug.simulators import (
    BoxSimulator,
    GaussianProcessField,
    LinearGaussian,
    NormalLocationScale,
    SISNetwork,
    SISPopulation,
    StudentTField,
)

SIMULATORS = {
    "LinearGaussian": lambda: LinearGaussian(),
    "LinearGaussian, wide": lambda: LinearGaussian(
        2, mixing=torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]]), noise_std=0.7
    ),
    "NormalLocationScale": lambda: NormalLocationScale(),
    "GaussianProcessField": lambda: GaussianProcessField(grid_size=8),
    "StudentTField": lambda: StudentTField(grid_size=8),
    "SISNetwork": lambda: SISNetwork(),
    "SISPopulation, path": lambda: SISPopulation(),
    "SISPopulation, snapshots": lambda: SISPopulation(
        observe="snapshots", population=12, num_snapshots=6
    ),
}
BOXES = [name for name in SIMULATORS if "Linear" not in name]

every_simulator = pytest.mark.parametrize("name", SIMULATORS)
every_box = pytest.mark.parametrize("name", BOXES)


def standardised_mean(values):
    """Mean over rows divided by its standard error."""
    return values.mean(dim=0) / values.std(dim=0) * len(values) ** 0.5


# contract


@every_simulator
def test_shapes_dtypes_and_seed(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((7,))
    torch.manual_seed(1)
    x = simulator(theta)
    torch.manual_seed(1)
    assert torch.equal(simulator(theta), x)
    assert theta.shape == (7, simulator.dim_theta)
    assert x.shape == (7, *simulator.shape_x)
    assert simulator.log_prob(theta, x).shape == (7,)
    assert simulator.score(theta, x).shape == theta.shape
    assert x.dtype == simulator.score(theta, x).dtype == torch.float32
    assert not simulator.score(theta.requires_grad_(), x).requires_grad


@every_simulator
def test_chunks_and_shared_observation_change_nothing(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((7,)).double()
    x = simulator(theta)
    score, log_prob = simulator.score(theta, x), simulator.log_prob(theta, x)
    shared = simulator.score(theta, x[:1])
    simulator.rows_at_once = 3
    torch.testing.assert_close(simulator.score(theta, x), score)
    torch.testing.assert_close(simulator.log_prob(theta, x), log_prob)
    torch.testing.assert_close(simulator.score(theta, x[:1]), shared)
    repeated = x[:1].expand_as(x)
    torch.testing.assert_close(simulator.score(theta, repeated), shared)


@every_simulator
def test_pickles_and_copies(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((3,))
    x = simulator(theta)
    for twin in (pickle.loads(pickle.dumps(simulator)), copy.deepcopy(simulator)):
        assert torch.equal(twin.score(theta, x), simulator.score(theta, x))


def test_runs_in_joblib_workers():
    chunks = [make().prior.sample((2,)) for make in SIMULATORS.values()]
    results = joblib.Parallel(n_jobs=2)(
        joblib.delayed(make())(theta)
        for make, theta in zip(SIMULATORS.values(), chunks, strict=True)
    )
    assert all(len(x) == 2 and x.isfinite().all() for x in results)


@pytest.mark.parametrize(
    "module", [m.name for m in pkgutil.iter_modules(simulators.__path__)]
)
def test_doctests(module):
    module = importlib.import_module(f"{simulators.__name__}.{module}")
    assert doctest.testmod(module).failed == 0


# analytic: the score is the gradient of log_prob


@every_simulator
def test_score_equals_autograd(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((50,))
    x = simulator(theta)
    theta.requires_grad_()
    (expected,) = torch.autograd.grad(simulator.log_prob(theta, x).sum(), theta)
    score = simulator.score(theta, x)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


@every_simulator
def test_score_equals_finite_differences(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((50,)).double()
    x = simulator(theta)
    steps = 1e-5 * torch.eye(simulator.dim_theta).double()
    differences = [
        (simulator.log_prob(theta + h, x) - simulator.log_prob(theta - h, x)) / 2e-5
        for h in steps
    ]
    score = simulator.score(theta, x)
    torch.testing.assert_close(
        score, torch.stack(differences, dim=1), rtol=1e-5, atol=1e-4
    )


# statistical: simulations follow the density that the score belongs to.
# Over 10 seeds and all simulators: largest |z| 3.2, smallest of a control 22.6 (mean)
# and 14.0 (information). Over 12 seeds, 300 simulations each: smallest p-value of a
# posterior .003, largest of a control 2e-12; of the Gaussian ones .15 and 6e-15.


@every_simulator
def test_score_has_mean_zero_at_the_true_theta(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.mean.expand(4000, -1).double()
    x = simulator(theta)
    assert standardised_mean(simulator.score(theta, x)).abs().max() < 4.5
    elsewhere = simulator.score(theta + 0.3, x)  # control
    assert standardised_mean(elsewhere).abs().max() > 8


@every_simulator
def test_information_identity(name):
    """E[s s'] = -E[d s / d theta]: scale matters, unlike for the mean."""
    simulator = SIMULATORS[name]()
    theta = simulator.prior.mean.expand(4000, -1).double()
    x = simulator(theta)
    score = simulator.score(theta, x)
    for k, h in enumerate(1e-4 * torch.eye(simulator.dim_theta).double()):
        slope = (simulator.score(theta + h, x) - simulator.score(theta - h, x)) / 2e-4
        excess = slope + score[:, k : k + 1] * score
        assert standardised_mean(excess).abs().max() < 4.5
        twice = 2 * slope + 4 * score[:, k : k + 1] * score  # control: doubled score
        assert standardised_mean(twice).abs().max() > 8


def fraction_below(posterior, theta):
    """Marginal posterior probability of values below theta, `(dim_theta,)`."""
    image, fractions = posterior.probs.reshape(posterior.shape), []
    for k, value in enumerate(theta):
        centres = posterior.theta[:, k].unique()
        width = centres[1] - centres[0]
        covered = ((value - centres) / width + 0.5).clamp(0, 1)
        others = [axis for axis in range(image.ndim) if axis != k]
        fractions.append((image.sum(dim=others) * covered).sum())
    return torch.stack(fractions)


def uniformity(ranks):
    """P-values of a test for bias and of one for spread."""
    spread = (2 * ranks - 1).abs()
    return [kstest(values, "uniform").pvalue for values in (ranks, spread)]


def sharpened(posterior):
    """The posterior of a likelihood raised to the fourth power."""
    return simulators.GridPosterior(posterior.theta, 4 * posterior.log_probs)


@every_box
def test_exact_posterior_is_calibrated(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((300,))
    posteriors = [simulator.exact_posterior(x_o, 32) for x_o in simulator(theta)]
    pairs = list(zip(posteriors, theta, strict=True))
    ranks = torch.stack([fraction_below(*pair) for pair in pairs])
    wrong = torch.stack([fraction_below(sharpened(p), t) for p, t in pairs])
    for k in range(simulator.dim_theta):
        assert min(uniformity(ranks[:, k])) > 1e-4
        assert min(uniformity(wrong[:, k])) < 1e-4  # control


@every_box
def test_exact_posterior_is_normalised_likelihood(name):
    simulator = SIMULATORS[name]()
    x_o = simulator(simulator.prior.sample((1,)))
    posterior = simulator.exact_posterior(x_o, points_per_axis=30)
    assert posterior.probs.sum() == pytest.approx(1, abs=1e-5)
    assert torch.equal(
        simulator.exact_posterior(x_o[0], points_per_axis=30).probs, posterior.probs
    )
    ratio = posterior.log_probs - simulator.log_prob(posterior.theta.double(), x_o)
    bulk = ratio[posterior.log_probs > -20]
    assert bulk.max() - bulk.min() < 1e-3


@pytest.mark.parametrize("name", [n for n in SIMULATORS if n not in BOXES])
def test_gaussian_posterior_is_calibrated(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((300,))
    distances = []
    for theta_true, x_o in zip(theta, simulator(theta), strict=True):
        posterior = simulator.exact_posterior(x_o)
        residual = theta_true - posterior.mean
        distances.append(residual @ posterior.precision_matrix @ residual)
    uniform = chi2(simulator.dim_theta).cdf(torch.stack(distances))
    assert kstest(uniform, "uniform").pvalue > 1e-4
    too_narrow = chi2(simulator.dim_theta).cdf(2 * torch.stack(distances))  # control
    assert kstest(too_narrow, "uniform").pvalue < 1e-4


# errors


@every_simulator
def test_bad_arguments_raise_typed_errors(name):
    simulator = SIMULATORS[name]()
    theta = simulator.prior.sample((3,))
    x = simulator(theta)
    with pytest.raises(InvalidInputError, match="theta must have shape"):
        simulator(theta[0])
    with pytest.raises(InvalidInputError, match="finite"):
        simulator(theta * math.nan)
    with pytest.raises(InvalidTypeError, match="theta must be a floating-point tensor"):
        simulator(theta.tolist())
    with pytest.raises(InvalidTypeError, match="got torch.int64"):
        simulator(theta.long())
    with pytest.raises(InvalidInputError, match="x must have one row or as many"):
        simulator.score(theta, x[:2])
    with pytest.raises(InvalidInputError, match="x must have shape"):
        simulator.log_prob(theta, x[..., :-1])
    with pytest.raises(InvalidInputError, match="one observation"):
        simulator.exact_posterior(x)
    if isinstance(simulator, BoxSimulator):
        with pytest.raises(InvalidInputError, match="points_per_axis"):
            simulator.exact_posterior(x[0], points_per_axis=1)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: LinearGaussian(0), InvalidInputError),
        (lambda: LinearGaussian(2, mixing=torch.ones(2, 3)), InvalidInputError),
        (lambda: LinearGaussian(2, noise_std=torch.tensor([1, 0])), InvalidInputError),
        (lambda: NormalLocationScale(0), InvalidInputError),
        (lambda: GaussianProcessField(7), InvalidInputError),
        (lambda: StudentTField(8, degrees_of_freedom=2.0), InvalidInputError),
        (lambda: SISNetwork(nx.Graph()), InvalidInputError),
        (lambda: SISNetwork(nx.empty_graph(3)), InvalidInputError),
        (lambda: SISNetwork(nx.path_graph(3, nx.DiGraph)), InvalidTypeError),
        (lambda: SISNetwork("a graph"), InvalidTypeError),
        (lambda: SISNetwork(num_steps=0), InvalidInputError),
        (lambda: SISNetwork(initial_infected=41), InvalidInputError),
        (lambda: SISNetwork(initial_infected=[0, 40]), InvalidInputError),
        (lambda: SISPopulation(observe="all"), InvalidInputError),
        (lambda: SISPopulation(duration=0.0), InvalidInputError),
        (lambda: SISPopulation(initial_infected=0), InvalidInputError),
        (
            lambda: SISPopulation().transition_matrix(torch.zeros(1, 2)),
            InvalidStateError,
        ),
    ],
)
def test_bad_construction_raises_typed_errors(make, error):
    with pytest.raises(error):
        make()


def test_an_impossible_infection_has_no_score():
    simulator = SISNetwork(nx.path_graph(3), num_steps=1, initial_infected=[0])
    x = torch.tensor([[[1.0, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 1]]])
    theta = torch.full((2, 2), -1.0)
    assert simulator.log_prob(theta, x).isfinite().tolist() == [True, False]
    assert simulator.score(theta, x).isnan().all(1).tolist() == [False, True]
