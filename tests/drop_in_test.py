"""Our trainers in the place of sbi's: constructor, data, training, rounds.

Every test runs over `DROP_INS`. Where ours fails and the host's own class fails alike
under the same call, the failure is the host's: the test is an `xfail` that quotes it.
What can be done with the posteriors is in `drop_in_posteriors_test`.
"""

import inspect
import warnings

import pytest
import torch
from registry import (
    DROP_INS,
    RATIO_TRAINERS,
    SIMULATOR,
    Recorder,
    new_drop_in,
    simulations,
    train,
    weights_of,
)
from sbi.inference import DirectPosterior
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator
from torch import nn
from torch.utils.data import SequentialSampler

from sbi_scoreaug.amortized_cost import resolve_distance
from sbi_scoreaug.errors import InvalidTypeError

NAMES = list(DROP_INS)
POSTERIOR_TRAINERS = ("NPE_C", "NPSE")  # append_simulations takes a proposal
EPOCH = {"max_num_epochs": 1, "training_batch_size": 20}
MIXES = ("NRE_B", "NRE_C", "BNRE")  # the code of NRE_A but for the host's: slow
SLOW_MIXES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in MIXES else [])
    for name in NAMES
]
every_trainer = pytest.mark.parametrize("name", SLOW_MIXES)
pytestmark = pytest.mark.filterwarnings("ignore:Data x has device")


def or_xfail(action, name):
    """Return `action(ours=True)`; a failure that the host shares is recorded as its."""
    try:
        return action(ours=True)
    except Exception as error:
        try:
            action(ours=False)
        except type(error) as of_host:
            cls = DROP_INS[name].host.__name__
            pytest.xfail(f"sbi's own {cls}: {type(of_host).__name__}: {of_host}")
        raise


def with_data(name, ours=True, num_simulations=60, scores=True, **kwargs):
    """A trainer with simulations, and with scores where it is ours."""
    theta, x, score = simulations(num_simulations)
    own = {"score": score, "score_check": False} if ours and scores else {}
    return new_drop_in(name, ours, **kwargs).append_simulations(theta, x, **own)


def parameters_of(function):
    return inspect.signature(function).parameters


# --- Constructor -------------------------------------------------------------------


@every_trainer
def test_the_constructor_takes_the_hosts_arguments_by_name_and_position(name):
    pair = DROP_INS[name]
    host, ours = (list(parameters_of(cls)) for cls in (pair.host, pair.ours))
    if name == "ACE":  # the network is named otherwise, and the distance comes first
        assert ours == ["prior", "distance", "cost_net", *host[2:]]
    else:
        assert ours[: len(host)] == host
    own = [parameters_of(pair.ours)[name] for name in ours[len(host) + 1 :]]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)
    distance = ["mse"] if name == "ACE" else []
    further = [None, None, "vp"] if name == "NPSE" else []
    args = [SIMULATOR.prior, *distance, pair.our_net, *further, "cpu", "WARNING"]
    trainer = pair.ours(*args, None, Recorder(), False, **pair.options)
    named = new_drop_in(name, device="cpu", logging_level=30, summary_writer=None)
    for made in (trainer, named):
        assert made._prior is SIMULATOR.prior and made._device == "cpu"
        assert not made._show_progress_bars and isinstance(made._tracker, Recorder)


NETWORKS = [(name, network) for name in NAMES for network in DROP_INS[name].names]
NETWORKS += [("ACE", network) for network in ("auto", "quadratic", "particles", "net")]


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_networks_by_name(name, network):
    trainer = with_data(name, scores=False, **{DROP_INS[name].argument: network})
    assert isinstance(train(trainer, **EPOCH), ConditionalEstimator)


def build_nothing(theta, x):
    """A builder whose author forgot to return."""


@every_trainer
@pytest.mark.parametrize("network", [nn.Linear(2, 2), 3, build_nothing])
def test_networks_that_the_host_refuses_are_refused(name, network):
    def attempt(ours):
        argument = DROP_INS[name].argument if ours else None
        argument = argument or ("density_estimator" if name == "ACE" else None)
        argument = argument or DROP_INS[name].argument
        train(with_data(name, ours, scores=False, **{argument: network}), **EPOCH)

    with pytest.raises(Exception) as of_host:  # noqa: B017, PT011
        attempt(ours=False)
    with pytest.raises((AttributeError, TypeError, type(of_host.value))):
        attempt(ours=True)


