"""The mixture of Gaussians that may take a share of ScoreNPE's score."""

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sbi_scoreaug.benchmarks.score_npe_metrics import Reference
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe import posterior as posterior_module
from sbi_scoreaug.score_npe.mixture import ConditionalMixture, fewest
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.simulators import (
    BoundedLinearGaussian,
    GaussianGaussian,
    GaussianMixtureLikelihood,
    SignFlip,
)

QUIET = {"show_progress_bars": False}
LEVELS = [(0.9995, 0.03), (0.6, 0.8), (0.08, 0.9968)]
FLIP = SignFlip(0.7)


def joint(weight, mean, covariance):
    components = MultivariateNormal(mean, covariance)
    return MixtureSameFamily(Categorical(weight), components)


@pytest.fixture(scope="module")
def fitted():
    """A mixture fitted to a joint density of two correlated Gaussians, and that."""
    torch.manual_seed(0)
    root = torch.randn(2, 4, 4) / 2
    covariance = root @ root.mT + 0.2 * torch.eye(4)
    exact = joint(torch.tensor([0.3, 0.7]), torch.randn(2, 4), covariance)
    rows = exact.sample((50_000,))
    mixture = ConditionalMixture()
    assert mixture.fit(rows[:, :2], rows[:, 2:])
    return mixture, exact


def conditional(exact, m, s, x):
    """The exact p_t(z_t|x) of one x."""
    mean, covariance = exact.component_distribution.mean, exact.component_distribution
    covariance = covariance.covariance_matrix
    gain = torch.linalg.solve(covariance[:, 2:, 2:], covariance[:, 2:, :2]).mT
    of_x = MultivariateNormal(mean[:, 2:], covariance[:, 2:, 2:])
    weight = (exact.mixture_distribution.logits + of_x.log_prob(x)).softmax(0)
    means = mean[:, :2] + torch.einsum("kij,kj->ki", gain, x - mean[:, 2:])
    inner = covariance[:, :2, :2] - gain @ covariance[:, 2:, :2]
    return joint(weight, m * means, m**2 * inner + s**2 * torch.eye(2))


def test_it_finds_the_posterior_of_a_mixture(fitted):
    mixture, exact = fitted
    rows = exact.sample((300,))
    z, x = rows[:, :2], rows[:, 2:]
    expected = [
        conditional(exact, 1.0, 0.0, row).log_prob(point)
        for point, row in zip(z, x, strict=True)
    ]
    error = (mixture.log_prob(z, x) - torch.stack(expected)).abs()
    assert len(mixture.offset) == 2
    assert error.mean() < 0.02
    assert (mixture.log_prob(z, x.flip(0)) - torch.stack(expected)).abs().mean() > 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_its_diffused_score_is_the_gradient_of_the_diffused_density(fitted, level):
    mixture, exact = fitted
    m, s = (torch.tensor([[value]]) for value in level)
    rows = exact.sample((50,))
    z = (m * rows[:, :2] + s * torch.randn(50, 2)).requires_grad_()
    x = rows[:, 2:]
    log_prob = [
        conditional(exact, *level, row).log_prob(point)
        for point, row in zip(z, x, strict=True)
    ]
    expected = grad(torch.stack(log_prob).sum(), z)[0] + z
    found = mixture.excess(z, mixture.embed(x), m, s)
    scale = expected.square().mean().sqrt()
    assert (found - expected).square().mean().sqrt() < 0.06 * scale
    every = mixture.excess(z[:, None], mixture.embed(x), m, s)  # all pairs
    torch.testing.assert_close(every.diagonal(dim1=0, dim2=1).mT, found)


@pytest.mark.parametrize("components", [2, 3])
def test_as_many_components_as_pay(components):
    """Regressions of slopes 2, 0, -2 that follow each other along x."""
    torch.manual_seed(1)
    k = torch.arange(6000) % components
    x = 3 * k + torch.randn(6000)
    z = 2 * (1 - k) * (x - 3 * k) + 0.3 * torch.randn(6000)
    mixture = ConditionalMixture()
    mixture.fit(z[:, None], x[:, None])
    assert len(mixture.offset) == components
    assert (mixture.variance - 0.09).abs().max() < 0.02


def test_the_fewest_within_one_standard_error():
    torch.manual_seed(0)
    first, second = torch.randn(2, 400)  # standard errors of .05
    first, second = first - first.mean(), second - second.mean()
    assert fewest([torch.zeros(400), 0.03 + first, 0.04 + second]) == 1
    assert fewest([torch.zeros(400), 0.2 + first, 0.21 + second]) == 2
    assert fewest([torch.zeros(400), 0.2 + first, 0.5 + second]) == 3
    assert fewest([torch.zeros(400), torch.full((400,), torch.nan)]) == 1


