"""Estimators in files without code: every trainer, and files that are refused."""

import pickle

import pytest
import torch
from drop_in_test import EPOCH, with_data
from registry import DROP_INS, SIMULATOR, new_drop_in, simulations, train
from safetensors.torch import load_file, save_file
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, LogNormal

from sbi_scoreaug import (
    AmortizedCostEstimator,
    CostNetBuilder,
    ScoreNPE,
    load_estimator,
    save_estimator,
    smooth_classifier_nn,
)
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError

QUIET = {"show_progress_bars": False}


def potential_of(name, trainer, ours=True):
    options = {"beta": 2.0} if ours and name == "ACE" else {}
    posterior = trainer.build_posterior(**options)
    return posterior.potential(torch.tensor([[0.1, 0.2], [1.0, -1.0]]), x=X_O)


X_O = torch.tensor([[0.3, -0.2]])
HALVES = [pytest.param("host", marks=pytest.mark.slow), "ours"]


@pytest.mark.parametrize("whose", HALVES)
@pytest.mark.parametrize("name", DROP_INS)
def test_an_estimator_comes_back_and_builds_the_same_posterior(name, whose, tmp_path):
    ours, path = whose == "ours", tmp_path / "estimator.safetensors"
    trainer = with_data(name, ours)
    estimator = train(trainer, **EPOCH)
    save_estimator(estimator, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    other, state = new_drop_in(name, ours), torch.get_rng_state()
    loaded = load_estimator(path, other)
    assert torch.equal(state, torch.get_rng_state())
    expected = dict(estimator.named_buffers()) | dict(estimator.named_parameters())
    found = dict(loaded.named_buffers()) | dict(loaded.named_parameters())
    assert found.keys() == expected.keys() and not loaded.training
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    pair = (potential_of(name, t, ours) for t in (trainer, other))
    assert torch.equal(*pair)


def test_the_centre_of_sets_comes_back_too(tmp_path):
    trainer = with_data("NPSE")
    save_estimator(train(trainer, **EPOCH), tmp_path / "e")
    other = new_drop_in("NPSE")
    load_estimator(tmp_path / "e", other)
    drawn = []
    for t in (trainer, other):
        torch.manual_seed(1)
        x = X_O.repeat(3, 1)
        drawn.append(t.build_posterior().sample((20,), x=x, **QUIET))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("distance", "invalid"),
    [("mahalanobis", "drop"), ("mae", "penalty"), ("mmd", "penalty")],
)
def test_costs_that_hold_more_than_a_network(distance, invalid, tmp_path):
    theta, x, _ = simulations(80)
    if distance == "mmd":
        x = x[:, None] + torch.randn(80, 3, 2)
    x[::9] = torch.nan
    trainers = [
        AmortizedCostEstimator(SIMULATOR.prior, distance, **QUIET) for _ in "ab"
    ]
    trainers[0].append_simulations(theta, x)
    estimator = train(trainers[0], **EPOCH, invalid=invalid)
    save_estimator(estimator, tmp_path / "cost")
    loaded = load_estimator(tmp_path / "cost", trainers[1])
    assert torch.equal(
        estimator(theta, x[1:2].expand_as(x)), loaded(theta, x[1:2].expand_as(x))
    )


def test_box_priors_and_embedding_nets(tmp_path):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    options = {"embedding_net": nn.Sequential(nn.Flatten(), nn.Linear(12, 3))}
    theta = prior.sample((60,))
    x = theta.repeat(1, 6).reshape(60, 3, 4) + torch.randn(60, 3, 4)
    trainer = ScoreNPE(prior, **QUIET, **options).append_simulations(theta, x)
    save_estimator(train(trainer, **EPOCH), tmp_path / "e")
    other = ScoreNPE(prior, **QUIET, **options)
    load_estimator(tmp_path / "e", other)
    pair = (t.build_posterior().potential(theta[:4], x=x[:1]) for t in (trainer, other))
    assert torch.equal(*pair)


# --- What is refused -----------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "ratio.safetensors"
    save_estimator(train(with_data("NRE_A"), **EPOCH), path)
    return path


