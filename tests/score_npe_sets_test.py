"""Networks for sets: training, groups, masks, posteriors, and what they refuse."""

import copy
import pickle

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import MultivariateNormal

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.network import MISSING, PosteriorScoreNet
from sbi_scoreaug.simulators import GaussianGaussian

QUIET = {"show_progress_bars": False}


def simulate_sets(simulator, num_sets, size):
    theta = simulator.prior.sample((num_sets,))
    x = simulator(theta.repeat_interleave(size, 0)).reshape(num_sets, size, -1)
    return theta, x


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    simulator = GaussianGaussian(2)
    trainer = ScoreNPE(simulator.prior, num_hidden=32, max_set_size=2, **QUIET)
    trainer.append_simulations(*simulate_sets(simulator, 2000, 2))
    trainer.train(num_steps=500)
    return simulator, trainer


def draw_set(simulator, num_observations, seed=1):
    torch.manual_seed(seed)
    theta = simulator.prior.sample((1,))
    return simulator(theta.expand(num_observations, -1))


@pytest.mark.parametrize("num_observations", [1, 2, 3, 8])
def test_sets_against_the_exact_posterior(trained, num_observations):
    simulator, trainer = trained
    x = draw_set(simulator, num_observations)
    posterior = trainer.build_posterior()
    samples = posterior.sample((1000,), x=x, **QUIET)
    exact = simulator.exact_posterior(x)
    std = exact.variance.sqrt()
    # One network, 2 sets a size: error up to .29 sd, ratio of sd .95 to 1.13.
    assert ((samples.mean(0) - exact.mean) / std).abs().max() < 0.8
    assert ((samples.std(0) / std).log().abs() < 0.25).all()
    fewer = simulator.exact_posterior(x[: -(-num_observations // 3)])
    if num_observations > 2:  # as if groups were single observations
        assert ((samples.std(0) / fewer.variance.sqrt()).log().abs() > 0.25).any()
    diagnostics = posterior.diagnostics[0]
    assert diagnostics.num_observations == num_observations
    assert diagnostics.num_groups == (num_observations + 1) // 2


def test_log_prob_of_groups(trained):
    simulator, trainer = trained
    posterior = trainer.build_posterior()
    for num_observations in (1, 2, 5):
        x = draw_set(simulator, num_observations)
        exact = simulator.exact_posterior(x)
        theta = exact.sample((50,)).float()
        difference = posterior.log_prob(theta, x=x) - exact.log_prob(theta.double())
        assert difference.std() < 0.5
        if num_observations <= 2:  # one group: with its normalisation
            assert abs(difference.mean()) < 0.4
        far = posterior.potential(theta + 3, x=x)
        assert (far < posterior.potential(theta, x=x)).all()


def test_order_within_a_group_does_not_matter(trained):
    simulator, trainer = trained
    estimator = trainer.build_posterior().vector_field_estimator
    x = draw_set(simulator, 2)
    features = estimator.embed(estimator.group(x))
    torch.testing.assert_close(features, estimator.embed(estimator.group(x.flip(0))))
    alone = estimator.embed(estimator.group(x[:1]))
    assert not torch.allclose(features, alone, rtol=0.01)


def test_a_missing_observation_is_not_seen(trained):
    """Features would be huge if padding could be seen."""
    simulator, trainer = trained
    estimator = trainer.build_posterior().vector_field_estimator
    groups = estimator.group(draw_set(simulator, 3))
    assert groups.shape == (2, 2, 2) and (groups[1, 1] == MISSING).all()
    assert estimator.embed(groups).abs().max() < 100
    assert torch.equal(estimator.group(groups), groups)


def test_training_sees_every_size():
    simulator = GaussianGaussian(2)
    trainer = ScoreNPE(simulator.prior, num_hidden=8, max_set_size=4, **QUIET)
    trainer.append_simulations(*simulate_sets(simulator, 200, 4))
    estimator = trainer.train(num_steps=10)
    subsets = estimator._random_subsets(
        torch.zeros(4000, 4, 2), None, torch.arange(4000)
    )
    sizes = (subsets < MISSING).all(-1).sum(1).bincount(minlength=5)
    assert sizes[0] == 0 and (sizes[1:] > 850).all() and (sizes[1:] < 1150).all()
    kept = (subsets < MISSING).all(-1).double().mean(0)
    assert ((kept - 0.625).abs() < 0.05).all()


@pytest.mark.parametrize("num_observations", [1, 2])
@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_samplers_of_the_host_for_one_group(trained, sampler, num_observations):
    simulator, trainer = trained
    posterior = trainer.build_posterior(sample_with=sampler)
    options = {"steps": 50} if sampler == "sde" else {}
    x = draw_set(simulator, num_observations)
    samples = posterior.sample((300,), x=x, **options, **QUIET)
    exact = simulator.exact_posterior(x)
    assert ((samples.mean(0) - exact.mean) / exact.variance.sqrt()).abs().max() < 0.7
    with pytest.raises(InvalidInputError, match="one observation"):
        posterior.sample((3,), x=draw_set(simulator, 3), **QUIET)


def test_shapes_masks_map_and_pickles(trained):
    simulator, trainer = trained
    posterior = trainer.build_posterior().set_default_x(draw_set(simulator, 5))
    assert posterior.sample((3,), **QUIET).shape == (3, 2)
    assert posterior.map(num_iter=20).shape == (1, 2)
    x = torch.randn(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert posterior.sample_batched((4,), x=x, mask=mask, **QUIET).shape == (4, 2, 2)
    assert [d.num_groups for d in posterior.diagnostics] == [2, 1]
    assert posterior.sample_batched((4,), x=x[:, 0], **QUIET).shape == (4, 2, 2)
    theta = torch.zeros(1, 2)
    for twin in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        assert torch.equal(twin.log_prob(theta), posterior.log_prob(theta))
    pickle.loads(pickle.dumps(trainer)).build_posterior()


def test_images_and_boxes():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((200,))
    x = theta[:, None, :, None, None] + 0.1 * torch.randn(200, 3, 2, 4, 4)
    embedding = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 6))
    trainer = ScoreNPE(
        prior, embedding_net=embedding, num_hidden=8, max_set_size=3, **QUIET
    )
    trainer.append_simulations(theta, x).train(num_steps=10)
    posterior = trainer.build_posterior()
    samples = posterior.sample((10,), x=x[0], **QUIET)
    assert prior.support.check(samples).all()
    assert posterior.sample((10,), x=x[0, 0], **QUIET).shape == (10, 2)
    assert posterior.log_prob(samples, x=x[:2].flatten(0, 1)).isfinite().all()


def test_linear_predictions_follow_the_set_size():
    """The slope towards the mean of k observations grows with k."""
    simulator = GaussianGaussian(2)
    theta, x = simulate_sets(simulator, 5000, 3)
    net = PosteriorScoreNet(theta, x, num_hidden=8, max_set_size=3)
    slopes = net.slope.diagonal(dim1=-2, dim2=-1) / net.scale
    for k in (1, 2, 3):
        # Posterior mean k / (k + variance) times the mean of k, noise .6 and 1.4.
        expected = k / (k + torch.tensor([0.6, 1.4]))
        torch.testing.assert_close(slopes[k - 1], expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("size", [0, 3])
def test_bad_sizes(size):
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    if size == 0:
        with pytest.raises(InvalidInputError, match="max_set_size"):
            ScoreNPE(prior, max_set_size=size, **QUIET)
        return
    with pytest.raises(InvalidInputError, match="max_set_size"):
        ScoreNPE(prior, "mlp", max_set_size=size, **QUIET)
    trainer = ScoreNPE(prior, max_set_size=size, **QUIET)
    for x in (torch.zeros(10, 2), torch.zeros(10, 2, 2), torch.zeros(10, 3)):
        with pytest.raises(InvalidInputError, match="Simulate 3 times"):
            trainer.append_simulations(torch.zeros(10, 2), x)
