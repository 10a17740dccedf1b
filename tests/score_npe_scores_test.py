"""ScoreNPE with exact scores: the mixed target, and what it buys."""

import copy
import pickle

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import (
    Categorical,
    Gamma,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
)

from sbi_scoreaug.errors import InvalidInputError, ScoreWarning
from sbi_scoreaug.score_npe import ScoreNPE, mixed_target
from sbi_scoreaug.score_npe.circulation import LARGEST_TRUSTED
from sbi_scoreaug.score_npe.coordinates import normal_coordinates
from sbi_scoreaug.score_npe.estimator import FactorizedScoreEstimator
from sbi_scoreaug.score_npe.mixed_target import (
    MixedTarget,
    least_signal,
    posterior_score,
)
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.simulators import (
    BoundedLinearGaussian,
    GaussianGaussian,
    GaussianMixtureLikelihood,
    SignFlip,
)


class GammaMixture(MixtureSameFamily):
    """A prior without exact coordinates."""

    support = constraints.independent(constraints.positive, 1)


QUIET = {"show_progress_bars": False}
PRIORS = {
    "Gaussian": MultivariateNormal(
        torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    ),
    "box": BoxUniform(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.5])),
    "independent": Independent(LogNormal(torch.zeros(2), 0.5 * torch.ones(2)), 1),
    "quantiles": Independent(Gamma(2 * torch.ones(2), torch.ones(2)), 1),
    "transformed": GammaMixture(
        Categorical(torch.tensor([0.3, 0.7])),
        Independent(Gamma(torch.tensor([[2.0, 3.0], [6.0, 2.0]]), torch.ones(2, 2)), 1),
    ),
}


def log_likelihood(theta, x):
    """Of a made-up simulator, smooth in theta."""
    return -0.5 * ((x - theta.sin()) ** 2).sum(-1) - 0.1 * theta.prod(-1)


@pytest.mark.parametrize("name", PRIORS)
def test_posterior_scores_against_finite_differences(name):
    prior = PRIORS[name]
    theta, x = prior.sample((6,)), torch.randn(6, 2)
    coordinates = normal_coordinates(prior)
    leaf = theta.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_likelihood(leaf, x).sum(), leaf)
    found = posterior_score(score, theta, coordinates, prior)

    def log_density(z):
        mapped = coordinates.from_normal(z)
        log_prior = prior.log_prob(mapped) - coordinates.log_abs_det(mapped)
        return log_likelihood(mapped, x) + log_prior

    z, step = coordinates.to_normal(theta), 1e-2
    for k in range(2):
        shift = step * torch.eye(2)[k]
        slope = (log_density(z + shift) - log_density(z - shift)) / (2 * step)
        torch.testing.assert_close(found[:, k], slope, rtol=1e-2, atol=5e-3)


def targets(simulator, m, num_pairs=200_000, flip=1.0):
    """Noisy coordinates, their observations, mixed targets."""
    theta = simulator.prior.sample((num_pairs,)).double()
    x = simulator(theta)
    g = flip * simulator.score(theta, x) - theta
    known = torch.ones(num_pairs, dtype=torch.bool)
    mixed = MixedTarget.fit(g, known)
    noise, level = torch.randn_like(theta), torch.full((num_pairs, 1), m).double()
    s = (1 - level**2).sqrt()
    return level * theta + s * noise, x, mixed(g, known, noise, level, s), noise / s


def test_the_target_of_a_gaussian_posterior_has_no_noise():
    simulator = GaussianGaussian(3, correlation=0.5)
    for m in (0.1, 0.7, 0.999):
        noisy, x, target, denoising = targets(simulator, m, 200_000)
        exact = simulator.diffused_score(noisy[:300], m, x[:300])
        exact = exact[torch.arange(300), torch.arange(300)]
        # What remains is the error of J, estimated from 200,000 pairs.
        left = (target[:300] - exact).square().mean().sqrt()
        assert left < 0.2 * (-denoising[:300] - exact).square().mean().sqrt()


@pytest.mark.parametrize("simulator", [SignFlip(0.7), GaussianMixtureLikelihood(2)])
@pytest.mark.parametrize("m", [0.3, 0.8, 0.99])
def test_the_target_is_unbiased(simulator, m):
    """Its mean over pairs, weighted by functions of z_t and x, is the score's."""

    def largest_z(flip):
        noisy, x, target, _ = targets(simulator, m, 20_000, flip)
        rows = torch.arange(1000)
        exact = torch.cat(
            [
                simulator.diffused_score(noisy[part], m, x[part])[rows, rows]
                for part in torch.arange(20_000).split(1000)
            ]
        )
        tests = torch.stack([noisy[:, 0].tanh(), x[:, 0].tanh(), (noisy * x).sum(1)])
        products = tests[:, :, None] * (target - exact)
        error = products.std(1) / 20_000**0.5
        return (products.mean(1) / error).abs().max()

    torch.manual_seed(3)
    assert largest_z(1.0) < 4.0
    assert largest_z(-1.0) > 6.0


