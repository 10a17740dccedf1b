"""Simulator, prior and score from a Pyro model."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sbi.utils import process_prior
from sbi.utils.sbiutils import mcmc_transform

from sbi_scoreaug import check_score, simulate_with_score
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError
from sbi_scoreaug.scores.pyro import score_from_pyro
from sbi_scoreaug.scores.pyro_prior import PyroPrior


def regression(data=None):
    """No latent sites; a vector of parameters, one on a half-line, one in an interval.

    The data are given as observations, as in a model that is ready for inference.
    """
    slope = pyro.sample("slope", dist.Normal(0.5, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    shift = pyro.sample("shift", dist.Uniform(-1.0, 2.0))
    mean = shift.unsqueeze(-1) * torch.linspace(-1.0, 1.0, 5)
    mean = mean + slope.sum(-1, keepdim=True) ** 2
    pyro.deterministic("mean", mean, event_dim=1)
    pyro.sample("x", dist.Normal(mean, scale.unsqueeze(-1)).to_event(1), obs=data)


def in_plates(data=None):
    """The same density with the data in a plate instead of an event."""
    with pyro.plate("coefficients", 2):
        slope = pyro.sample("slope", dist.Normal(0.5, 1.0))
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    shift = pyro.sample("shift", dist.Uniform(-1.0, 2.0))
    with pyro.plate("data", 5):
        mean = shift * torch.linspace(-1.0, 1.0, 5) + slope.sum(-1, keepdim=True) ** 2
        pyro.sample("x", dist.Normal(mean, scale), obs=data)


def hierarchical():
    """Parameters that depend on one another, latents in a plate, two observed sites."""
    location = pyro.sample("location", dist.Normal(1.0, 0.5))
    log_spread = pyro.sample("log_spread", dist.Normal(location - 1.5, 0.4))
    with pyro.plate("groups", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(location, log_spread.exp()))
        with pyro.plate("repeats", 2, dim=-2):
            pyro.sample("x", dist.Normal(z, 0.3))
    pyro.sample("count", dist.Poisson(location.exp()))


SITES = (["slope", "scale", "shift"], "x")
LATENT_SITES = (["location", "log_spread"], ["x", "count"])


def joint_log_prob(model, **values):
    """Log density of one run of the model, by Pyro itself, without our code."""
    conditioned = poutine.condition(poutine.uncondition(model), values)
    return float(poutine.trace(conditioned).get_trace().log_prob_sum())


@pytest.mark.parametrize("model", [regression, in_plates])
def test_prior_and_likelihood_are_those_of_pyro_row_by_row(model):
    simulator = score_from_pyro(model, *SITES, data=torch.zeros(5))
    theta = simulator.prior.sample((6,))
    x, _ = simulator(theta)
    assert theta.shape == (6, 4) and x.shape == (6, 5)
    density = simulator.prior.log_prob(theta) + simulator.log_prob(theta, x)
    for row in range(6):
        slope, scale, shift = theta[row].split([2, 1, 1])
        expected = joint_log_prob(
            model, slope=slope, scale=scale[0], shift=shift[0], x=x[row]
        )
        assert float(density[row]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", [regression, in_plates])
def test_without_latents_the_score_is_exact_by_finite_differences(model):
    simulator = score_from_pyro(model, *SITES)
    assert simulator.score_kind == "exact" and simulator.latent == []
    theta = simulator.prior.sample((8,)).double()
    x, score = simulator(theta)
    assert torch.allclose(simulator.score(theta, x), score)
    for k in range(4):
        step = torch.zeros(4).double()
        step[k] = 1e-5
        above, below = (simulator.log_prob(theta + s * step, x) for s in (1, -1))
        assert torch.allclose(score[:, k], (above - below) / 2e-5, rtol=1e-4, atol=1e-4)


def test_simulations_vary_and_follow_the_seed():
    simulator = score_from_pyro(regression, *SITES)
    runs = [
        simulate_with_score(simulator, simulator.prior, 20, 1, None, 3, False)
        for _ in range(2)
    ]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
        assert len(first.unique(dim=0)) == 20


def test_with_latents_the_score_is_joint_and_holds_the_latents_fixed():
    simulator = score_from_pyro(hierarchical, *LATENT_SITES)
    assert simulator.score_kind == "joint" and simulator.latent == ["z"]
    theta = simulator.prior.sample((5,))
    torch.manual_seed(3)
    x, score = simulator(theta)
    assert x.shape == (5, 7)
    torch.manual_seed(3)
    z = simulator._trace(theta).nodes["z"]["value"].reshape(5, 3)
    location, spread = theta[:, :1], theta[:, 1:].exp()
    standard = (z - location) / spread
    of_count = x[:, 6] - location[:, 0].exp()  # grad of the log of a Poisson
    expected = torch.stack(
        [(standard / spread).sum(1) + of_count, (standard.square() - 1).sum(1)], 1
    )
    assert torch.allclose(score, expected, rtol=1e-4, atol=1e-4)
    for density in (simulator.log_prob, simulator.score):
        with pytest.raises(InvalidStateError, match="'z'"):
            density(theta, x)


@pytest.mark.parametrize("sign", [1, -1])
def test_joint_scores_pass_the_check_and_flipped_ones_do_not(sign):
    simulator = score_from_pyro(hierarchical, *LATENT_SITES)
    theta = simulator.prior.sample((2000,))
    x, score = simulator(theta)
    assert check_score(theta, x, sign * score, simulator.prior).passed == (sign == 1)


def test_a_prior_whose_parameters_depend_on_one_another():
    prior = score_from_pyro(hierarchical, *LATENT_SITES).prior
    theta = prior.sample((4000,))
    expected = dist.Normal(1.0, 0.5).log_prob(theta[:, 0])
    expected += dist.Normal(theta[:, 0] - 1.5, 0.4).log_prob(theta[:, 1])
    assert torch.allclose(prior.log_prob(theta), expected, atol=1e-5)
    correlation = torch.corrcoef(theta.T)[0, 1]
    assert float(correlation) == pytest.approx(0.5 / 0.41**0.5, abs=0.05)


def test_sbi_takes_the_prior_and_maps_its_support():
    simulator = score_from_pyro(regression, *SITES)
    prior, num_parameters, _ = process_prior(simulator.prior)
    assert num_parameters == 4 and prior is simulator.prior
    theta = prior.sample((50,))
    free = mcmc_transform(prior)(theta)
    assert free.isfinite().all()
    assert torch.allclose(mcmc_transform(prior).inv(free), theta, atol=1e-4)
    outside = torch.tensor([[0.0, 0.0, 1.0, 3.0], [0.0, 0.0, -1.0, 0.0]])
    assert (prior.log_prob(outside) == -torch.inf).all()
    assert prior.sample().shape == (4,)
    assert prior.log_prob(prior.sample((2, 3))).shape == (2, 3)


def test_it_can_be_pickled():
    simulator = pickle.loads(pickle.dumps(score_from_pyro(regression, *SITES)))
    assert isinstance(simulator.prior, PyroPrior)
    assert simulator(simulator.prior.sample((3,)))[0].shape == (3, 5)


def test_making_it_draws_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    score_from_pyro(hierarchical, *LATENT_SITES)
    assert torch.equal(state, torch.get_rng_state())


# --- Bad input ---------------------------------------------------------------------


def discrete_latent():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(mu + kind, 1.0))


def discrete_parameter():
    kind = pyro.sample("mu", dist.Poisson(3.0))
    pyro.sample("x", dist.Normal(kind, 1.0))


def latent_first():
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(level, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0))


def with_factor():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0))
    pyro.factor("weight", mu)


def one_row_only():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.stack([mu] * 3), 1.0).to_event(1))


def moving_support():
    top = pyro.sample("top", dist.Uniform(1.0, 2.0))
    mu = pyro.sample("mu", dist.Uniform(0.0, top))
    pyro.sample("x", dist.Normal(mu, 1.0))


def subsampled():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=5):
        pyro.sample("x", dist.Normal(mu, 1.0))


MODELS = {
    "parameter unknown": (regression, "slopes", "x", ["parameters", "'slope'"]),
    "observed unknown": (regression, "slope", "y", ["observed", "'x'", "'y'"]),
    "no parameters": (regression, [], "x", ["parameters", "[]"]),
    "the same twice": (regression, ["scale", "x"], "x", ["different sites"]),
    "discrete latent": (discrete_latent, "mu", "x", ["latent", "discrete", "kind"]),
    "discrete parameter": (discrete_parameter, "mu", "x", ["parameters", "discrete"]),
    "a latent first": (latent_first, "mu", "x", ["first sites", "level"]),
    "a factor": (with_factor, "mu", "x", ["factor", "weight"]),
    "one row only": (one_row_only, "mu", "x", ["broadcasts"]),
    "a moving support": (moving_support, ["top", "mu"], "x", ["depends on"]),
    "subsampling": (subsampled, "mu", "x", ["subsampling"]),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used_are_refused(case):
    model, parameters, observed, words = case
    with pytest.raises(InvalidInputError) as caught:
        score_from_pyro(model, parameters, observed)
    assert "expected" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(InvalidTypeError, match="dict"):
        score_from_pyro({}, "mu", "x")