@every_trainer
def test_the_network_is_built_from_training_rows_on_the_cpu(name):
    """Never from validation rows: they would leak into its scales. (Before scores are
    stored one is built on a trial, and thrown away.)"""
    calls = []
    argument, network = DROP_INS[name].argument, DROP_INS[name].our_net
    if name == "NPSE":
        network = DROP_INS[name].host_net

    def build(theta, x):
        calls.append((theta, x))
        own = (resolve_distance("mse").fit(x),) if name == "ACE" else ()
        return network(theta, x, *own)

    trainer = with_data(name, **{argument: build})
    calls.clear()
    train(trainer, **EPOCH)
    ((theta, x),) = calls
    found = {part.shape[0] for part in (theta, x)}
    assert found == {len(trainer.train_indices)} == {54}
    known = [part[trainer.train_indices] for part in trainer.get_simulations()[:2]]
    if name == "NPSE":
        known[0] = trainer._neural_net.to_z(known[0])
    for given, expected in zip((theta, x), known, strict=True):
        assert given.device.type == "cpu" and torch.allclose(given, expected)


@pytest.mark.parametrize("argument", ["score_estimator", "density_estimator"])
def test_deprecated_names_of_the_vector_field_are_taken(argument):
    network = DROP_INS["NPSE"].host_net
    trainer = new_drop_in("NPSE", vf_estimator="factorized", **{argument: network})
    theta, x, _ = simulations(60)
    estimator = train(trainer.append_simulations(theta, x), **EPOCH)
    assert isinstance(estimator.net, VPScoreEstimator)


@every_trainer
def test_without_a_prior_it_trains_and_asks_for_it_when_sampling(name):
    if name == "NPSE":
        with pytest.raises(InvalidTypeError, match="the prior's density"):
            new_drop_in(name, prior=None)  # sets are divided by it
        return
    trainer = with_data(name, scores=False, prior=None)
    train(trainer, **EPOCH)
    options = {"beta": 1.0} if name == "ACE" else {}
    if name != "NPE_C":
        with pytest.raises(ValueError, match="did not pass a prior"):
            trainer.build_posterior(**options)
    assert trainer.build_posterior(prior=SIMULATOR.prior, **options)


@every_trainer
def test_trackers_and_summary_writers(name):
    with pytest.raises(ValueError, match="racker"):
        new_drop_in(name, summary_writer=Recorder())
    trainer = with_data(name)
    train(trainer, **EPOCH)
    names = {metric for metric, _, _ in trainer._tracker.metrics}
    assert {"training_loss", "validation_loss", "epochs_trained"} <= names
    assert set(trainer.summary) >= set(new_drop_in(name, ours=False).summary)


# --- Data --------------------------------------------------------------------------


def appended(name, ours, theta, x, *args, **kwargs):
    trainer = new_drop_in(name, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert trainer.append_simulations(theta, x, *args, **kwargs) is trainer
    return trainer


APPENDS = {
    "plain": ((), {}),
    "invalid ones by position": ((True,), {}),
    "invalid ones by name": ((), {"exclude_invalid_x": True}),
    "device": ((), {"data_device": "cpu"}),
    "round and name": ((False, 0, "mine", None), {}),
    "no proposal, by position": ((None, True, "cpu"), {}),
}


@pytest.mark.parametrize("case", APPENDS)
@every_trainer
def test_what_is_stored_is_what_the_host_stores(name, case):
    args, kwargs = APPENDS[case]
    of_posterior = name in POSTERIOR_TRAINERS
    if of_posterior and case in ("invalid ones by position", "round and name"):
        return  # the third argument is the proposal there
    if not of_posterior and case == "no proposal, by position":
        return
    theta, x, score = simulations(30)
    if "invalid" in case:
        x[3], x[7, 1] = torch.nan, torch.inf
    host = appended(name, False, theta, x, *args, **kwargs)
    ours = appended(name, True, theta, x, *args, score=score, **kwargs)
    assert len(ours._score_roundwise) == len(ours._theta_roundwise) == 1
    for entry in ("_theta_roundwise", "_x_roundwise"):
        assert torch.equal(getattr(host, entry)[0], getattr(ours, entry)[0])
    assert torch.equal(host._prior_masks[0], ours._prior_masks[0])
    assert host._data_round_index == ours._data_round_index
    theta, x, _ = ours.get_simulations()
    assert torch.equal(ours._score_roundwise[0], SIMULATOR.score(theta, x))


@pytest.mark.parametrize(
    "shape", [None, (60,), pytest.param((60, 1), marks=pytest.mark.slow)]
)
@every_trainer
def test_one_parameter_and_one_datum_without_a_second_dimension(name, shape):
    theta, x = torch.randn(60), torch.randn(60)
    score = None if shape is None else (x - theta).reshape(shape)
    prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))

    def attempt(ours):
        trainer = new_drop_in(name, ours, prior=prior)
        own = {"score": score, "score_check": False} if ours else {}
        return train(trainer.append_simulations(theta, x, **own), **EPOCH)

    estimator = or_xfail(attempt, name)
    assert estimator.input_shape == estimator.condition_shape == (1,)
    assert weights_of(estimator).isfinite().all()


