"""Life cycle of ScoreNPE: train, build, sample sets, save, and refuse."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from sbi.diagnostics import check_sbc, run_sbc, run_tarp
from sbi.inference import NPSE, EnsemblePosterior
from sbi.neural_nets.factory import posterior_score_nn
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import MultivariateNormal

from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.network import PosteriorScoreNet
from sbi_scoreaug.simulators import BoundedLinearGaussian, GaussianGaussian

QUIET = {"show_progress_bars": False}
FAST = {"num_steps": 20}


def make_trainer(prior=None, **options):
    prior = prior or MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((300,))
    x = theta + 0.5 * torch.randn_like(theta)
    options = {"num_hidden": 16, **QUIET, **options}
    return ScoreNPE(prior, **options).append_simulations(theta, x)


@pytest.fixture(scope="module")
def trained():
    """A small network on a problem with exact posteriors."""
    torch.manual_seed(0)
    simulator = GaussianGaussian(2)
    theta = simulator.prior.sample((2000,))
    trainer = ScoreNPE(simulator.prior, num_hidden=32, **QUIET)
    trainer.append_simulations(theta, simulator(theta)).train(num_steps=500)
    return simulator, trainer


def draw_set(simulator, num_observations, seed=1):
    torch.manual_seed(seed)
    theta = simulator.prior.sample((1,))
    return simulator(theta.expand(num_observations, -1))


# statistical


@pytest.mark.parametrize("num_observations", [1, 2, 8])
def test_sets_against_the_exact_posterior(trained, num_observations):
    simulator, trainer = trained
    x = draw_set(simulator, num_observations)
    posterior = trainer.build_posterior()
    samples = posterior.sample((1000,), x=x, **QUIET)
    exact = simulator.exact_posterior(x)
    std = exact.variance.sqrt()
    # Over networks with seeds 1 to 6: error up to .51 sd, ratio of sd .97 to 1.14.
    assert ((samples.mean(0) - exact.mean) / std).abs().max() < 0.8
    assert ((samples.std(0) / std).log().abs() < 0.25).all()
    prior = simulator.prior.sample((1000,))
    assert ((prior.std(0) / std).log().abs() > 0.25).all()
    one = num_observations == 1
    assert posterior.diagnostics[0].evaluations in ((63,) if one else range(25, 52))


def test_log_prob_against_the_exact_posterior(trained):
    simulator, trainer = trained
    posterior = trainer.build_posterior()
    for num_observations in (1, 4):
        x = draw_set(simulator, num_observations)
        exact = simulator.exact_posterior(x)
        theta = exact.sample((50,)).float()
        difference = posterior.log_prob(theta, x=x) - exact.log_prob(theta.double())
        assert difference.std() < 0.4
        if num_observations == 1:
            assert abs(difference.mean()) < 0.3
        assert (
            posterior.log_prob(theta + 3, x=x) < posterior.log_prob(theta, x=x)
        ).all()


def test_map_is_near_the_posterior_mean(trained):
    simulator, trainer = trained
    x = draw_set(simulator, 4)
    posterior = trainer.build_posterior().set_default_x(x)
    exact = simulator.exact_posterior(x)
    found = posterior.map(num_iter=100)
    assert found.shape == (1, 2)
    assert ((found[0] - exact.mean) / exact.variance.sqrt()).abs().max() < 0.7
    assert posterior.map() is found


def test_sbc_on_sets_runs_unchanged(trained):
    simulator, trainer = trained
    theta = simulator.prior.sample((60,))
    xs = simulator(theta.repeat_interleave(4, 0)).reshape(60, 4, 2)
    posterior = trainer.build_posterior()
    ranks, dap = run_sbc(
        theta, xs, posterior, num_posterior_samples=100, show_progress_bar=False
    )
    assert ranks.shape == (60, 2)
    checks = check_sbc(ranks, theta, dap, num_posterior_samples=100)
    assert (checks["ks_pvals"] > 1e-4).all()
    wrong, _ = run_sbc(
        theta + 0.7, xs, posterior, num_posterior_samples=100, show_progress_bar=False
    )
    wrong = check_sbc(wrong, theta, dap, num_posterior_samples=100)
    assert (wrong["ks_pvals"] < 1e-4).all()


def test_tarp_and_expected_coverage_run_unchanged_on_sets(trained):
    simulator, trainer = trained
    theta = simulator.prior.sample((40,))
    xs = simulator(theta.repeat_interleave(4, 0)).reshape(40, 4, 2)
    posterior = trainer.build_posterior()
    options = {"num_posterior_samples": 50, "show_progress_bar": False}
    distances = []
    for shift in (0.0, 2.0):
        tarp = run_tarp(theta + shift, xs, posterior, num_bins=20, **options)
        distances.append(float((tarp[0] - tarp[1]).abs().max()))
    # Kolmogorov's bound for 40 sets is .31 at the level .001.
    assert distances[0] < 0.31 < distances[1]
    options = {"num_posterior_samples": 20, "show_progress_bar": False}
    options["reduce_fns"] = posterior.log_prob
    ranks, _ = run_sbc(theta[:8], xs[:8], posterior, **options)
    wrong, _ = run_sbc(theta[:8] + 2, xs[:8], posterior, **options)
    assert ranks.shape == (8, 1) and ranks.mean() > 4 and wrong.mean() < 1


# shapes and options


def test_shapes(trained):
    simulator, trainer = trained
    posterior = trainer.build_posterior()
    one, x = draw_set(simulator, 1), draw_set(simulator, 3)
    assert posterior.sample((2, 5), x=x, **QUIET).shape == (2, 5, 2)
    assert posterior.sample((4,), x=one[0], **QUIET).shape == (4, 2)
    assert posterior.sample(x=x, **QUIET).shape == (2,)
    assert posterior.sample_batched((4,), x=x, **QUIET).shape == (4, 3, 2)
    sets = torch.stack([x, x + 1])
    assert posterior.sample_batched((4,), x=sets, **QUIET).shape == (4, 2, 2)
    assert [d.num_observations for d in posterior.diagnostics] == [3, 3]
    assert posterior.potential(torch.zeros(5, 2), x=x).shape == (5,)


def test_mask_leaves_out_what_it_says(trained):
    simulator, trainer = trained
    posterior = trainer.build_posterior()
    x = draw_set(simulator, 3)
    padded = torch.stack([x, x.clone()])
    padded[1, 2] = torch.nan
    mask = torch.tensor([[True, True, True], [True, True, False]])
    torch.manual_seed(3)
    posterior.sample_batched((50,), x=padded, mask=mask, **QUIET)
    assert [d.num_observations for d in posterior.diagnostics] == [3, 2]
    torch.manual_seed(3)
    masked = posterior.sample_batched((50,), x=padded[1:], mask=mask[1:], **QUIET)
    torch.manual_seed(3)
    alone = posterior.sample((50,), x=x[:2], **QUIET)
    assert torch.equal(masked[:, 0], alone)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("gauss", {"num_steps": 5}),
        ("langevin", {"num_levels": 5, "steps_per_level": 2}),
        ("composed", {"num_levels": 10}),
        ("auto", {"polish": True, "jump": True}),
        ("auto", {"minibatch": 2, "damping": lambda t: 1 - 0.5 * t}),
    ],
)
def test_every_sampler_samples_sets(trained, sampler, options):
    simulator, trainer = trained
    posterior = trainer.build_posterior(sample_with=sampler, sampler_options=options)
    samples = posterior.sample((30,), x=draw_set(simulator, 3), **QUIET)
    assert samples.shape == (30, 2) and samples.isfinite().all()
    assert posterior.diagnostics[0].sampler == sampler


@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_samplers_of_the_host_for_one_observation(trained, sampler):
    simulator, trainer = trained
    posterior = trainer.build_posterior(sample_with=sampler)
    x = draw_set(simulator, 1)
    options = {"steps": 50} if sampler == "sde" else {}
    samples = posterior.sample((300,), x=x, **options, **QUIET)
    exact = simulator.exact_posterior(x)
    assert ((samples.mean(0) - exact.mean) / exact.variance.sqrt()).abs().max() < 0.6
    batched = posterior.sample_batched(
        (3,), x=draw_set(simulator, 2), **options, **QUIET
    )
    assert batched.shape == (3, 2, 2)
    with pytest.raises(InvalidInputError, match="one observation"):
        posterior.sample((3,), x=draw_set(simulator, 2), **QUIET)


def test_samples_of_a_box_stay_inside():
    simulator = BoundedLinearGaussian(noise_std=0.2)
    theta = simulator.prior.sample((500,))
    trainer = ScoreNPE(simulator.prior, num_hidden=16, **QUIET)
    trainer.append_simulations(theta, simulator(theta)).train(num_steps=50)
    posterior = trainer.build_posterior()
    x = torch.tensor([[1.3, -1.4]]).expand(8, 2)
    samples = posterior.sample((500,), x=x, **QUIET)
    assert simulator.prior.support.check(samples).all()
    assert posterior.log_prob(samples[:5], x=x).isfinite().all()
    outside = torch.tensor([[1.5, 0.0]])
    assert (posterior.log_prob(outside, x=x) == -torch.inf).all()


@pytest.mark.parametrize(
    "model",
    ["mlp", posterior_score_nn("mlp", sde_type="vp"), "factorized"],
    ids=["name", "builder", "own"],
)
@pytest.mark.parametrize("prior", ["normal", "box"])
def test_networks(model, prior):
    prior = {
        "normal": MultivariateNormal(torch.tensor([5.0, -5.0]), 0.01 * torch.eye(2)),
        "box": BoxUniform(torch.zeros(2), torch.ones(2)),
    }[prior]
    trainer = make_trainer(prior, vf_estimator=model)
    trainer.train(**FAST)
    posterior = trainer.build_posterior()
    samples = posterior.sample((20,), x=torch.randn(3, 2), **QUIET)
    assert prior.support.check(samples).all()
    assert posterior.log_prob(samples, x=torch.randn(2, 2)).isfinite().all()


@pytest.mark.parametrize("parametrization", ["bounded", "noise"])
def test_score_for_all_pairs_is_that_for_pairs(parametrization):
    z, x = torch.randn(50, 2), torch.randn(50, 3)
    net = PosteriorScoreNet(z, x, num_hidden=8, parametrization=parametrization)
    torch.nn.init.normal_(net.output[1].weight)  # which starts at 0
    m, s = torch.tensor([[0.6]]), torch.tensor([[0.8]])
    features = net.embed(x[:4])
    together = net.all_pairs(z[:5], features, m, s)
    for j in range(4):
        alone = net.pairs(z[:5], features[j].expand(5, -1), m, s)
        torch.testing.assert_close(together[:, j], alone)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_a_printed_posterior_names_its_sampler():
    trainer = make_trainer()
    trainer.train(**FAST)
    for name in ("auto", "gauss"):
        posterior = trainer.build_posterior(sample_with=name)
        assert f"{name!r}" in repr(posterior) and f"{name!r}" in str(posterior)


def test_images_through_an_embedding_net():
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((200,))
    x = theta[:, :, None, None] + 0.1 * torch.randn(200, 2, 4, 4)
    embedding = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 6))
    trainer = ScoreNPE(prior, embedding_net=embedding, num_hidden=16, **QUIET)
    trainer.append_simulations(theta, x).train(**FAST)
    posterior = trainer.build_posterior()
    assert posterior.sample((10,), x=x[:3], **QUIET).shape == (10, 2)
    assert posterior.sample((10,), x=x[0], **QUIET).shape == (10, 2)
    assert posterior.sample_batched((10,), x=x[:4], **QUIET).shape == (10, 4, 2)
    sets = x[:6].reshape(2, 3, 2, 4, 4)
    assert posterior.sample_batched((10,), x=sets, **QUIET).shape == (10, 2, 2)
    assert posterior.log_prob(theta[:3], x=x[:2]).shape == (3,)


# life cycle


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        trainer = make_trainer()
        states.append(trainer.train(**FAST).state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True)
    )


def test_resume_and_posteriors_do_not_share_weights():
    trainer = make_trainer()
    trainer.train(**FAST)
    posterior = trainer.build_posterior()
    x, theta = torch.zeros(2, 2), torch.zeros(1, 2)
    before = posterior.log_prob(theta, x=x)
    epoch = trainer.epoch
    trainer.train(**FAST, resume_training=True)
    assert trainer.epoch > epoch
    assert torch.equal(posterior.log_prob(theta, x=x), before)
    trainer.train(**FAST, force_first_round_loss=True, retrain_from_scratch=True)


def test_rate_falls_and_weights_are_averaged():
    trainer = make_trainer()
    trainer.train(num_steps=40, learning_rate=1e-2, stop_after_epochs=1000)
    assert trainer.optimizer.param_groups[0]["lr"] < 2e-3
    net = dict(trainer._neural_net.named_parameters())
    assert not torch.equal(
        net["net.output.1.weight"], trainer._raw["net.output.1.weight"]
    )


def test_pickles_and_copies(trained):
    simulator, trainer = trained
    x = draw_set(simulator, 2)
    posterior = trainer.build_posterior().set_default_x(x)
    posterior.sample((5,), **QUIET)
    theta = torch.zeros(1, 2)
    for twin in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        assert torch.equal(twin.log_prob(theta), posterior.log_prob(theta))
        torch.manual_seed(0)
        samples = twin.sample((5,), **QUIET)
        torch.manual_seed(0)
        assert torch.equal(samples, posterior.sample((5,), **QUIET))
    pickle.loads(pickle.dumps(trainer)).build_posterior()


def test_default_x_and_device():
    trainer = make_trainer(BoxUniform(-torch.ones(2), torch.ones(2)))
    trainer.train(**FAST)
    posterior = trainer.build_posterior()
    with pytest.raises(ValueError, match="default"):
        posterior.sample((3,), **QUIET)
    posterior.set_default_x(torch.zeros(3, 2))
    before = posterior.log_prob(torch.zeros(1, 2))
    posterior.to("cpu")
    assert torch.equal(posterior.log_prob(torch.zeros(1, 2)), before)
    assert posterior.sample((3,), **QUIET).shape == (3, 2)


def test_ensemble(trained):
    simulator, trainer = trained
    posterior = EnsemblePosterior(
        [trainer.build_posterior(), trainer.build_posterior()]
    )
    x = draw_set(simulator, 3)
    posterior.set_default_x(x)
    assert posterior.sample((10,), show_progress_bars=False).shape == (10, 2)
    assert posterior.log_prob(torch.zeros(4, 2)).shape == (4,)


def test_signature_keeps_the_arguments_of_the_host():
    for name in ("__init__", "build_posterior"):
        host = list(inspect.signature(getattr(NPSE, name)).parameters)
        own = inspect.signature(getattr(ScoreNPE, name)).parameters
        assert list(own)[: len(host)] == host
        added = list(own.values())[len(host) :]
        assert all(p.kind is p.KEYWORD_ONLY for p in added)


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vf_estimator": "unet"}, InvalidInputError, "'factorized', 'mlp'"),
        ({"vf_estimator": nn.Linear(2, 2)}, InvalidTypeError, "vf_estimator"),
        ({"sde_type": "ve"}, InvalidInputError, "'vp'"),
        ({"parametrization": "x0"}, InvalidInputError, "'bounded', 'noise'"),
        ({"num_hidden": 0}, InvalidInputError, "num_hidden"),
    ],
)
def test_bad_construction(options, error, message):
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(error, match=message):
        ScoreNPE(prior, **QUIET, **options)


def test_prior_is_needed():
    with pytest.raises(InvalidTypeError, match="prior"):
        ScoreNPE(**QUIET)


def test_builder_of_another_diffusion_is_refused():
    trainer = make_trainer(vf_estimator=posterior_score_nn("mlp", sde_type="ve"))
    with pytest.raises(InvalidTypeError, match="sde_type='vp'"):
        trainer.train(**FAST)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"ema_decay": 1.0}])
def test_bad_training(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        make_trainer().train(**options)


def test_parameters_outside_the_prior_are_said():
    trainer = ScoreNPE(BoxUniform(-torch.ones(2), torch.ones(2)), **QUIET)
    theta = torch.tensor([[0.0, 0.0], [0.0, 1.2], [0.5, -0.5]]).repeat(10, 1)
    x = theta + torch.randn(30, 2)
    inside = theta.abs().amax(1) < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.append_simulations(theta[inside], x[inside])
    with pytest.warns(UserWarning, match="got 10 of 30 outside"):
        trainer.append_simulations(theta, x)


def test_another_prior_than_that_of_training_is_refused(trained):
    simulator, trainer = trained
    same = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert trainer.build_posterior(prior=same).prior is not None
    other = MultivariateNormal(2 * torch.ones(2), 0.3 * torch.eye(2))
    with pytest.raises(InvalidInputError, match="the prior of training"):
        trainer.build_posterior(prior=other)


def test_unknown_sampler_lists_the_known(trained):
    with pytest.raises(InvalidInputError, match="'auto', 'gauss', .*'sde', 'ode'"):
        trained[1].build_posterior(sample_with="nuts")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 2), "at least one"),
        (torch.zeros(3, 3), "expected a set"),
        (torch.zeros(2, 3, 2), "sample_batched"),
    ],
)
def test_bad_sets(trained, x, message):
    posterior = trained[1].build_posterior()
    for call in (posterior.sample, lambda *a, **k: posterior.log_prob(a[0], x=k["x"])):
        with pytest.raises(InvalidInputError, match=message):
            call(torch.zeros(1, 2) if call is not posterior.sample else (3,), x=x)


def test_nan_in_a_set_is_refused(trained):
    posterior = trained[1].build_posterior()
    x = torch.tensor([[0.0, torch.nan]])
    with pytest.raises(ValueError, match="(?i)nan"):
        posterior.sample((3,), x=x, **QUIET)
    with pytest.raises(ValueError, match="(?i)nan"):
        posterior.sample_batched((3,), x=x, **QUIET)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 2).bool(), "mask: expected the shape"),
        (torch.tensor([[True] * 3, [False] * 3]), r"none in sets \[1\]"),
    ],
)
def test_bad_masks(trained, mask, message):
    posterior = trained[1].build_posterior()
    with pytest.raises(InvalidInputError, match=message):
        posterior.sample_batched((3,), x=torch.zeros(2, 3, 2), mask=mask, **QUIET)


def test_unknown_option_is_refused(trained):
    posterior = trained[1].build_posterior()
    with pytest.raises(InvalidTypeError, match="predictor"):
        posterior.sample((3,), x=torch.zeros(1, 2), predictor="euler", **QUIET)


def test_an_untrained_network_is_the_posterior_of_a_linear_gaussian():
    """Given enough simulations; one that reads the rows in another order is not."""
    torch.manual_seed(0)
    z = torch.randn(20_000, 2)
    x = z @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]) + 0.5 * torch.randn(20_000, 2)
    slope = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    precision = torch.eye(2) + slope @ slope.mT / 0.25
    wrong = PosteriorScoreNet(z, x[torch.randperm(len(x))], num_hidden=8)
    for s in (0.05, 0.5, 0.9):
        m = (1 - s**2) ** 0.5
        level = torch.tensor([[m]]), torch.tensor([[s]])
        mean = x[:200] @ slope.mT / 0.25 @ precision.inverse()
        variance = precision.inverse().diagonal()  # the network's is diagonal
        z_t = m * z[:200] + s * torch.randn(200, 2)
        exact = z_t - (z_t - m * mean) / (m**2 * variance + s**2)
        found, control = (
            net.pairs(z_t, net.embed(x[:200]), *level)
            for net in (PosteriorScoreNet(z, x, num_hidden=8), wrong)
        )
        assert (found - exact).square().mean() < 0.01 * exact.square().mean()
        assert (control - exact).square().mean() > 0.3 * exact.square().mean()


def test_validation_has_the_same_noise_each_time():
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = make_trainer(prior)
    estimator = trainer.train(**FAST)
    theta, x = prior.sample((50,)), torch.randn(50, 2)
    times = torch.linspace(0.1, 0.9, 50)
    first, second = (estimator.eval().loss(theta, x, times) for _ in range(2))
    assert torch.equal(first, second)
    order = torch.randperm(50)
    shuffled = estimator.loss(theta[order], x[order], times[order])
    torch.testing.assert_close(shuffled, first[order])
    first, second = (estimator.train().loss(theta, x, times) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("given, expected", [({}, 400), ({"stop_after_epochs": 7}, 7)])
def test_patience_is_counted_in_steps(given, expected, monkeypatch):
    """300 simulations are one batch of 200 an epoch."""
    seen = {}

    def converged(self, epoch, stop_after_epochs):
        seen["patience"] = stop_after_epochs
        return epoch > 1

    monkeypatch.setattr(ScoreNPE, "_converged", converged)
    make_trainer().train(**given)
    assert seen["patience"] == expected
