"""ScoreAugmentedNPE: rounds, priors with edges, and what a score is worth there."""

import copy
import statistics
import warnings

import pytest
import torch
from nle_test import batches_seen, scored
from registry import (
    SIMULATOR,
    TRAINERS,
    new_trainer,
    score_error,
    simulations,
    train,
    weights_of,
)
from sbi.inference import NPE_C
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform, MultipleIndependent
from torch import nn
from torch.distributions import Distribution, Exponential, MultivariateNormal, Normal

from sbi_scoreaug import ScoreAugmentedNPE
from sbi_scoreaug.benchmarks.metrics import posterior_errors
from sbi_scoreaug.errors import InvalidInputError, ScoreWarning
from sbi_scoreaug.score_augmented.edges import EDGE, Support, prior_gradient
from sbi_scoreaug.simulators import GaussianProcessField, NormalLocationScale

BOX = BoxUniform(-torch.ones(2), torch.ones(2))


def proposal_of(trainer, x_o=None):
    """The trainer's posterior, as sbi wants a proposal."""
    x_o = torch.zeros(1, 2) if x_o is None else x_o
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.build_posterior().set_default_x(x_o)


def draw(proposal, num_simulations):
    theta = proposal.sample((num_simulations,), show_progress_bars=False)
    x = SIMULATOR(theta)
    return theta, x, SIMULATOR.score(theta, x)


# --- Rounds ------------------------------------------------------------------------


def test_it_is_npe_also_over_two_atomic_rounds():
    results = []
    for cls in TRAINERS["NPE_C"]:
        torch.manual_seed(0)
        theta, x, score = simulations()
        own, zero = (
            ({}, {}) if cls is NPE_C else ({"score": score}, {"score_weighting": 0})
        )
        trainer = new_trainer(cls).append_simulations(theta, x, **own)
        train(trainer, max_num_epochs=2, **zero)
        train(trainer, seed=2, max_num_epochs=4, resume_training=True, **zero)
        torch.manual_seed(3)
        proposal = proposal_of(trainer)
        theta, x, score = draw(proposal, 100)
        own = {} if cls is NPE_C else {"score": score}
        trainer.append_simulations(theta, x, proposal=proposal, **own)
        train(trainer, seed=4, max_num_epochs=1, discard_prior_samples=True, **zero)
        results.append(weights_of(trainer._neural_net))
    assert torch.equal(*results)


@pytest.mark.parametrize("discard", [False, True])
def test_an_atomic_round_matches_the_posterior_not_the_proposals(discard):
    trainer = scored("NPE_C", 300)
    train(trainer, max_num_epochs=3, learning_rate=5e-3)
    proposal = proposal_of(trainer)
    theta, x, score = draw(proposal, 200)
    trainer.append_simulations(theta, x, proposal=proposal, score=score)
    network = train(
        trainer,
        max_num_epochs=2,
        learning_rate=3e-3,
        discard_prior_samples=discard,
        num_atoms=4,
    )
    assert len(trainer.train_indices) + len(trainer.val_indices) == (
        200 if discard else 500
    )
    found = trainer.surrogate_score(theta, x)
    error = (found - score).square().sum() / score.square().sum()
    assert error < 0.15 and score_error(network, name="NPE_C") < 0.5


def test_mixture_densities_are_trained_by_the_non_atomic_loss_too():
    build = posterior_nn("mdn", hidden_features=16, num_components=2)
    trainer = scored("NPE_C", 300, classifier=build)
    train(trainer, max_num_epochs=3, learning_rate=5e-3)
    proposal = proposal_of(trainer)
    theta, x, score = draw(proposal, 200)
    trainer.append_simulations(theta, x, proposal=proposal, score=score)
    train(trainer, max_num_epochs=2, learning_rate=3e-3)
    assert trainer.use_non_atomic_loss
    error = (trainer.surrogate_score(theta, x) - score).square().sum()
    assert error < 0.15 * score.square().sum()


def test_under_the_first_rounds_loss_scores_of_a_proposal_are_left_out():
    trainer = scored("NPE_C", 100)
    train(trainer, max_num_epochs=1)
    proposal = proposal_of(trainer)
    theta, x, score = draw(proposal, 100)
    trainer.append_simulations(theta, x, proposal=proposal, score=score)
    with pytest.warns(ScoreWarning, match="scores of 100 simulations"):
        batches = batches_seen(trainer, force_first_round_loss=True)
    for _, (_, _, from_prior, score, mask, *_), _ in batches:
        assert torch.equal(mask, from_prior.bool().reshape(-1, 1).expand_as(mask))
        assert (score[~mask] == 0).all()


def test_a_calibration_kernel_weights_the_hosts_loss_only():
    trainer = scored("NPE_C")
    batch, loss_args = batches_seen(trainer)[0][1:]
    plain = trainer._surrogate_gradient(*batch[:2])
    for factor in (1.0, 0.5):
        args = copy.copy(loss_args["loss_args"])
        object.__setattr__(
            args, "calibration_kernel", lambda x, f=factor: f * torch.ones(len(x))
        )
        trainer._get_losses(batch[:3], args)
        assert (trainer._joint is not None) == (factor == 1.0)
        found = trainer._surrogate_gradient(*batch[:2])
        assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4)


# --- The prior ---------------------------------------------------------------------


