"""ScoreAugmentedNRE: the host without scores, and better with them."""

import copy
import pickle
import warnings

import pytest
import torch
from registry import (
    RATIO_TRAINERS,
    SIMULATOR,
    TRAINERS,
    Recorder,
    new_trainer,
    score_error,
    simulations,
    surrogate_score,
    train,
    weights_of,
)
from sbi.inference import EnsemblePosterior
from sbi.inference.posteriors import MCMCPosterior
from sbi.utils.sbiutils import seed_all_backends
from torch import nn

from sbi_scoreaug import (
    FixedWeights,
    ScoreAugmentedNRE,
    UncertaintyWeights,
    smooth_classifier_nn,
)
from sbi_scoreaug.simulators import LinearGaussian

MCMC = {"num_chains": 2, "warmup_steps": 5, "thin": 1}


def absolute(residual):
    """A score loss of the user's, at module level."""
    return residual.abs()


def sample(trainer, num_samples=20, **kwargs):
    posterior = trainer.build_posterior(mcmc_parameters=MCMC, **kwargs)
    seed_all_backends(2)
    return posterior.sample(
        (num_samples,), x=torch.zeros(1, 2), show_progress_bars=False
    )


@pytest.fixture
def scored():
    theta, x, score = simulations()
    return new_trainer().append_simulations(theta, x, score=score)


# --- Identity ----------------------------------------------------------------------


def pair_of_trainers(name, with_scores, **kwargs):
    """The host and ours, trained from the same seed on the same simulations."""
    host, ours = TRAINERS[name]
    theta, x, score = simulations()
    trained = []
    for cls in (host, ours):
        own = {"score": score} if with_scores and cls is ours else {}
        trainer = new_trainer(cls).append_simulations(theta, x, **own)
        weight = {"score_weighting": 0} if own else {}
        train(trainer, max_num_epochs=3, **kwargs, **weight)
        trained.append(trainer)
    return trained


@pytest.mark.parametrize("with_scores", [False, True], ids=["no scores", "weight 0"])
@pytest.mark.parametrize("name", TRAINERS)
def test_without_a_score_term_it_is_the_host_bit_for_bit(name, with_scores):
    host, ours = pair_of_trainers(name, with_scores)
    assert torch.equal(weights_of(host._neural_net), weights_of(ours._neural_net))
    for key, values in host.summary.items():
        if key != "epoch_durations_sec":
            assert ours.summary[key] == values
    if name in RATIO_TRAINERS:
        assert torch.equal(sample(host), sample(ours))
    theta, x_o = torch.randn(5, 2), torch.zeros(1, 2)
    potentials = [t.build_posterior().potential(theta, x=x_o) for t in (host, ours)]
    assert torch.equal(*potentials)


def test_it_is_the_host_also_over_two_rounds_and_when_resumed():
    theta, x, score = simulations()
    results = []
    for cls in TRAINERS["NRE_A"]:
        trainer = new_trainer(cls).append_simulations(theta, x)
        train(trainer, max_num_epochs=2, dataloader_kwargs={"num_workers": 0})
        train(trainer, seed=2, max_num_epochs=6, resume_training=True)
        trainer.append_simulations(theta + 0.1, x, from_round=1)
        train(trainer, seed=3, max_num_epochs=2, discard_prior_samples=True)
        results.append(weights_of(trainer._neural_net))
    assert torch.equal(*results)


def test_it_is_the_host_when_the_scores_belong_to_discarded_rounds():
    theta, x, score = simulations()
    results = []
    for cls in TRAINERS["NRE_A"]:
        own = {} if cls is TRAINERS["NRE_A"][0] else {"score": score}
        trainer = new_trainer(cls).append_simulations(theta, x, **own)
        trainer.append_simulations(theta, x, from_round=1)
        train(trainer, max_num_epochs=2, discard_prior_samples=True)
        results.append(weights_of(trainer._neural_net))
    assert torch.equal(*results)


def test_appending_scores_consumes_no_random_numbers():
    theta, x, score = simulations()
    trainer = new_trainer()  # sbi draws from the prior to check it
    state = torch.get_rng_state()
    trainer.append_simulations(theta, x, score=score)
    assert torch.equal(state, torch.get_rng_state())


def test_appending_scores_leaves_the_users_embedding_net_alone():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv1d(1, 3, 1), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Flatten()
            )

        def forward(self, x):
            return self.net(x.unsqueeze(1))

    embedding = Centred()
    before = copy.deepcopy(embedding.state_dict())
    build = smooth_classifier_nn("mlp", embedding_net_x=embedding)
    theta, x, score = simulations()
    new_trainer(classifier=build).append_simulations(theta, x, score=score)
    for name, value in embedding.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert embedding.training


