"""Bad input: a typed error that says expected, got and remedy, and nothing stored."""

import functools

import pytest
import torch
from registry import (
    SIMULATOR,
    TRAINERS,
    new_drop_in,
    new_trainer,
    simulations,
    train,
    weights_of,
)
from sbi.inference.posteriors.posterior_parameters import DirectPosteriorParameters
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import nn

from sbi_scoreaug import (
    ScoreAugmentedNRE,
    check_score,
    simulate_with_score,
    smooth_classifier_nn,
)
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
    ScoreaugError,
)

THETA, X, SCORE = simulations(60)
NAMES = ("NRE_A", "NLE_A", "NPE_C")


def relu_builder(theta, x):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    return RatioEstimator(net, theta[0].shape, x[0].shape)


def state_of(trainer):
    """All that appending and training change, to compare before and after."""
    return {
        "rounds": [id(t) for t in trainer._theta_roundwise],
        "x": [id(t) for t in trainer._x_roundwise],
        "scores": [id(t) for t in trainer._score_roundwise],
        "kinds": list(trainer._score_kinds),
        "index": list(trainer._data_round_index),
        "masks": len(trainer._prior_masks),
        "network": id(trainer._neural_net),
        "summary": {key: list(values) for key, values in trainer.summary.items()},
    }