@pytest.mark.parametrize("case", ["few", "wide", "infinite"])
def test_where_it_cannot_be_fitted_it_stays_empty(case):
    z, x = torch.randn(200, 2), torch.randn(200, 3)
    if case == "few":
        z, x = z[:10], x[:10]
    if case == "wide":
        x = torch.randn(200, 60)
    if case == "infinite":
        x[0, 0] = torch.inf
    mixture = ConditionalMixture()
    assert not mixture.fit(z, x)
    assert mixture.share is None and mixture.embed(x).shape == (len(x), 0)


def test_constant_features_do_no_harm():
    z = torch.randn(500, 2)
    x = torch.cat([z + 0.1 * torch.randn(500, 2), torch.ones(500, 1)], -1)
    mixture = ConditionalMixture()
    assert mixture.fit(z, x)
    assert mixture.log_prob(z, x).mean() > 0.5


def trained(simulator, num_simulations=1000, embedding_net=None, **options):
    torch.manual_seed(0)
    theta = simulator.prior.sample((num_simulations,))
    x = simulator(theta)
    network = {"num_hidden": 16, "num_blocks": 1, "embedding_net": embedding_net}
    trainer = ScoreNPE(simulator.prior, **network, **QUIET)
    torch.manual_seed(0)
    estimator = trainer.append_simulations(theta, x).train(
        **{"num_steps": 100} | options
    )
    return trainer, estimator


def share_of(estimator):
    share = estimator.net.mixture.share
    return 0.0 if share is None else float(share)


def validation_loss(trainer, estimator, share):
    theta, x, _ = trainer.get_simulations()
    theta, x = (part[trainer.val_indices].repeat(40, 1) for part in (theta, x))
    torch.manual_seed(0)
    times = estimator.train_schedule(len(theta))
    estimator.net.mixture.share.fill_(share)
    with torch.no_grad():
        return float(estimator.loss(theta, x, times).mean())


def test_the_share_is_that_of_the_least_validation_loss():
    trainer, estimator = trained(FLIP)
    share = share_of(estimator)
    assert share > 0.5  # the network has hardly been trained
    losses = [validation_loss(trainer, estimator, s) for s in (share, 0.0, 0.4)]
    assert losses[0] < min(losses[1:])


def test_what_no_mixture_is_near_is_left_to_the_network():
    """The posterior has a sharp edge where theta ends: many Gaussians, no few."""
    torch.manual_seed(0)
    prior = BoundedLinearGaussian().prior
    theta = prior.sample((4000,))
    x = torch.cat([(6 * theta).sin(), theta.prod(1, keepdim=True)], -1)
    trainer = ScoreNPE(prior, num_hidden=32, **QUIET).append_simulations(theta, x)
    assert share_of(trainer.train(num_steps=1500)) < 0.3


@pytest.mark.parametrize("simulator", [GaussianGaussian(3), FLIP])
def test_the_network_is_the_same_with_and_without(simulator):
    """Fitting takes no random number from training; `mixture=False` leaves it out."""
    _, with_it = trained(simulator)
    drawn = torch.rand(1)
    _, without = trained(simulator, mixture=False)
    assert torch.equal(drawn, torch.rand(1))
    assert share_of(without) == 0
    assert share_of(with_it) > 0 or simulator is not FLIP
    for first, second in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(first, second)


def test_training_goes_on_with_the_network_alone():
    trainer, _ = trained(FLIP)
    shares = []
    original = trainer._get_losses

    def get_losses(*args, **kwargs):
        shares.append(trainer._neural_net.net.mixture.share)
        return original(*args, **kwargs)

    trainer._get_losses = get_losses
    estimator = trainer.train(num_steps=20, resume_training=True)
    assert shares and all(share is None for share in shares)
    assert share_of(estimator) > 0