# --- What scores are worth ---------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_scores_improve_the_surrogate_score_and_shuffled_ones_do_not(name):
    """Error of grad f; 1 for a surrogate that ignores theta, 0 for a perfect one.

    Seeds 0 to 4, worst of ours, range of the host, range of shuffled scores:
    NRE_A .014, .16 to .36, .63 to .90; NRE_B .014, .22 to .41, .40 to .44;
    Seed 0, with twice the steps, ours and the host: NRE_C .003, .30; BNRE .10, .93.
    """
    host, ours = TRAINERS[name]
    theta, x, score = simulations(300)
    plain = new_trainer(host).append_simulations(theta, x)
    network = train(plain, max_num_epochs=150, learning_rate=3e-3)
    plain_error = score_error(network, name=name)
    errors = []
    for rows in (torch.arange(300), torch.randperm(300)):
        trainer = new_trainer(ours).append_simulations(
            theta, x, score=score[rows], score_check=False
        )
        network = train(trainer, max_num_epochs=4, learning_rate=3e-3)
        errors.append(score_error(network, name=name))
    right, shuffled = errors
    assert right < 0.5 * plain_error
    assert shuffled > 3 * right


# --- Life cycle --------------------------------------------------------------------


def test_two_rounds_with_a_posterior_as_proposal(scored):
    train(scored, max_num_epochs=2)
    proposal = scored.build_posterior(sample_with="rejection")
    proposal.set_default_x(torch.zeros(1, 2))
    theta = proposal.sample((100,), show_progress_bars=False)
    x = SIMULATOR(theta)
    scored.append_simulations(theta, x, score=SIMULATOR.score(theta, x), from_round=1)
    train(scored, max_num_epochs=3)
    assert len(scored.train_indices) + len(scored.val_indices) == 300
    train(scored, max_num_epochs=2, discard_prior_samples=True)
    assert len(scored.train_indices) + len(scored.val_indices) == 100
    assert score_error(scored._neural_net) < 1.0


def test_resuming_goes_on_from_the_same_weights_with_the_same_rows(scored):
    before = score_error(train(scored, max_num_epochs=2))
    rows, epoch = scored.train_indices.clone(), scored.epoch
    network = scored._neural_net
    after = score_error(train(scored, max_num_epochs=12, resume_training=True))
    assert scored._neural_net is network
    assert torch.equal(scored.train_indices, rows) and scored.epoch > epoch
    assert after < before


@pytest.mark.parametrize("positional", [False, True])
def test_resuming_keeps_the_weighting_that_was_chosen(scored, positional):
    train(scored, max_num_epochs=1, score_weighting=2.0)
    weighting = scored._weighting
    if positional:
        train(scored, 200, 5e-4, 0.1, 20, 3, 5.0, True)
    else:
        train(scored, max_num_epochs=3, resume_training=True)
    assert scored._weighting is weighting


def test_retraining_from_scratch_builds_a_new_network(scored):
    network = train(scored, max_num_epochs=1)
    again = train(scored, max_num_epochs=1, retrain_from_scratch=True)
    assert again is not network


def test_a_users_collate_function_of_three_columns_keeps_scores_aligned():
    """The score encodes its row, and so shows whether it is beside it."""
    row = torch.arange(100.0).unsqueeze(1)
    theta, x = row.repeat(1, 2), row.repeat(1, 3)
    seen = []

    def collate(rows):
        theta, x, prior_mask = zip(*rows, strict=True)
        return torch.stack(theta), torch.stack(x), torch.stack(prior_mask)

    trainer = new_trainer(prior=None).append_simulations(
        theta, x, score=theta + 0.25, score_check=False
    )
    original = trainer._get_losses

    def get_losses(batch, *args, **kwargs):
        seen.append(torch.equal(batch[0] + 0.25, batch[3]))
        return original(batch, *args, **kwargs)

    trainer._get_losses = get_losses
    train(trainer, max_num_epochs=1, dataloader_kwargs={"collate_fn": collate})
    assert seen and all(seen)


@pytest.mark.parametrize(
    "kwargs", [{"num_workers": 0, "worker_init_fn": print}, {"drop_last": False}]
)
def test_dataloader_kwargs_are_taken(scored, kwargs):
    loaders = []
    original = scored.get_dataloaders

    def get_dataloaders(*args, **kwargs):
        loaders.extend(original(*args, **kwargs))
        return loaders

    scored.get_dataloaders = get_dataloaders
    train(scored, max_num_epochs=1, dataloader_kwargs=kwargs)
    assert len(loaders) == 2
    for loader in loaders:
        assert {name: getattr(loader, name) for name in kwargs} == kwargs