@every_trainer
def test_failed_simulations_are_left_out_with_their_scores(name):
    theta, x, score = simulations(80)
    x[::8] = torch.nan
    trainer = new_drop_in(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(
            theta, x, exclude_invalid_x=True, score=score, score_check=False
        )
    assert len(trainer.get_simulations()[0]) == len(trainer._score_roundwise[0]) == 70
    assert weights_of(train(trainer, **EPOCH)).isfinite().all()


# --- Training ----------------------------------------------------------------------

TRAINING = {
    "training_batch_size": 10,
    "learning_rate": 1e-3,
    "validation_fraction": 0.3,
    "stop_after_epochs": 1,
    "max_num_epochs": 1,
    "clip_max_norm": None,
    "resume_training": False,
    "discard_prior_samples": True,
    "retrain_from_scratch": True,
    "show_train_summary": True,
    "dataloader_kwargs": {"num_workers": 0, "pin_memory": False},
    "num_atoms": 3,
    "calibration_kernel": lambda x: torch.ones(len(x)),
    "force_first_round_loss": True,
    "use_combined_loss": True,
    "loss_kwargs": None,
    "ema_loss_decay": 0.2,
    "validation_times": 3,
    "validation_times_nugget": 0.1,
    "num_classes": 3,
    "gamma": 0.5,
    "regularization_strength": 10.0,
}


@every_trainer
def test_every_argument_of_training_is_taken(name, capsys):
    host = parameters_of(DROP_INS[name].host.train)
    assert set(host) <= {"self", *TRAINING}, "an argument that no test knows"
    ours = parameters_of(DROP_INS[name].ours.train)
    assert list(ours)[: len(host)] == list(host)
    trainer = with_data(name)
    options = {key: value for key, value in TRAINING.items() if key in host}
    train(trainer, **options)
    assert trainer.epoch >= 1 and len(trainer.val_indices) == 18
    assert trainer.optimizer.defaults["lr"] == 1e-3


@every_trainer
def test_arguments_of_training_by_position(name):
    values = {**TRAINING, "training_batch_size": 20, "max_num_epochs": 2}
    arguments = list(parameters_of(DROP_INS[name].host.train))[1:]
    given = [values[a] for a in arguments[: arguments.index("resume_training")]]
    trainer = with_data(name)
    train(trainer, *given)
    assert trainer.epoch <= 3 and len(trainer.val_indices) == 18
    optimizer = trainer.optimizer
    train(trainer, *given, True)  # resumed
    assert trainer.optimizer is optimizer


INVALID = {
    "training_batch_size": (0, "ten"),
    "learning_rate": (-1.0, "fast"),
    "validation_fraction": (1.5, -0.1),
    "stop_after_epochs": (0, 1.5),
    "max_num_epochs": (0, "all"),
    "clip_max_norm": (-1.0,),
    "no_such_argument": (1,),
}


@every_trainer
def test_what_the_host_refuses_in_training_is_refused(name):
    host, trainer = with_data(name, ours=False), with_data(name)
    before = trainer._neural_net, list(trainer.summary["epochs_trained"])
    for argument, value in [(a, v) for a, values in INVALID.items() for v in values]:
        options = {**EPOCH, argument: value}
        try:
            train(host, **options)
        except Exception as of_host:
            with pytest.raises((type(of_host), TypeError, ValueError)):
                train(trainer, **options)
            assert (trainer._neural_net, trainer.summary["epochs_trained"]) == before
    train(trainer, **EPOCH)


@every_trainer
def test_resuming_retraining_and_a_second_training(name):
    trainer = with_data(name)
    train(trainer, **EPOCH)
    rows, optimizer, epoch = trainer.train_indices, trainer.optimizer, trainer.epoch
    more = {**EPOCH, "max_num_epochs": epoch + 2}
    train(trainer, **more, resume_training=True)
    assert trainer.optimizer is optimizer and trainer.epoch > epoch
    assert torch.equal(trainer.train_indices, rows)
    first = trainer._neural_net
    force = {"force_first_round_loss": True} if name in POSTERIOR_TRAINERS else {}
    if force:
        with pytest.raises(
            (AssertionError, ValueError), match="force_first_round_loss"
        ):
            train(trainer, **EPOCH)
    train(trainer, **EPOCH, retrain_from_scratch=True, **force)
    assert trainer._neural_net is not first
    theta, x, score = simulations(40)
    trainer.append_simulations(theta, x, score=score, score_check=False)
    train(trainer, **EPOCH, **force)
    assert len(trainer._score_roundwise) == 2


@pytest.mark.parametrize(
    "name",  # the others have such a test of their own by default
    [
        pytest.param(name, marks=[] if name in ("NLE_A", "NPE_C") else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_training_further_leaves_earlier_posteriors_alone(name):
    trainer = with_data(name)
    slow = {**EPOCH, "learning_rate": 1e-5}  # the best epoch is the last
    train(trainer, **slow)
    own = {"beta": 1.0} if name == "ACE" else {}
    first, twin = (trainer.build_posterior(**own) for _ in range(2))
    theta, x_o = torch.randn(4, 2), torch.zeros(1, 2)
    before = first.potential(theta, x=x_o)
    weights = weights_of(trainer._neural_net)
    train(trainer, **{**slow, "max_num_epochs": 5}, resume_training=True)
    assert not torch.equal(weights_of(trainer._neural_net), weights)  # control
    for posterior in (first, twin):
        assert torch.equal(posterior.potential(theta, x=x_o), before)


@every_trainer
def test_a_loss_that_is_not_finite_is_refused_in_the_name_of_the_trainer(name):
    trainer = with_data(name)
    train(trainer, **EPOCH)
    losses = trainer._neural_net.parameters()
    next(iter(losses)).data.fill_(torch.nan)
    trainer._raw = None  # ScoreNPE's own copy of the weights
    options = {"resume_training": True, "max_num_epochs": trainer.epoch + 2}
    # That of NRE-A is refused by torch, before sbi looks at it.
    said = "between 0 and 1|N[RLP]+E|CostEstimator"
    with pytest.raises((ValueError, RuntimeError), match=said):
        train(trainer, training_batch_size=20, **options)


@pytest.mark.parametrize("name", RATIO_TRAINERS)
def test_arguments_of_the_loss_are_the_hosts(name):
    """It copies each of them for every batch: nothing of ours may travel there."""
    trainer, seen = with_data(name), []
    get_losses = trainer._get_losses

    def spy(batch, loss_args=None):
        seen.append(loss_args)
        return get_losses(batch=batch, loss_args=loss_args)

    trainer._get_losses = spy
    train(trainer, **EPOCH)
    assert type(seen[0]).__module__.startswith("sbi.")
    if name == "NRE_A":
        with pytest.raises(TypeError, match="LossArgsNRE_A"):
            train(trainer, **EPOCH, loss_kwargs={"num_atoms": 3})


@every_trainer
def test_gradients_are_let_go_and_the_network_is_left_for_use(name):
    estimator = train(with_data(name), **EPOCH)
    assert all(parameter.grad is None for parameter in estimator.parameters())
    assert not estimator.training


def collate(rows):
    theta, x, prior_masks = zip(*rows, strict=True)
    return torch.stack(theta), torch.stack(x), torch.stack(prior_masks)


LOADERS = {
    "a collate_fn": {"collate_fn": collate},
    "the last batch": {"drop_last": False},
    "a worker": {"num_workers": 1},
}


# A process for each epoch takes its time, and the code is shared.
WITH_WORKERS = ("NRE_A", "NPSE", "ACE")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] if name in MIXES else [])
        for name in NAMES
        for case in LOADERS
        if case != "a worker" or name in WITH_WORKERS
    ],
)
def test_arguments_of_the_loaders(name, case):
    def attempt(ours):
        trainer = with_data(name, ours)
        return train(trainer, **EPOCH, dataloader_kwargs=LOADERS[case]), trainer

    estimator, trainer = or_xfail(attempt, name)
    assert weights_of(estimator).isfinite().all()
    assert trainer.summary["epochs_trained"][-1] >= 1