def test_after_an_interruption_the_network_samples_alone():
    """What was kept beside the network belongs to the training before."""
    trainer, _ = trained(FLIP)
    earlier = trainer.build_posterior()
    original = trainer._get_losses

    def get_losses(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    trainer._get_losses = get_losses
    with pytest.raises(KeyboardInterrupt):
        trainer.train(num_steps=20, resume_training=True)
    x = FLIP(torch.ones(3, 2))
    for posterior in (trainer.build_posterior(), earlier):
        assert posterior.sample((4,), x=x, **QUIET).isfinite().all()
    assert trainer._neural_net.centre(0.5) is None
    kept = earlier.vector_field_estimator
    assert share_of(kept) > 0 and kept.centre(0.5) is not None


def test_jumps_weigh_the_modes_of_a_mixture():
    """The descent alone puts too many particles where the posterior is wide."""
    simulator = GaussianMixtureLikelihood(10)
    trainer, estimator = trained(simulator, 12_000, num_steps=1)
    assert len(estimator.net.mixture.offset) == 2
    estimator.net.mixture.share.fill_(1.0)
    posterior, errors = trainer.build_posterior(estimator), []
    for seed in range(3000, 3006):
        torch.manual_seed(seed)
        x = simulator(simulator.prior.sample((1,)).expand(2, -1)).float()
        reference = Reference(simulator.reference_samples(1000, x.double()))
        drawn = (
            posterior.sample((500,), x=x, **options, **QUIET)
            for options in ({}, {"jump": False})
        )
        errors.append([reference.errors(one)["mmd2"] for one in drawn])
    jumped, stayed = torch.tensor(errors).mean(0)
    assert jumped < 0.004
    assert stayed > 2 * jumped


def test_state_dicts_hold_what_was_fitted_after_training():
    trainer, estimator = trained(FLIP)
    other, bare = trained(FLIP, num_steps=2, mixture=False)
    bare.load_state_dict(estimator.state_dict())
    x, drawn = FLIP(torch.ones(3, 2)), []
    for one in (trainer, other):
        torch.manual_seed(0)
        drawn.append(one.build_posterior().sample((50,), x=x, **QUIET))
    assert torch.equal(*drawn) and share_of(bare) > 0
    without = {k: v for k, v in estimator.state_dict().items() if "mixture" not in k}
    bare.load_state_dict(without)
    assert bare.net.mixture.share is None and bare.anchor_z is not None


def test_embedded_data_are_fitted_too():
    _, estimator = trained(FLIP, embedding_net=nn.Sequential(nn.Linear(2, 3)))
    assert estimator.net.mixture.slope.shape[1] == 3
    assert share_of(estimator) > 0.3


@pytest.mark.parametrize(("share", "leads"), [(0.5, False), (0.7, True)])
def test_samples_are_polished_where_it_leads(share, leads):
    trainer, estimator = trained(FLIP)
    estimator.net.mixture.share.fill_(share)
    posterior = trainer.build_posterior(estimator)
    x = FLIP(FLIP.prior.sample((3,)))
    posterior.sample((20,), x=x, show_progress_bars=False)
    found = posterior.diagnostics[0]
    assert (found.circulation is None) == leads and found.jump_acceptance is None
    assert (found.evaluations == 48) == leads and (found.acceptance or not leads)
    posterior.sample((20,), x=x, show_progress_bars=False, minibatch=2)
    assert posterior.diagnostics[0].acceptance is None


@pytest.mark.parametrize(
    ("share", "num_observations", "jumps"),
    [(0.95, 3, True), (0.8, 3, False), (0.95, 4, False)],
)
def test_modes_are_weighed_in_small_sets_where_it_has_the_score(
    share, num_observations, jumps, monkeypatch
):
    trainer, estimator = trained(FLIP)
    rows = len(estimator.anchor_z) // 9
    monkeypatch.setattr(posterior_module, "ANCHORS_FOR_JUMPS", rows)
    estimator.net.mixture.share.fill_(share)
    posterior = trainer.build_posterior(estimator)
    x = FLIP(FLIP.prior.sample((num_observations,)))
    for num_samples in (1, 20):
        posterior.sample((num_samples,), x=x, **QUIET)
        found = posterior.diagnostics[0]
        assert (found.jump_acceptance is not None) == jumps
        assert found.evaluations == (97 if jumps else 48)
    posterior.sample((20,), x=x, polish=False, **QUIET)
    assert posterior.diagnostics[0].jump_acceptance is None


def test_alone_it_needs_no_network():
    """Where its share is 1, samplers skip the network: the same score."""
    z = torch.randn(400, 2)
    x = z + 0.3 * torch.randn(400, 2)
    net = PosteriorScoreNet(z, x, num_hidden=8)
    nn.init.normal_(net.output[1].weight)
    m, s = torch.tensor([[0.6]]), torch.tensor([[0.8]])
    assert net.mixture.fit(z, x)
    features = net.embed(x)
    with_graph = net.all_pairs(z[:5], features, m, s).detach()
    with torch.no_grad():
        short = net.all_pairs(z[:5], features, m, s)
        net.mixture.share.fill_(0.0)
        network = net.all_pairs(z[:5], features, m, s)
    torch.testing.assert_close(short, with_graph)
    assert (network - short).abs().max() > 0.01