def test_data_device_is_taken():
    theta, x, score = simulations()
    trainer = new_trainer().append_simulations(theta, x, data_device="cpu", score=score)
    train(trainer, max_num_epochs=1)
    assert trainer._score_roundwise[0].device == trainer._theta_roundwise[0].device


def test_trainer_and_posterior_can_be_pickled(scored):
    train(scored, max_num_epochs=1, score_loss=absolute)
    samples = sample(scored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = pickle.loads(pickle.dumps(scored))
        posterior = pickle.loads(pickle.dumps(scored.build_posterior()))
    assert torch.equal(loaded._score_roundwise[0], scored._score_roundwise[0])
    assert torch.equal(sample(loaded), samples)
    assert isinstance(posterior, MCMCPosterior)
    train(loaded, max_num_epochs=3)
    assert score_error(loaded._neural_net) < 1.0


def test_a_trainer_that_used_a_lambda_can_be_pickled(scored):
    train(scored, max_num_epochs=1, score_loss=lambda residual: residual.abs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pickle.dumps(scored)


def test_a_deep_copy_is_independent(scored):
    train(scored, max_num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = copy.deepcopy(scored)
    before = weights_of(scored._neural_net)
    train(other, max_num_epochs=2)
    assert torch.equal(weights_of(scored._neural_net), before)
    assert not torch.equal(weights_of(other._neural_net), before)


def test_training_further_does_not_change_an_earlier_posterior(scored):
    train(scored, max_num_epochs=1)
    posterior = scored.build_posterior()
    theta, x_o = torch.zeros(3, 2), torch.zeros(1, 2)
    before = posterior.potential(theta, x=x_o)
    train(scored, max_num_epochs=3, seed=4)
    assert torch.equal(posterior.potential(theta, x=x_o), before)


def test_the_tracker_and_the_summary_gain_the_score_metrics(scored):
    train(scored, max_num_epochs=3)
    num_epochs = scored.epoch
    for key in ("validation_host_loss", "score_error", "signal_fraction"):
        assert len(scored.summary[key]) == num_epochs
    assert all(len(w) == 2 for w in scored.summary["score_weights"])
    assert len(scored.summary["score_weights"]) == num_epochs
    for error, fraction in zip(
        scored.summary["score_error"], scored.summary["signal_fraction"], strict=True
    ):
        assert [1 - e for e in error] == pytest.approx(fraction, abs=1e-6)
    names = [name for name, _, _ in scored._tracker.metrics]
    for key in ("validation_host_loss", "score_error_1", "score_weights_0"):
        assert names.count(key) == num_epochs


def test_every_epoch_is_logged_once_over_rounds(scored):
    train(scored, max_num_epochs=2)
    train(scored, max_num_epochs=2)
    steps = [
        step
        for name, _, step in scored._tracker.metrics
        if name == "validation_host_loss"
    ]
    assert steps == list(range(len(scored.summary["validation_host_loss"])))


def test_the_validation_loss_is_the_host_loss_plus_the_unweighted_terms(scored):
    train(scored, max_num_epochs=2, score_gain=7.0, score_weighting=3.0)
    total = scored.summary["validation_loss"]
    host = scored.summary["validation_host_loss"]
    # The host divides its scalar losses by the batch size once more: 20 rows here.
    assert all(20 * t > h for t, h in zip(total, host, strict=True))
    assert scored.summary["score_weights"][-1] == pytest.approx([21.0, 21.0])


def test_gradients_are_let_go_and_the_best_weights_kept(scored):
    network = train(scored, max_num_epochs=4)
    assert all(p.grad is None for p in network.parameters())
    best = scored._best_model_state_dict
    assert all(torch.equal(v, best[k]) for k, v in network.state_dict().items())
    assert scored._joint is None and scored._pairs is None


def test_training_changes_neither_data_nor_scores(scored):
    before = [
        part[0].clone() for part in (scored._theta_roundwise, scored._x_roundwise)
    ]
    score = scored._score_roundwise[0].clone()
    train(scored, max_num_epochs=1)
    assert torch.equal(scored._theta_roundwise[0], before[0])
    assert torch.equal(scored._x_roundwise[0], before[1])
    assert torch.equal(scored._score_roundwise[0], score)
    assert not scored._theta_roundwise[0].requires_grad


def test_one_parameter():
    simulator = LinearGaussian(dim=1)
    theta, x, score = simulations(200, simulator)
    trainer = new_trainer(prior=simulator.prior).append_simulations(
        theta, x, score=score
    )
    assert score_error(train(trainer, max_num_epochs=6), simulator) < 0.3


@pytest.mark.parametrize("name", ["NRE_A", "NRE_C"])
def test_images_with_an_embedding_net_are_embedded_once_a_batch(name):
    sizes = []

    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())

        def forward(self, x):
            sizes.append(len(x))
            return self.net(x)

    theta, x, score = simulations(200)
    images = x.repeat(1, 6).view(200, 3, 4) + 0.01 * torch.randn(200, 3, 4)
    build = smooth_classifier_nn("mlp", embedding_net_x=Embedding(), z_score_x="none")
    trainer = new_trainer(TRAINERS[name][1], classifier=build)
    trainer.append_simulations(theta, images, score=score, score_check=False)
    train(trainer, max_num_epochs=1, training_batch_size=50)
    assert max(sizes[2:]) == 50


def test_an_estimator_that_is_no_pair_of_embeddings_takes_the_hosts_path():
    from sbi.neural_nets.ratio_estimators import RatioEstimator

    class Halved(RatioEstimator):
        def unnormalized_log_ratio(self, theta, x):
            return 0.5 * super().unnormalized_log_ratio(theta, x)

    def build(theta, x):
        net = nn.Sequential(nn.Linear(4, 20), nn.SiLU(), nn.Linear(20, 1))
        return Halved(net, theta[0].shape, x[0].shape)

    theta, x, score = simulations(300)
    trainer = new_trainer(classifier=build).append_simulations(theta, x, score=score)
    network = train(trainer, max_num_epochs=10, learning_rate=5e-3)
    assert score_error(network) < 0.3


# --- Posteriors --------------------------------------------------------------------


@pytest.fixture(scope="module")
def well_trained():
    torch.manual_seed(0)
    theta, x, score = simulations(500)
    trainer = new_trainer().append_simulations(theta, x, score=score)
    train(trainer, max_num_epochs=15, learning_rate=2e-3)
    return trainer


@pytest.mark.parametrize("sample_with", ["mcmc", "rejection", "importance", "vi"])
def test_every_posterior_of_sbi_has_the_exact_mean(well_trained, sample_with):
    x_o = torch.tensor([[0.5, -0.4]])
    parameters = {"mcmc_parameters": {"num_chains": 20, "warmup_steps": 20, "thin": 1}}
    kwargs = parameters if sample_with == "mcmc" else {}
    posterior = well_trained.build_posterior(sample_with=sample_with, **kwargs)
    posterior.set_default_x(x_o)
    if sample_with == "vi":
        posterior.train(max_num_iters=200, show_progress_bar=False)
    samples = posterior.sample((500,), show_progress_bars=False)
    exact = SIMULATOR.exact_posterior(x_o)
    # Posterior sd .3 and .6, 500 draws.
    assert torch.allclose(samples.mean(0), exact.mean, atol=0.2)


def test_an_ensemble_with_a_host_member_samples(well_trained):
    theta, x, _ = simulations()
    host = new_trainer(TRAINERS["NRE_A"][0]).append_simulations(theta, x)
    train(host, max_num_epochs=2)
    members = [t.build_posterior(mcmc_parameters=MCMC) for t in (well_trained, host)]
    ensemble = EnsemblePosterior(members)
    ensemble.set_default_x(torch.zeros(1, 2))
    samples = ensemble.sample((20,), show_progress_bars=False)
    assert samples.shape == (20, 2)


def test_the_surrogate_score_is_the_gradient_of_the_ratio(well_trained):
    theta, x, score = simulations(300)
    found = well_trained.surrogate_score(theta, x)
    expected = surrogate_score(well_trained._neural_net, theta, x)
    assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad
    assert (found - score).square().mean() < 0.2 * score.square().mean()


def test_the_fisher_information_of_the_linear_gaussian(well_trained):
    theta, x, _ = simulations(2000)
    weighted = SIMULATOR.mixing.T / SIMULATOR.noise_std.square()
    exact = (weighted @ SIMULATOR.mixing).float()
    found = well_trained.fisher_information(theta, x)
    assert torch.allclose(found, exact, atol=0.25 * float(exact.diagonal().max()))


# --- Options of train --------------------------------------------------------------

OPTIONS = {
    "every": {"score_every": 4},
    "rarely": {"score_every": 1000},
    "gain": {"score_gain": 3.0},
    "huber": {"score_loss": "huber"},
    "callable": {"score_loss": absolute},
    "number": {"score_weighting": 0.5},
    "per parameter": {"score_weighting": torch.tensor([1.0, 0.0])},
    "uncertainty": {"score_weighting": "uncertainty"},
    "gradient norm": {"score_weighting": "gradient_norm"},
    "object": {"score_weighting": UncertaintyWeights(decay=0.5)},
    "local": {"score_pairs": "local"},
    "both": {"score_pairs": "both"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_trains(options):
    theta, x, _ = simulations()
    trainer = new_trainer(score_fn=SIMULATOR.score).append_simulations(theta, x)
    error = score_error(train(trainer, max_num_epochs=3, learning_rate=2e-3, **options))
    assert error < (1.5 if options.get("score_every") == 1000 else 0.6)


def test_the_term_is_added_at_every_fourth_step(scored):
    calls = []

    class Counting(FixedWeights):
        def weights(self, host_loss, score_losses, parameters):
            calls.append(scored._step)
            assert host_loss.ndim == 0 and score_losses.shape == (2,)
            assert all(p.requires_grad for p in parameters)
            return super().weights(host_loss, score_losses, parameters)

    train(scored, max_num_epochs=1, score_every=4, score_weighting=Counting(1.0))
    assert calls == list(range(4, 51, 4))


def test_a_users_weighting_is_used_as_it_is(scored):
    class Ones:
        def weights(self, host_loss, score_losses, parameters):
            return torch.full_like(score_losses, 0.3)

    train(scored, max_num_epochs=1, score_weighting=Ones(), score_gain=2.0)
    assert scored.summary["score_weights"][-1] == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("kind", ["exact", "joint"])
def test_the_default_weights_are_those_that_noise_does_not_mislead(kind):
    theta, x, score = simulations()
    trainer = new_trainer().append_simulations(theta, x, score=score, score_kind=kind)
    train(trainer, max_num_epochs=1)
    assert isinstance(trainer._weighting, UncertaintyWeights)


def test_contrasting_parameters_are_never_a_rows_own(scored):
    train(scored, max_num_epochs=1)
    seen = []
    network = scored._neural_net
    row = torch.arange(40.0).unsqueeze(1)
    theta, x = row.repeat(1, 2), row.repeat(1, 2)
    for training in (True, False):
        network.train(training)
        for num_atoms in (2, 5, 40):
            hooked = network.embedding_net_theta.register_forward_pre_hook(
                lambda module, args: seen.append(args[0].detach())
            )
            scored._classifier_logits(theta, x, num_atoms)
            hooked.remove()
            joint, marginal = seen[-2:]
            assert torch.equal(joint, theta)
            own = theta[:, :1]
            others = marginal[:, 0].view(40, num_atoms - 1)
            assert not (others == own).any()
            assert all(len(r.unique()) == num_atoms - 1 for r in others)


@pytest.mark.parametrize("training", [True, False])
def test_logits_with_x_embedded_once_are_the_hosts_of_the_same_pairs(scored, training):
    network = train(scored, max_num_epochs=1).train(training)
    theta, x, _ = simulations(30)
    pairs = []
    hook = network.embedding_net_theta.register_forward_pre_hook(
        lambda module, args: pairs.append(args[0].detach())
    )
    logits = scored._classifier_logits(theta, x, 4).view(30, 4)
    hook.remove()
    joint, marginal = pairs
    assert torch.allclose(logits[:, 0], network(joint, x), atol=1e-5)
    repeated = x.repeat_interleave(3, 0)
    assert torch.allclose(
        logits[:, 1:].flatten(), network(marginal, repeated), atol=1e-5
    )


def test_a_stale_graph_is_not_used_for_other_pairs(scored):
    network = train(scored, max_num_epochs=1)
    theta, x, _ = simulations(30)
    scored._classifier_logits(theta, x, 2)
    other = theta + 1.0
    expected = surrogate_score(network, other, x)
    assert torch.allclose(scored.surrogate_score(other, x), expected, atol=1e-6)


def test_train_takes_the_hosts_arguments_by_position(scored):
    train(scored, 50, 1e-3, 0.2, 20, 1)
    assert len(scored.val_indices) == 40
    assert scored.optimizer.defaults["lr"] == 1e-3


def test_the_first_positional_arguments_are_the_hosts():
    trainer = ScoreAugmentedNRE(
        SIMULATOR.prior,
        "smooth_mlp",
        "cpu",
        "WARNING",
        show_progress_bars=False,
        tracker=Recorder(),
    )
    assert trainer._prior is SIMULATOR.prior