def test_a_sampler_of_the_users_is_used():
    trainer = with_data("NRE_A")
    seen = []
    get_losses = trainer._get_losses
    trainer._get_losses = lambda batch, **kwargs: (
        seen.append(batch[0]) or get_losses(batch, **kwargs)
    )
    sampler = SequentialSampler(range(60))
    train(trainer, **EPOCH, dataloader_kwargs={"sampler": sampler})
    assert torch.equal(seen[0], trainer.get_simulations()[0][:20])


# --- Rounds ------------------------------------------------------------------------


def second_round(name, ours):
    trainer = with_data(name, ours, 100)
    train(trainer, **EPOCH)
    own = {"beta": 1.0} if ours and name == "ACE" else {}
    if name not in POSTERIOR_TRAINERS:
        own["mcmc_parameters"] = {"num_chains": 4, "warmup_steps": 2, "thin": 1}
    proposal = trainer.build_posterior(**own).set_default_x(torch.zeros(1, 2))
    theta = proposal.sample((60,), show_progress_bars=False)
    x = SIMULATOR(theta)
    own = {"score": SIMULATOR.score(theta, x)} if ours else {}
    place = {"from_round": 1}
    if name in POSTERIOR_TRAINERS:
        place = {"proposal": proposal}
    trainer.append_simulations(theta, x, **place, **own)
    train(trainer, **EPOCH)
    return trainer