def test_the_target_at_both_ends():
    g, known = torch.randn(50, 2), torch.ones(50, dtype=torch.bool)
    mixed, noise = MixedTarget.fit(g, known), torch.randn(50, 2)
    one, tiny = torch.ones(50, 1), torch.full((50, 1), 1e-4)
    assert torch.allclose(mixed(g, known, noise, one, tiny), g, atol=1e-2)
    assert torch.allclose(mixed(g, known, noise, tiny, one), -noise, atol=1e-2)
    none = torch.zeros_like(known)
    assert torch.equal(mixed(g, none, noise, one, tiny), -noise / tiny)


def joint_targets(m, latent_sd, num_pairs=20_000, flip=1.0):
    """As `targets`, of one parameter, with noise of latent variables in the scores."""
    simulator = SignFlip(0.7)
    theta = simulator.prior.sample((num_pairs,)).double()
    x = simulator(theta)
    exact = simulator.score(theta, x) - theta
    g = flip * (exact + latent_sd * torch.randn_like(theta))
    known = torch.ones(num_pairs, dtype=torch.bool)
    mixed = MixedTarget.fit(g, known, least_signal(theta, x))
    noise, level = torch.randn_like(theta), torch.full((num_pairs, 1), m).double()
    s = (1 - level**2).sqrt()
    return simulator, level * theta + s * noise, x, mixed(g, known, noise, level, s)


@pytest.mark.parametrize("m", [0.3, 0.8, 0.99])
def test_the_target_of_joint_scores_is_unbiased(m):
    def largest_z(flip):
        simulator, noisy, x, target = joint_targets(m, 3.0, flip=flip)
        rows = torch.arange(1000)
        exact = torch.cat(
            [
                simulator.diffused_score(noisy[part], m, x[part])[rows, rows]
                for part in torch.arange(20_000).split(1000)
            ]
        )
        tests = torch.stack([noisy[:, 0].tanh(), x[:, 0].tanh(), (noisy * x).sum(1)])
        products = tests[:, :, None] * (target - exact)
        return (products.mean(1) / products.std(1) * 20_000**0.5).abs().max()

    torch.manual_seed(3)
    assert largest_z(1.0) < 4.0
    if m > 0.5:  # where the scores have weight
        assert largest_z(-1.0) > 6.0


@pytest.mark.parametrize("level", [0.05, 0.5, 2.0])
def test_the_weight_of_joint_scores_has_the_least_variance_in_training(level):
    """The residual variance of a Gaussian posterior, by the module's assumption."""
    signal, latent, fresh = 3.0, 5.0, mixed_target.FRESH
    m = torch.tensor(1 / (1 + level**2) ** 0.5)
    s = level * m

    def variance(weight):
        v = 1 / (signal + (m / s) ** 2)  # of z given z_t and x
        slope = (1 - weight) * m / s**2 - weight * signal / m
        kept = signal + fresh * (m / s) ** 2  # z is the same, e is averaged
        return (slope * v) ** 2 * kept + weight**2 * latent / m**2

    target = MixedTarget(
        torch.tensor([signal + latent]), torch.eye(1), torch.tensor([signal])
    )
    one, known = torch.ones(1, 1), torch.ones(1, dtype=torch.bool)
    weight = m * target(one, known, 0 * one, m[None, None], s[None, None])
    weights = torch.linspace(0, 1, 1001)
    assert abs(weight - weights[variance(weights).argmin()]) < 2e-3
    exact = MixedTarget(torch.tensor([signal + latent]), torch.eye(1))
    assert (
        variance(m * exact(one, known, 0 * one, m[None, None], s[None, None]))
        > 1.01 * variance(weight)
    ) == (level < 1)


def test_the_signal_of_joint_scores_is_bounded_by_a_regression():
    theta = torch.randn(20_000, 2)
    x = theta + 0.5 * torch.randn_like(theta)
    bound = least_signal(theta, x)  # Gaussian: the posterior's precision, 1 + 4
    torch.testing.assert_close(bound.float(), 5 * torch.eye(2), rtol=0.1, atol=0.2)
    nothing = torch.eye(2)
    for other in (torch.randn_like(x), torch.randn(20_000, 1500)):
        found = least_signal(theta, other).float()
        torch.testing.assert_close(found, nothing, rtol=0.1, atol=0.1)
    g = 10 * torch.randn(500, 2)
    target = MixedTarget.fit(g, torch.ones(500, dtype=torch.bool), bound)
    assert target.signal is not None and (target.signal < target.eigenvalues).all()


