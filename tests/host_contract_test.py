"""What this package takes for granted of sbi: one sentence an assertion.

If a release of sbi breaks one of these, the sentence says what has to be looked at.

The tests also run on a checkout of sbi that is put before the installed one:

    PYTHONPATH=path/to/sbi python -m pytest tests/host_contract_test.py ...

So they did on sbi's main branch (900821dc, 20 August 2026; it still calls itself
0.27.0): 1093 passed, of the trainers, posteriors, potentials, storage, bad input and
doctests. And on the same with its branch potentials-bind-port merged (8be2add2), which
replaces `set_x` by `bind`: 358 passed, of the potentials and posteriors. What differs
there is put in the host's place by `host_features_test`.
"""

import inspect

import pytest
import torch
from registry import (
    RATIO_TRAINERS,
    SIMULATOR,
    TRAINERS,
    Recorder,
    new_trainer,
    simulations,
    train,
)
from sbi.inference import NLE_A, NPE_C, NRE_A
from sbi.inference.trainers.base import NeuralInference
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import nn

from sbi_scoreaug import ScoreAugmentedNLE, ScoreAugmentedNPE, _host


@pytest.fixture
def host():
    """NRE_A with simulations, not trained."""
    theta, x, _ = simulations()
    return new_trainer(NRE_A).append_simulations(theta, x)


@pytest.fixture
def trained(host):
    train(host, max_num_epochs=2)
    return host


def parameters_of(function):
    return list(inspect.signature(function).parameters)


def test_the_range_of_versions_is_the_tested_one():
    from importlib.metadata import version

    assert version("sbi").split(".")[:2] == ["0", "27"]


def test_the_default_flow_is_the_hosts_whatever_it_is_called():
    """A name here; None on sbi's main branch, where names are deprecated."""
    for cls in (ScoreAugmentedNLE, ScoreAugmentedNPE):
        ours = inspect.signature(cls).parameters["density_estimator"]
        assert ours.default == _host.DEFAULT_DENSITY
    for cls in (NLE_A, NPE_C):
        theirs = inspect.signature(cls).parameters["density_estimator"]
        assert theirs.default == _host.DEFAULT_DENSITY


# --- What is stored ----------------------------------------------------------------


def test_rounds_are_kept_in_four_lists_of_equal_length(host):
    theta, x, _ = simulations(20)
    host.append_simulations(theta, x, from_round=1)
    lists = (
        host._theta_roundwise,
        host._x_roundwise,
        host._prior_masks,
        host._data_round_index,
    )
    assert [len(entries) for entries in lists] == [2, 2, 2, 2]
    assert host._data_round_index == [0, 1]
    assert host._prior_masks[0].all() and not host._prior_masks[1].any()


def test_get_simulations_returns_three_tensors(host):
    assert len(host.get_simulations()) == 3


def test_rounds_are_selected_by_the_index_of_their_round():
    rounds = [torch.zeros(2, 1), torch.ones(3, 1), 2 * torch.ones(4, 1)]
    later = _host.get_simulations_since_round(rounds, [0, 1, 2], 1)
    assert later.flatten().tolist() == [1.0] * 3 + [2.0] * 4


def test_handle_invalid_x_returns_the_mask_first():
    x = torch.tensor([[0.0], [torch.nan], [torch.inf], [1.0]])
    mask, num_nans, num_infs = _host.handle_invalid_x(x, exclude_invalid_x=True)
    assert mask.tolist() == [True, False, False, True]
    assert (int(num_nans), int(num_infs)) == (1, 1)


def test_append_simulations_drops_rows_with_invalid_x_and_keeps_the_order(host):
    theta, x, _ = simulations(20)
    x[3], x[7] = torch.nan, torch.inf
    with pytest.warns(UserWarning, match="exclude_invalid_x"):
        host.append_simulations(theta, x, exclude_invalid_x=True)
    kept = [row for row in range(20) if row not in (3, 7)]
    assert torch.equal(host._theta_roundwise[-1], theta[kept])


def test_pickling_leaves_out_the_tracker_and_the_builder(host):
    with pytest.warns(UserWarning, match="pickled"):
        state = host.__getstate__()
    assert state["_tracker"] is None and state["_build_neural_net"] is None
    assert state["_theta_roundwise"] is host._theta_roundwise


def test_the_default_tracker_asks_for_the_log_root_by_that_name(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sbi.inference.trainers.base.get_log_root", lambda: str(tmp_path)
    )
    trainer = NRE_A(SIMULATOR.prior, show_progress_bars=False)
    assert str(trainer._tracker.log_dir).startswith(str(tmp_path))


# --- Batches -----------------------------------------------------------------------


