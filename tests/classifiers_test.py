"""Smooth classifiers are sbi's, with a second derivative in theta."""

import pickle

import pytest
import torch
from registry import new_trainer, simulations
from sbi.neural_nets import classifier_nn
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import nn

from sbi_scoreaug import smooth_classifier_nn
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_augmented.classifiers import (
    ACTIVATIONS,
)
from sbi_scoreaug.score_augmented.smoothness import piecewise_linear_part

MODELS = ("resnet", "mlp")


def verdict(estimator, theta, x):
    return piecewise_linear_part(estimator, lambda t: estimator(t, x), theta)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("model", MODELS)
def test_smooth_classifiers_have_a_second_derivative(model, activation):
    theta, x, _ = simulations(30)
    estimator = smooth_classifier_nn(model, activation)(theta, x)
    assert isinstance(estimator, RatioEstimator)
    assert verdict(estimator, theta, x) is None


@pytest.mark.parametrize("model", [*MODELS, "linear"])
def test_the_hosts_classifiers_do_not(model):
    theta, x, _ = simulations(30)
    assert verdict(classifier_nn(model)(theta, x), theta, x)


@pytest.mark.parametrize("model", MODELS)
def test_a_smooth_classifier_has_the_hosts_parameters_at_one_seed(model):
    theta, x, _ = simulations(30)
    states = []
    for build in (classifier_nn(model), smooth_classifier_nn(model)):
        torch.manual_seed(4)
        states.append(build(theta, x).state_dict())
    for (name, a), (other, b) in zip(*(s.items() for s in states), strict=True):
        assert name == other and torch.equal(a, b)


@pytest.mark.parametrize("model", MODELS)
def test_the_hosts_arguments_are_passed_on(model):
    theta, x, _ = simulations(30)
    estimator = smooth_classifier_nn(
        model, hidden_features=13, embedding_net_x=nn.Linear(2, 7), z_score_x="none"
    )(theta, x)
    sizes = {
        m.out_features for m in estimator.net.modules() if hasattr(m, "out_features")
    }
    assert 13 in sizes
    assert _embedding_size(estimator, x) == 7


def _embedding_size(estimator, x):
    return estimator.embedding_net_x(x).shape[1]


def test_a_relu_in_the_embedding_of_x_does_no_harm():
    theta, x, _ = simulations(30)
    embedding = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    estimator = smooth_classifier_nn("mlp", embedding_net_x=embedding)(theta, x)
    assert verdict(estimator, theta, x) is None
    assert isinstance(embedding[1], nn.ReLU)


def test_a_relu_in_the_embedding_of_theta_does():
    theta, x, _ = simulations(30)
    embedding = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
    estimator = smooth_classifier_nn("mlp", embedding_net_theta=embedding)(theta, x)
    assert "ReLU" in verdict(estimator, theta, x)


@pytest.mark.parametrize("name", ["smooth_resnet", "smooth_mlp"])
def test_trainers_know_smooth_classifiers_by_name(name):
    theta, x, score = simulations(100)
    trainer = new_trainer(classifier=name)
    trainer.append_simulations(theta, x, score=score)
    assert trainer._smooth


@pytest.mark.parametrize("model", MODELS)
def test_builders_and_classifiers_can_be_pickled(model):
    theta, x, _ = simulations(30)
    build = pickle.loads(pickle.dumps(smooth_classifier_nn(model)))
    estimator = build(theta, x)
    copy = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copy(theta, x), estimator(theta, x))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("linear",), "'resnet' or 'mlp'"), (("mlp", "relu"), "'silu'")],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments, expected):
    with pytest.raises(InvalidInputError, match=expected):
        smooth_classifier_nn(*arguments)