def data(simulator, num_simulations):
    theta = simulator.prior.sample((num_simulations,))
    x = simulator(theta)
    return theta, x, simulator.score(theta, x)


def relative_error(estimator, simulator, t=0.1):
    """Root mean squared error of the network's excess over the prior's score."""
    torch.manual_seed(99)
    theta, x, _ = data(simulator, 200)
    m = estimator.schedule.mean(t)
    noisy = m * theta + (1 - m**2) ** 0.5 * torch.randn_like(theta)
    rows = torch.arange(200)
    exact = simulator.diffused_score(noisy, m, x)[rows, rows]
    with torch.no_grad():
        found = estimator(noisy, x, torch.full((200,), t))
    return ((found - exact).norm() / (exact + noisy).norm()).item()


def test_scores_improve_the_network_and_flipped_ones_do_not():
    simulator, errors = GaussianGaussian(2), {}
    torch.manual_seed(0)
    theta, x, score = data(simulator, 500)
    for name, factor in {"none": None, "scores": 1.0, "flipped": -1.0}.items():
        torch.manual_seed(1)
        trainer = ScoreNPE(simulator.prior, num_hidden=32, **QUIET)
        given = None if factor is None else factor * score
        trainer.append_simulations(theta, x, score=given, score_check=False)
        estimator = trainer.train(num_steps=400, stop_after_epochs=10**6)
        errors[name] = relative_error(estimator, simulator)
    assert errors["scores"] < 0.5 * errors["none"]
    assert errors["flipped"] > errors["none"]


def small_trainer(**options):
    simulator = GaussianGaussian(2)
    theta, x, score = data(simulator, 120)
    trainer = ScoreNPE(simulator.prior, num_hidden=16, **QUIET, **options)
    return trainer, theta, x, score


SILENT = {"show_progress_bars": False}
FAST = {"num_steps": 6, "training_batch_size": 50}


def test_networks_that_saw_scores_are_polished():
    trainer, theta, x, score = small_trainer()
    plain, *_ = small_trainer()
    trainer.append_simulations(theta, x, score=score).train(**FAST)
    plain.append_simulations(theta, x).train(**FAST)
    for one, evaluations in ((trainer, (48,)), (plain, range(25, 52))):
        posterior = pickle.loads(pickle.dumps(one.build_posterior()))
        posterior.sample((20,), x=x[:3], **SILENT)
        found = posterior.diagnostics[0]
        assert found.evaluations in evaluations
        assert found.circulation is None or (
            (found.acceptance is not None) == (found.circulation <= LARGEST_TRUSTED)
        )
    posterior = trainer.build_posterior()
    for options in ({"x": x[:1]}, {"x": x[:3], "minibatch": 2}):
        posterior.sample((20,), **options, **SILENT)
        assert posterior.diagnostics[0].acceptance is None
    posterior.vector_field_estimator.net.has_walls = True
    posterior.sample((20,), x=x[:3], **SILENT)
    assert posterior.diagnostics[0].circulation is not None


def test_one_parameter_between_walls_is_polished_if_scores_were_given():
    """There every function is a gradient, so circulation says nothing."""
    simulator = BoundedLinearGaussian(1)
    theta = simulator.prior.sample((200,))
    x = simulator(theta)
    score = simulator.score(theta, x)
    trainer = ScoreNPE(simulator.prior, num_hidden=8, **QUIET)
    trainer.append_simulations(theta, x, score=score).train(**FAST)
    posterior = trainer.build_posterior()
    posterior.sample((20,), x=x[:3], **SILENT)
    assert posterior.vector_field_estimator.net.has_walls
    assert posterior.diagnostics[0].acceptance is not None


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_centring_with_scores_sees_errors_of_the_network_and_no_noise(shift):
    """A network that is exact up to a shift: its mean error is that shift."""
    torch.manual_seed(0)
    simulator = GaussianGaussian(3)
    prior, theta = simulator.prior, simulator.prior.sample((300,))
    x = simulator(theta)
    coordinates = normal_coordinates(prior)
    g = posterior_score(simulator.score(theta, x), theta, coordinates, prior)
    exact = simulator._single_covariance[0].inverse().float()
    values, vectors = torch.linalg.eigh(exact)  # J of the Gaussian posterior
    trainer = ScoreNPE(prior, **QUIET).append_simulations(theta, x)
    estimator = trainer.train(num_steps=1)

    def excess(z, features, m, s):
        score = simulator.diffused_score(z, float(m), x)
        return score.diagonal(dim1=0, dim2=1).mT + z + shift

    estimator.net.pairs = excess
    found = {}
    for name, scores in (
        ("plain", None),
        ("scores", (MixedTarget(values, vectors), g)),
    ):
        estimator.set_anchors(theta, x, scores)
        found[name] = estimator.centre(0.3)
    truth = torch.zeros(4, 3)
    truth[0] = shift
    assert (found["scores"] - truth).abs().max() < 0.01
    assert (found["plain"] - truth).abs().max() > 0.05  # of 300 draws of x
    trainer = ScoreNPE(prior, **QUIET)
    trainer.append_simulations(theta, x, score=simulator.score(theta, x))
    assert trainer.train(num_steps=1).anchor_g is not None