def test_loaders_hold_theta_x_and_prior_masks(host):
    for loader in host.get_dataloaders():
        assert len(loader.dataset.tensors) == 3
        assert torch.equal(loader.dataset.tensors[0], host.get_simulations()[0])


def test_loaders_drop_the_last_batch_and_know_their_batch_size(host):
    train_loader, val_loader = host.get_dataloaders(training_batch_size=70)
    assert train_loader.drop_last and val_loader.drop_last
    assert (train_loader.batch_size, val_loader.batch_size) == (70, 20)


def test_train_and_validation_indices_are_a_partition(host):
    host.get_dataloaders()
    rows = torch.cat([host.train_indices, host.val_indices])
    assert rows.sort().values.tolist() == list(range(200))
    assert len(host.val_indices) == 20


def test_the_split_takes_one_permutation_and_resuming_takes_none(host):
    torch.manual_seed(3)
    host.get_dataloaders()
    split, state = host.train_indices, torch.get_rng_state()
    torch.manual_seed(3)
    torch.randperm(200)
    assert torch.equal(state, torch.get_rng_state())
    host.get_dataloaders(resume_training=True)
    assert torch.equal(host.train_indices, split)
    assert torch.equal(state, torch.get_rng_state())


def test_get_dataloaders_takes_the_arguments_that_we_pass_on():
    names = parameters_of(NeuralInference.get_dataloaders)
    assert names[1:] == [
        "starting_round",
        "training_batch_size",
        "validation_fraction",
        "resume_training",
        "dataloader_kwargs",
    ]


# --- The loop ----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_losses_read_the_batch_by_index_and_ignore_further_columns(name):
    host = new_trainer(TRAINERS[name][0])
    theta, x, score = simulations()
    host.append_simulations(theta, x)
    seen = []
    original = host._get_losses

    def get_losses(batch, **loss_args):
        torch.manual_seed(5)
        three = original(batch=batch, **loss_args)
        torch.manual_seed(5)
        extended = [*batch, torch.full_like(batch[0], torch.nan), batch[0] > 0]
        seen.append(torch.equal(original(extended, **loss_args), three))
        return three

    host._get_losses = get_losses
    train(host, max_num_epochs=1)
    assert all(seen) and seen


def test_the_loop_hands_batches_to_get_losses_as_a_keyword():
    assert parameters_of(NRE_A._get_losses) == ["self", "batch", "loss_args"]


def test_training_tracks_gradients_and_validation_does_not(host):
    modes = set()
    original = host._get_losses

    def get_losses(*args, **kwargs):
        modes.add((host._neural_net.training, torch.is_grad_enabled()))
        return original(*args, **kwargs)

    host._get_losses = get_losses
    train(host, max_num_epochs=1)
    assert modes == {(True, True), (False, False)}


def test_the_loop_gets_its_configuration_as_a_keyword(host, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        host, "_run_training_loop", lambda **kwargs: seen.update(kwargs)
    )
    host.train(max_num_epochs=7)
    assert set(seen) >= {"train_loader", "val_loader", "train_config", "loss_args"}
    assert seen["train_config"].max_num_epochs == 7


def test_the_budget_of_epochs_is_a_number_also_by_default(host, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        host, "_run_training_loop", lambda **kwargs: seen.update(kwargs)
    )
    host.train()
    assert isinstance(seen["train_config"].max_num_epochs, int)


def test_the_loop_trains_one_epoch_more_than_its_budget(host):
    train(host, max_num_epochs=3)
    assert host.summary["epochs_trained"] == [4]


def test_the_optimiser_is_adam_and_remembers_its_first_rate(trained):
    assert isinstance(trained.optimizer, torch.optim.Adam)
    trained.optimizer.param_groups[0]["lr"] = 0.0
    assert trained.optimizer.defaults["lr"] == 5e-4


def test_the_optimiser_sees_the_parameters_of_the_network_only(trained):
    held = [p for group in trained.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trained._neural_net.parameters()}


def test_resuming_keeps_optimiser_and_epoch(trained):
    optimizer, epoch = trained.optimizer, trained.epoch
    train(trained, max_num_epochs=epoch + 1, resume_training=True)
    assert trained.optimizer is optimizer and trained.epoch > epoch


def test_epochs_go_through_the_methods_that_we_override():
    assert parameters_of(NeuralInference._converged) == [
        "self",
        "epoch",
        "stop_after_epochs",
    ]
    assert parameters_of(NeuralInference._train_epoch) == [
        "self",
        "train_loader",
        "clip_max_norm",
        "loss_args",
    ]
    assert parameters_of(NeuralInference._validate_epoch)[0] == "self"
    assert parameters_of(NeuralInference._summarize) == ["self", "round_"]