# name: (score, other arguments of append_simulations, type, built-in, words)
APPEND = {
    "a column too few": (
        SCORE[:, :1], {}, InvalidInputError, ValueError, ["(60, 2)", "(60, 1)"],
    ),
    "a row too few": (
        SCORE[:59], {}, InvalidInputError, ValueError, ["(60, 2)", "(59, 2)"],
    ),
    "transposed": (SCORE.T, {}, InvalidInputError, ValueError, ["(60, 2)", "(2, 60)"]),
    "flat": (SCORE[:, 0], {}, InvalidInputError, ValueError, ["(60, 2)", "(60,)"]),
    "NaN throughout": (
        torch.full_like(SCORE, torch.nan), {}, InvalidInputError, ValueError,
        ["at least one known", "NaN", "Leave"],
    ),
    "infinite": (
        SCORE.clone().fill_(torch.inf), {}, InvalidInputError, ValueError,
        ["finite", "120", "NaN"],
    ),
    "beyond single precision": (
        SCORE.double() * 1e300, {}, InvalidInputError, ValueError,
        ["finite", "float32", "120", "NaN"],
    ),
    "an array": (
        SCORE.numpy(), {}, InvalidTypeError, TypeError,
        ["Tensor", "ndarray", "as_tensor"],
    ),
    "integers": (
        SCORE.long(), {}, InvalidTypeError, TypeError,
        ["floating", "int64", "as_tensor"],
    ),
    "an unknown kind": (
        SCORE, {"score_kind": "latent"}, InvalidInputError, ValueError,
        ["score_kind", "'exact'", "'joint'", "'latent'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", APPEND.values(), ids=APPEND)
@pytest.mark.parametrize("name", (*NAMES, "NPSE", "ACE"))
def test_scores_that_cannot_be_used_are_refused_and_nothing_is_stored(name, case):
    score, kwargs, error, builtin, words = case
    trainer = new_drop_in(name).append_simulations(THETA, X, score=SCORE)
    before = state_of(trainer)
    with pytest.raises(error) as caught:
        trainer.append_simulations(THETA, X, score=score, **kwargs)
    assert isinstance(caught.value, builtin) and isinstance(caught.value, ScoreaugError)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert state_of(trainer) == before
    if name == "NRE_A":  # flows take longer
        train(trainer, max_num_epochs=1)  # earlier rounds are intact


CLASSIFIERS = {
    "sbi's resnet": ("resnet", "smooth"),
    "sbi's mlp": ("mlp", "ReLU"),
    "sbi's linear": ("linear", "smooth"),
    "built by classifier_nn": (classifier_nn("mlp"), "ReLU"),
    "a builder of the user's": (relu_builder, "ReLU"),
    "ReLU in the embedding of theta": (
        smooth_classifier_nn(
            "mlp", embedding_net_theta=nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        ),
        "ReLU",
    ),
    "batch norm": (smooth_classifier_nn("resnet", use_batch_norm=True), "BatchNorm1d"),
}


@pytest.mark.parametrize("case", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_networks_whose_score_cannot_be_trained_are_refused_with_scores_only(case):
    classifier, word = case
    trainer = new_trainer(classifier=classifier)
    before = state_of(trainer)
    with pytest.raises(InvalidInputError, match=word) as caught:
        trainer.append_simulations(THETA, X, score=SCORE)
    assert "expected" in str(caught.value) and "got" in str(caught.value)
    assert state_of(trainer) == before
    train(trainer.append_simulations(THETA, X), max_num_epochs=1)


# name: (score_fn, type, words)
FUNCTIONS = {
    "a column too few": (
        lambda theta, x: theta[:, :1], InvalidInputError, ["score_fn", "(60, 1)"],
    ),
    "a row too few": (
        lambda theta, x: theta[1:], InvalidInputError, ["score_fn", "(59, 2)"],
    ),
    "no tensor": (
        lambda theta, x: theta.numpy(), InvalidTypeError, ["score_fn", "ndarray"],
    ),
    "NaN throughout": (
        lambda theta, x: theta * torch.nan, InvalidInputError, ["score_fn", "NaN"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_score_functions_that_return_something_else_are_refused(name, case):
    score_fn, error, words = case
    trainer = new_trainer(TRAINERS[name][1], score_fn=score_fn)
    before = state_of(trainer)
    with pytest.raises(error) as caught:
        trainer.append_simulations(THETA, X)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert state_of(trainer) == before


def test_a_score_function_that_cannot_be_called_is_refused():
    with pytest.raises(InvalidTypeError, match="score_fn.*Tensor"):
        new_trainer(score_fn=SCORE)


class FlatWeights:
    def weights(self, host_loss, score_losses, parameters):
        return torch.ones(5)


# name: (arguments of train, type, words)
TRAIN = {
    "a name": (
        {"score_weighting": "wang"}, InvalidInputError, ["gradient_norm", "'wang'"],
    ),
    "negative weight": ({"score_weighting": -1.0}, InvalidInputError, [">= 0", "-1"]),
    "NaN weight": (
        {"score_weighting": float("nan")}, InvalidInputError, ["finite", "nan"],
    ),
    "one negative weight": (
        {"score_weighting": torch.tensor([1.0, -2.0])}, InvalidInputError,
        [">= 0", "-2"],
    ),
    "weights too many": (
        {"score_weighting": torch.ones(3)}, InvalidInputError, ["(2,)", "(3,)"],
    ),
    "weights in a matrix": (
        {"score_weighting": torch.ones(2, 2)}, InvalidInputError, ["(2,)", "(2, 2)"],
    ),
    "no weights": (
        {"score_weighting": object()}, InvalidTypeError, ["weights", "object"],
    ),
    "a list": ({"score_weighting": [1.0, 1.0]}, InvalidTypeError, ["tensor", "list"]),
    "a loss": ({"score_loss": "cubic"}, InvalidInputError, ["huber", "'cubic'"]),
    "a loss that sums": (
        {"score_loss": torch.sum}, InvalidInputError, ["score_loss", "shape"],
    ),
    "every 0": ({"score_every": 0}, InvalidInputError, ["score_every", "0"]),
    "every 1.5": ({"score_every": 1.5}, InvalidTypeError, ["integer", "1.5"]),
    "gain 0": ({"score_gain": 0.0}, InvalidInputError, ["score_gain", "positive"]),
    "gain infinite": (
        {"score_gain": float("inf")}, InvalidInputError, ["score_gain", "inf"],
    ),
    "gain of text": ({"score_gain": "1"}, InvalidTypeError, ["score_gain", "number"]),
    "unknown pairs": (
        {"score_pairs": "all"}, InvalidInputError, ["score_pairs", "'local'", "'all'"],
    ),
    "local without function": (
        {"score_pairs": "local"}, InvalidInputError, ["score_fn", "'joint'"],
    ),
    "both without function": (
        {"score_pairs": "both"}, InvalidInputError, ["score_fn", "'joint'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("name", NAMES)
def test_options_that_cannot_be_used_are_refused_before_training(name, case):
    options, error, words = case
    trainer = new_trainer(TRAINERS[name][1]).append_simulations(THETA, X, score=SCORE)
    before = state_of(trainer)
    with pytest.raises(error) as caught:
        train(trainer, max_num_epochs=1, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert state_of(trainer) == before
    if name == "NRE_A":
        train(trainer, max_num_epochs=1)


def test_weights_of_the_wrong_shape_from_a_hook_are_refused():
    trainer = new_trainer().append_simulations(THETA, X, score=SCORE)
    with pytest.raises(InvalidInputError, match="one weight a parameter"):
        train(trainer, max_num_epochs=1, score_weighting=FlatWeights())


@pytest.mark.parametrize("pairs", ["local", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_joint_scores_supervise_joint_pairs_only(name, pairs):
    trainer = new_trainer(TRAINERS[name][1], score_fn=SIMULATOR.score)
    trainer.append_simulations(THETA, X, score=SCORE, score_kind="joint")
    with pytest.raises(InvalidInputError, match="joint score is valid only"):
        train(trainer, max_num_epochs=1, score_pairs=pairs)


def test_joint_scores_need_the_squared_loss():
    trainer = new_trainer().append_simulations(
        THETA, X, score=SCORE, score_kind="joint"
    )
    with pytest.raises(InvalidInputError, match="'square'.*'huber'"):
        train(trainer, max_num_epochs=1, score_loss="huber")


@pytest.mark.parametrize("num_simulations", [2, 10])
def test_too_few_simulations_are_refused(num_simulations):
    rows = slice(num_simulations)
    trainer = new_trainer().append_simulations(THETA[rows], X[rows], score=SCORE[rows])
    with pytest.raises(InvalidInputError, match="at least two"):
        train(trainer, max_num_epochs=1)
    assert trainer._neural_net is None


def test_fewer_simulations_than_a_batch_train():
    trainer = new_trainer().append_simulations(THETA, X, score=SCORE)
    sizes = []
    losses = trainer._get_losses

    def get_losses(batch, *args, **kwargs):
        sizes.append((trainer._neural_net.training, len(batch[0])))
        return losses(batch, *args, **kwargs)

    trainer._get_losses = get_losses
    train(trainer, max_num_epochs=1, training_batch_size=1000)
    in_training = [size for training, size in sizes if training]
    assert in_training and set(in_training) == {len(trainer.train_indices)}


def test_the_surrogate_score_needs_a_network_and_pairs():
    trainer = new_trainer().append_simulations(THETA, X, score=SCORE)
    with pytest.raises(InvalidStateError, match="train") as caught:
        trainer.surrogate_score(THETA, X)
    assert isinstance(caught.value, RuntimeError)
    train(trainer, max_num_epochs=1)
    with pytest.raises(InvalidInputError, match="60 and 59"):
        trainer.surrogate_score(THETA, X[1:])
    with pytest.raises(InvalidTypeError, match="got ndarray and Tensor"):
        trainer.surrogate_score(THETA.numpy(), X)
    one = trainer.surrogate_score(THETA, X[:1])
    assert torch.equal(one, trainer.surrogate_score(THETA, X[:1].expand_as(X)))


def test_the_functions_refuse_with_the_same_types():
    with pytest.raises(InvalidInputError):
        check_score(THETA, X, SCORE[:, :1], SIMULATOR.prior)
    with pytest.raises(InvalidTypeError):
        simulate_with_score(
            lambda theta: theta, SIMULATOR.prior, 3, show_progress_bar=False
        )


@pytest.mark.parametrize(
    ("theta", "x"),
    [(THETA.double(), X), (THETA, X.double()), (THETA, X[:59]), (THETA.long(), X)],
    ids=["double theta", "double x", "a row of x too few", "integer theta"],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_sbi_refuses_without_scores_it_refuses_with_them(name, theta, x):
    plain = new_trainer(TRAINERS[name][1])
    with pytest.raises(Exception) as expected:  # noqa: B017, PT011
        plain.append_simulations(theta, x)
    trainer = new_trainer(TRAINERS[name][1])
    with pytest.raises(type(expected.value)) as caught:
        trainer.append_simulations(theta, x, score=SCORE)
    assert str(caught.value) == str(expected.value)
    assert state_of(trainer)["rounds"] == [] == state_of(trainer)["scores"]


def test_score_by_position_unknown_classifier_and_joint_without_score_are_named():
    trainer = new_trainer()
    with pytest.raises(TypeError, match="score=score"):
        trainer.append_simulations(THETA, X, SCORE)
    with pytest.raises(ValueError, match="score_kind: expected a score"):
        trainer.append_simulations(THETA, X, score_kind="joint")
    assert trainer._theta_roundwise == []
    with pytest.raises(ValueError, match="smooth_resnet"):
        ScoreAugmentedNRE(SIMULATOR.prior, classifier="smooth_rensnet")


def test_likelihoods_of_images_are_refused_as_by_sbi():
    for score in (None, SCORE):
        trainer = new_trainer(TRAINERS["NLE_A"][1])
        with pytest.raises(AssertionError):
            own = {} if score is None else {"score": score, "score_check": False}
            trainer.append_simulations(THETA, torch.randn(60, 3, 3), **own)
            train(trainer, max_num_epochs=1)


# --- The trainers of costs and of posterior scores -----------------------------------

# name: (trainer, what is called, type, built-in, words: expected, got, remedy)
CALLS = {
    "beta 0": (
        "ACE", lambda t: t.build_posterior(beta=0.0), InvalidInputError, ValueError,
        ["beta", "positive", "0"],
    ),
    "beta NaN": (
        "ACE", lambda t: t.build_posterior(beta=float("nan")), InvalidInputError,
        ValueError, ["beta", "nan"],
    ),
    "unknown rule for beta": (
        "ACE", lambda t: t.build_posterior(beta="best"), InvalidInputError, ValueError,
        ["'best'", "'ml'"],
    ),
    "a sampler that ACE has not": (
        "ACE", lambda t: t.build_posterior(sample_with="direct", beta=1.0),
        InvalidInputError, ValueError, ["'mcmc'", "'direct'"],
    ),
    "targets of another shape": (
        "ACE", lambda t: t.append_targets(torch.zeros(2, 3)), InvalidInputError,
        ValueError, ["2", "(2, 3)"],
    ),
    "targets that are no tensor": (
        "ACE", lambda t: t.append_targets([[0.0, 0.0]]), InvalidTypeError, TypeError,
        ["tensor", "list"],
    ),
    "invalid targets": (
        "ACE", lambda t: t.append_targets(torch.full((1, 2), torch.nan)),
        InvalidInputError, ValueError, ["finite", "NaN"],
    ),
    "an unknown way with failures": (
        "ACE", lambda t: t.train(invalid="ignore"), InvalidInputError, ValueError,
        ["'penalty'", "'ignore'"],
    ),
    "a fraction above one": (
        "ACE", lambda t: t.train(widened_fraction=1.5), InvalidInputError, ValueError,
        ["widened_fraction", "1.5"],
    ),
    "x_o of another shape": (
        "ACE",
        lambda t: t.build_posterior(beta=1.0).set_default_x(torch.zeros(1, 3)),
        InvalidInputError, ValueError, ["x_o", "(1, 3)"],
    ),
    "no steps": (
        "NPSE", lambda t: t.train(num_steps=0), InvalidInputError, ValueError,
        ["num_steps", "0"],
    ),
    "a decay of one": (
        "NPSE", lambda t: t.train(ema_decay=1.0), InvalidInputError, ValueError,
        ["ema_decay", "[0, 1)", "1.0"],
    ),
    "a sampler that ScoreNPE has not": (
        "NPSE", lambda t: t.build_posterior(sample_with="mcmc"), InvalidInputError,
        ValueError, ["'auto'", "'mcmc'"],
    ),
    "parameters of another posterior": (
        "NPSE",
        lambda t: t.build_posterior(posterior_parameters=DirectPosteriorParameters()),
        InvalidTypeError, TypeError, ["VectorField", "DirectPosteriorParameters"],
    ),
    "a set without observations": (
        "NPSE",
        lambda t: t.build_posterior().sample((2,), x=torch.zeros(0, 2)),
        InvalidInputError, ValueError, ["at least one observation", "x"],
    ),
}  # fmt: skip


@functools.cache
def trained(name):
    trainer = new_drop_in(name).append_simulations(THETA, X, score=SCORE)
    train(trainer, max_num_epochs=1, training_batch_size=20)
    return trainer


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_calls_that_cannot_be_answered_are_refused_and_change_nothing(case):
    name, call, error, builtin, words = case
    trainer = trained(name)
    before = state_of(trainer), weights_of(trainer._neural_net).clone()
    with pytest.raises(error) as caught:
        call(trainer)
    assert isinstance(caught.value, builtin) and isinstance(caught.value, ScoreaugError)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert state_of(trainer) == before[0]
    assert torch.equal(weights_of(trainer._neural_net), before[1])