OTHERS = {
    "a wider network": (
        lambda: new_drop_in("NRE_A", classifier=smooth_classifier_nn("mlp")),
        r"shape \(50.*got shape \(8",
    ),
    "another model": (
        lambda: new_drop_in("NRE_A", classifier="smooth_resnet"), "got (nothing|shape)",
    ),
    "another activation": (
        lambda: new_drop_in(
            "NRE_A",
            classifier=smooth_classifier_nn("mlp", "tanh", hidden_features=8),
        ),
        "other values",
    ),
    "another class": (lambda: new_drop_in("NPE_C"), "a .*NFlowsFlow, got a .*Ratio"),
    "a cost": (lambda: new_drop_in("ACE"), "QuadraticCost, got a .*Ratio"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_the_network_of_another_trainer_is_refused(case, saved):
    build, message = OTHERS[case]
    trainer = build()
    with pytest.raises(InvalidInputError, match=message):
        load_estimator(saved, trainer)
    assert trainer._neural_net is None


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_network_under_another_prior_is_refused(shift, tmp_path):
    def trainer(location):
        prior = Independent(LogNormal(location * torch.ones(2), torch.ones(2)), 1)
        return ScoreNPE(prior, num_hidden=8, **QUIET)

    first, path = trainer(0.0), tmp_path / "score.safetensors"
    theta = first._prior.sample((100,))
    first.append_simulations(theta, theta.log() + torch.randn(100, 2))
    save_estimator(first.train(num_steps=4), path)
    other = trainer(shift)
    if shift:
        with pytest.raises(
            InvalidInputError, match="expected the prior of the trainer"
        ):
            load_estimator(path, other)
        assert other._neural_net is None
    else:
        load_estimator(path, other)


def test_other_files_are_refused(saved, tmp_path):
    trainer = new_drop_in("NRE_A")
    wrong = tmp_path / "wrong"
    wrong.write_text("not a network")
    with pytest.raises(InvalidInputError, match="something else"):
        load_estimator(wrong, trainer)
    wrong.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InvalidInputError, match="something else"):
        load_estimator(wrong, trainer)
    save_file({"weight": torch.ones(2)}, wrong)
    with pytest.raises(InvalidInputError, match="got None"):
        load_estimator(wrong, trainer)
    wrong.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match="something else"):
        load_estimator(wrong, trainer)
    with pytest.raises(FileNotFoundError):
        load_estimator(tmp_path / "nowhere", trainer)
    assert trainer._neural_net is None


def test_changed_weights_are_noticed(saved, tmp_path):
    from safetensors import safe_open

    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, tmp_path / "changed", metadata=metadata)
    with pytest.raises(InvalidInputError, match="other values"):
        load_estimator(tmp_path / "changed", new_drop_in("NRE_A"))


def test_other_objects_are_refused(saved, tmp_path):
    with pytest.raises(InvalidTypeError, match="pickle it"):
        save_estimator(new_drop_in("NRE_A"), tmp_path / "trainer")
    with pytest.raises(InvalidTypeError, match="trainer: expected"):
        load_estimator(saved, nn.Linear(2, 2))
    trainer = new_drop_in("NRE_A")
    trainer._build_neural_net = None  # as after unpickling
    with pytest.raises(InvalidStateError, match="unpickled"):
        load_estimator(saved, trainer)


def test_a_folder_that_is_not_there_leaves_nothing_behind(tmp_path):
    estimator = train(with_data("NRE_A"), **EPOCH)
    with pytest.raises(OSError, match="could not be written"):
        save_estimator(estimator, tmp_path / "nowhere" / "e")
    assert not list(tmp_path.iterdir())


def test_nothing_in_a_file_is_code(saved):
    assert b"pickle" not in saved.read_bytes() and saved.read_bytes()[8:9] == b"{"


def test_options_of_the_builder_are_the_trainers(tmp_path):
    builder = CostNetBuilder("net", hidden_features=12)
    trainer = with_data("ACE", scores=False, cost_net=builder)
    save_estimator(train(trainer, **EPOCH), tmp_path / "e")
    assert load_estimator(tmp_path / "e", new_drop_in("ACE", cost_net=builder))