def test_converged_counts_epochs_and_restores_a_copy_of_the_best_weights(trained):
    best = {k: v.clone() for k, v in trained._neural_net.state_dict().items()}
    trained._val_loss = 1.0
    assert not trained._converged(0, 2)
    assert trained._epochs_since_last_improvement == 0
    for parameter in trained._neural_net.parameters():
        parameter.data.zero_()
    trained._val_loss = 2.0
    assert not trained._converged(1, 2)
    assert trained._epochs_since_last_improvement == 1
    assert trained._converged(2, 2)
    for name, value in trained._neural_net.state_dict().items():
        assert torch.equal(value, best[name])
        assert torch.equal(value, trained._best_model_state_dict[name])


def test_the_first_call_of_converged_comes_before_any_training(host):
    calls = []
    original = host._converged
    host._converged = lambda *args: calls.append(args[0]) or original(*args)
    train(host, max_num_epochs=1)
    assert calls == [0, 1]


def test_the_summary_is_a_dictionary_of_lists(trained):
    assert trained.summary is trained._summary
    assert len(trained.summary["validation_loss"]) == trained.epoch
    assert trained.summary["best_validation_loss"] == [trained._best_val_loss]


def test_the_tracker_is_told_by_name_value_and_step(trained):
    names = {name for name, _, _ in trained._tracker.metrics}
    assert isinstance(trained._tracker, Recorder)
    assert {"validation_loss", "training_loss", "epochs_trained"} <= names


def test_gradients_are_let_go_after_training(trained):
    assert all(p.grad is None for p in trained._neural_net.parameters())


def test_the_network_is_built_from_the_training_rows_only():
    theta, x, _ = simulations()
    built = []

    def build(theta, x):
        built.append((theta, x))
        return classifier_nn("mlp")(theta, x)

    host = new_trainer(NRE_A, classifier=build).append_simulations(theta, x)
    train(host, max_num_epochs=1)
    assert torch.equal(built[0][0], theta[host.train_indices])
    assert torch.equal(built[0][1], x[host.train_indices])
    assert len(built) == 1


def test_the_network_is_left_in_evaluation_mode(trained):
    assert not trained._neural_net.training


# --- Ratio estimators --------------------------------------------------------------


@pytest.mark.parametrize("name", RATIO_TRAINERS)
def test_classifier_logits_come_in_groups_with_the_joint_pair_first(name):
    host = TRAINERS[name][0]
    assert parameters_of(host._classifier_logits) == ["self", "theta", "x", "num_atoms"]
    trainer = new_trainer(host)
    trainer._neural_net = lambda theta, x: theta[:, 0]
    theta = torch.arange(6.0).unsqueeze(1)
    logits = trainer._classifier_logits(theta, torch.zeros(6, 3), 4).view(6, 4)
    assert torch.equal(logits[:, 0], theta[:, 0])
    assert not (logits[:, 1:] == theta).any()


@pytest.mark.parametrize("model", ["linear", "mlp", "resnet"])
def test_a_ratio_estimator_is_a_head_on_two_concatenated_embeddings(model):
    theta, x, _ = simulations(30)
    estimator = classifier_nn(model)(theta, x)
    assert isinstance(estimator, RatioEstimator)
    assert _host.splits_into_embedding_and_head(estimator)
    embedded = _host.embed_x(estimator, x)
    log_r = _host.log_ratio(estimator, theta, embedded)
    assert torch.equal(log_r, estimator(theta, x))


def test_an_estimator_that_combines_otherwise_is_not_split():
    class Other(RatioEstimator):
        def unnormalized_log_ratio(self, theta, x):
            return 2 * super().unnormalized_log_ratio(theta, x)

    other = Other(nn.Linear(3, 1), (1,), (2,))
    assert not _host.splits_into_embedding_and_head(other)


def test_the_built_in_classifiers_are_relu_nets_that_we_know_how_to_smooth():
    theta, x, _ = simulations(30)
    mlp = classifier_nn("mlp")(theta, x)
    assert any(isinstance(module, nn.ReLU) for module in mlp.net.modules())
    resnet = classifier_nn("resnet")(theta, x)
    activations = [getattr(m, "activation", None) for m in resnet.net.modules()]
    assert torch.relu in activations or nn.functional.relu in activations


def test_losses_have_a_mean_and_are_finite(host):
    losses = []
    original = host._get_losses

    def get_losses(*args, **kwargs):
        losses.append(original(*args, **kwargs))
        return losses[-1]

    host._get_losses = get_losses
    train(host, max_num_epochs=1)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses)


def test_nonfinite_losses_are_refused_by_name():
    with pytest.raises(ValueError, match="score loss"):
        _host.assert_all_finite(torch.tensor([torch.nan]), "score loss")
