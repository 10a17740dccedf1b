"""Our samplers in the registries of sbi, for its own posteriors."""

import pytest
import torch
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.samplers.score.predictors import PREDICTORS

from sbi_scoreaug.benchmarks.score_npe import ExactScores
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.score_npe.host_samplers import register_samplers
from sbi_scoreaug.simulators import GaussianGaussian


@pytest.fixture
def registered():
    register_samplers()
    register_samplers()


def ratio(x, simulator, **options):
    posterior = VectorFieldPosterior(ExactScores(simulator), simulator.prior)
    samples = posterior.sample((1000,), x=x, show_progress_bars=False, **options)
    exact = simulator.exact_posterior(x)
    return float((samples.std(0) / exact.variance.sqrt()).mean())


def draw_set(simulator, num_observations):
    theta = torch.tensor([[1.5, -1.5]])
    return simulator(theta.expand(num_observations, -1))


def test_centred_covariances_repair_the_spread(registered):
    simulator = GaussianGaussian(2)
    x = draw_set(simulator, 4)
    options = {"steps": 150, "iid_params": {"precision_est_budget": 1000}}
    centred = ratio(x, simulator, iid_method="gauss_centered", **options)
    assert abs(centred - 1) < 0.1
    assert ratio(x, simulator, iid_method="fnpe", steps=150) < 0.9


def test_algorithm_2_is_the_narrow_one(registered):
    simulator = GaussianGaussian(2)
    x = draw_set(simulator, 1)
    assert abs(ratio(x, simulator, predictor="composed", steps=200) - 1) < 0.1


def test_algorithm_1(registered):
    simulator = GaussianGaussian(2)
    x = draw_set(simulator, 8)
    found = ratio(
        x,
        simulator,
        iid_method="fnpe",
        predictor="hold",
        corrector="annealed_langevin",
        corrector_params={"num_steps": 10, "step": 0.2},
        steps=100,
    )
    assert abs(found - 1) < 0.15


def test_bad_steps_and_taken_names(registered, monkeypatch):
    simulator = GaussianGaussian(2)
    for bad in ({"num_steps": 0}, {"step": 0.0}):
        with pytest.raises(InvalidInputError, match=next(iter(bad))):
            ratio(
                draw_set(simulator, 2),
                simulator,
                predictor="hold",
                corrector="annealed_langevin",
                corrector_params=bad,
            )
    monkeypatch.setitem(PREDICTORS, "hold", object)
    with pytest.raises(InvalidInputError, match="free name"):
        register_samplers()