def test_scores_stay_beside_their_rows(monkeypatch):
    """Also where the host repeats a validation batch, and drops a failed row."""
    trainer, theta, x, score = small_trainer()
    x[7], score[11, 0] = torch.nan, torch.nan
    with pytest.warns(ScoreWarning, match="1 of 238"):
        trainer.append_simulations(theta, x, score=score)
    expected = {
        tuple(row.tolist()): g for row, g in zip(theta, score - theta, strict=True)
    }
    seen = []
    original = FactorizedScoreEstimator.loss

    def loss(self, input, condition, times=None, **kwargs):
        _, g, known = self.batch_scores
        assert len(g) == len(input) == len(known)
        for row, found, ok in zip(input, g, known, strict=True):
            want = expected[tuple(row.tolist())]
            assert bool(ok) == bool(want.isfinite().all())
            assert not ok or torch.allclose(found, want, atol=1e-5)
        seen.append(times is not None)
        return original(self, input, condition, times, **kwargs)

    monkeypatch.setattr(FactorizedScoreEstimator, "loss", loss)
    trainer.train(**FAST)
    assert True in seen and False in seen
    assert trainer._neural_net.batch_scores is None


def test_resumed_pickled_and_function_scores(tmp_path):
    trainer, theta, x, score = small_trainer()
    trainer.append_simulations(theta, x, score=score).train(**FAST)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(trainer)))
    twin.train(resume_training=True, **FAST)
    simulator = GaussianGaussian(2)
    other = small_trainer(score_fn=simulator.score)[0]
    other.append_simulations(theta, x)
    assert torch.allclose(other._score_roundwise[0], score)


def test_networks_of_the_host_take_scores():
    trainer, theta, x, score = small_trainer(vf_estimator="mlp")
    trainer.append_simulations(theta, x, score=score)
    posterior = trainer.train(**FAST) and trainer.build_posterior()
    assert posterior.sample((5,), x=x[:2], **QUIET).shape == (5, 2)


def test_wrong_scores_are_refused_before_anything_is_stored():
    trainer, theta, x, score = small_trainer()
    with pytest.raises(InvalidInputError, match="shape of theta"):
        trainer.append_simulations(theta, x, score=score[:5])
    with pytest.raises(InvalidInputError, match="score_kind"):
        trainer.append_simulations(theta, x, score=score, score_kind="noisy")
    assert not trainer._theta_roundwise
    with pytest.warns(ScoreWarning, match="sign"):
        theta, x, score = data(GaussianGaussian(2), 500)
        trainer.append_simulations(theta, x, score=-score)


class Stubborn:
    """A mixture whose density is computed outside of torch."""

    def __init__(self):
        self._prior = PRIORS["transformed"]
        self.support, self.event_shape = self._prior.support, self._prior.event_shape
        self.batch_shape, self.mean = self._prior.batch_shape, self._prior.mean
        self.stddev = self._prior.stddev

    def sample(self, shape=()):
        return self._prior.sample(shape)

    def log_prob(self, theta):
        return self._prior.log_prob(theta.detach())


def test_a_density_without_gradient_is_refused():
    theta = PRIORS["transformed"].sample((9,))
    coordinates = normal_coordinates(PRIORS["transformed"])
    with pytest.raises(InvalidInputError, match="differentiated"):
        posterior_score(theta, theta, coordinates, Stubborn())


@pytest.mark.parametrize("embedding", [None, nn.Flatten()])
def test_small_levels_weigh_by_the_variance_that_is_known(embedding):
    theta = torch.randn(200, 2)
    x = theta + 0.5 * torch.randn(200, 2)
    net = PosteriorScoreNet(theta, x, embedding_net=embedding, num_hidden=8)
    m, s, precision = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([10.0, 0.1])
    weight = net.mixed_loss_weight(m, s, precision)[0]
    expected = net.rho[0] ** 2  # residual variance of the regression: about .2
    if embedding is not None:  # no regression: the prior's variance, about 1
        assert (expected > 0.7).all()
        expected = torch.stack([torch.tensor(0.1), expected[1]])
    assert torch.allclose(weight, expected)