@every_trainer
def test_two_rounds_with_the_posterior_as_proposal_and_the_first_discarded(name):
    trainer = or_xfail(lambda ours: second_round(name, ours), name)
    assert trainer._data_round_index == [0, 1]
    assert [len(s) for s in trainer._score_roundwise] == [100, 60]
    assert len(trainer.get_simulations(1)[0]) == 60
    train(trainer, **EPOCH, discard_prior_samples=True)
    rows = torch.cat([trainer.train_indices, trainer.val_indices])
    assert sorted(rows.tolist()) == list(range(60))


def test_messages_name_our_class(capsys):
    trainer = second_round("NPE_C", ours=True)
    trainer.train(**EPOCH)
    assert "Using ScoreAugmentedNPE with atomic loss" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="Multi-round ScoreNPE"):
        second_round("NPSE", ours=True)
    x_o, theta = torch.zeros(1, 2), torch.zeros(60, 2)
    shared = DirectPosterior(trainer._neural_net, SIMULATOR.prior)
    with pytest.raises(ValueError, match="default"):
        trainer.append_simulations(theta, theta, proposal=shared)
    with pytest.raises(ValueError, match="the same object as the trainer"):
        trainer.append_simulations(theta, theta, proposal=shared.set_default_x(x_o))
    assert len(trainer._theta_roundwise) == len(trainer._score_roundwise) == 2


@every_trainer
def test_data_and_scores_live_where_data_device_says(name):
    theta, x, score = simulations(60)
    trainer = new_drop_in(name).append_simulations(
        theta, x, data_device="cpu", score=score, score_check=False
    )
    train(trainer, **EPOCH)
    parts = (trainer._theta_roundwise, trainer._x_roundwise, trainer._score_roundwise)
    assert {part[0].device.type for part in parts} == {"cpu"}