def test_residuals_fade_out_towards_every_finite_edge():
    prior = MultipleIndependent(
        [
            BoxUniform(torch.zeros(1), torch.tensor([10.0])),
            Exponential(torch.ones(1)),
            Normal(torch.zeros(1), torch.ones(1)),
        ]
    )
    theta = prior.sample((4000,))
    support = Support(prior, theta)
    depth = 4 * theta[:, 1].std() * EDGE
    probes = torch.tensor([[0.0, 0.0, -50.0], [0.5, 1e-9, 0.0], [9.75, 3.0, 50.0]])
    probes[1, 1] = depth / 2
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 1.0], [0.25, 1.0, 1.0]])
    assert torch.allclose(support.fade(probes), expected, atol=1e-3)
    assert support.contains(probes).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "prior",
    [
        MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        MultipleIndependent([Exponential(torch.ones(1)), Normal(*torch.ones(2, 1))]),
    ],
    ids=["Gaussian", "half-line"],
)
def test_the_priors_gradient_is_that_of_finite_differences(prior):
    theta = prior.sample((20,))
    inside = torch.arange(20) != 3
    found = prior_gradient(prior, theta, inside)
    for k in range(2):
        step = torch.zeros(2)
        step[k] = 1e-3
        numeric = (prior.log_prob(theta + step) - prior.log_prob(theta - step)) / 2e-3
        assert torch.allclose(found[inside, k], numeric[inside], atol=2e-3)
    assert (found[3] == 0).all()


def test_rows_outside_the_support_are_left_out():
    theta, x, score = simulations()
    trainer = new_trainer(ScoreAugmentedNPE, prior=BOX)
    trainer.append_simulations(theta, x, score=score, score_check=False)
    inside = (theta.abs() < 1).all(1)
    assert 0 < inside.sum() < 200
    for _, batch, _ in batches_seen(trainer):
        rows = (batch[0].abs() < 1).all(1)
        assert torch.equal(batch[4], rows.unsqueeze(1).expand(-1, 2))
    assert trainer._whitening.isfinite().all()


def test_without_any_row_inside_it_is_the_host():
    theta, x, score = simulations()
    trainer = new_trainer(ScoreAugmentedNPE, prior=BOX)
    trainer.append_simulations(theta + 50, x, score=score, score_check=False)
    assert all(len(batch) == 3 for _, batch, _ in batches_seen(trainer))


class Opaque(Distribution):
    """A prior written in numpy, of which only values are known."""

    def __init__(self):
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)
        self._normal = SIMULATOR.prior

    @property
    def support(self):
        return self._normal.support

    def sample(self, sample_shape=()):
        return self._normal.sample(sample_shape)

    def log_prob(self, value):
        return torch.from_numpy(self._normal.log_prob(value.detach()).numpy())


@pytest.mark.parametrize(
    ("prior", "word"), [(None, "got none"), (Opaque(), "Opaque")], ids=["none", "numpy"]
)
def test_a_prior_without_gradient_is_refused_before_anything_is_stored(prior, word):
    theta, x, score = simulations(60)
    trainer = new_trainer(ScoreAugmentedNPE, prior=prior)
    with pytest.raises(InvalidInputError, match=word) as caught:
        trainer.append_simulations(theta, x, score=score)
    assert "ScoreAugmentedNLE" in str(caught.value)
    assert trainer._theta_roundwise == [] == trainer._score_roundwise
    trainer.append_simulations(theta, x)
    train(trainer, max_num_epochs=1)


def test_the_surrogate_score_needs_the_priors_gradient():
    theta, x, _ = simulations(60)
    trainer = new_trainer(ScoreAugmentedNPE, prior=None).append_simulations(theta, x)
    train(trainer, max_num_epochs=1)
    with pytest.raises(InvalidInputError, match="prior"):
        trainer.surrogate_score(theta, x)


# --- What scores are worth ---------------------------------------------------------


class Convolution(nn.Module):
    """A small embedding of 8 x 8 images: with few simulations it is what limits."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.net(x.unsqueeze(1))


def mean_kl(simulator, build, with_scores, seed, num_steps=1000):
    """KL in nats over 30 observations, 1000 simulations, equal numbers of steps."""
    torch.manual_seed(seed)
    theta, x, score = simulations(1000, simulator)
    x_o = simulator(simulator.prior.sample((30,)))
    own = {"score": score} if with_scores else {}
    trainer = new_trainer(ScoreAugmentedNPE, prior=simulator.prior, classifier=build())
    trainer.append_simulations(theta, x, **own)
    epochs = num_steps // (52 if with_scores else 4)
    network = train(
        trainer,
        seed=seed + 1000,
        max_num_epochs=epochs,
        stop_after_epochs=epochs,
        learning_rate=1e-3,
    )

    def log_posterior(x_o):
        @torch.no_grad()
        def evaluate(theta):
            return network.log_prob(theta.unsqueeze(1), x_o.unsqueeze(0))[:, 0]

        return evaluate

    return statistics.mean(
        posterior_errors(simulator.exact_posterior(row), log_posterior(row))[0]
        for row in x_o
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_do_not_hurt_where_an_embedding_limits_the_accuracy(seed):
    simulator = GaussianProcessField(grid_size=8)

    def build():
        return posterior_nn("maf", embedding_net=Convolution(), z_score_x="none")

    with_scores, plain = (
        mean_kl(simulator, build, given, seed) for given in (True, False)
    )
    assert with_scores < plain


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_do_not_hurt_where_a_box_cuts_the_posterior(seed):
    simulator = NormalLocationScale(num_values=5)
    with_scores, plain = (
        mean_kl(simulator, lambda: posterior_nn("maf"), given, seed)
        for given in (True, False)
    )
    assert with_scores < plain
