"""What ScoreNPE stands on in sbi beyond its public names, one sentence an assertion."""

import pytest
import torch
from sbi.inference import NPSE, RejectionPosterior
from sbi.inference.potentials.base_potential import BasePotential
from sbi.neural_nets.factory import posterior_score_nn
from sbi.utils import BoxUniform

from sbi_scoreaug import _host


def test_registries_hold_classes_by_name():
    assert issubclass(_host.PREDICTORS["euler_maruyama"], _host.Predictor)
    assert all(issubclass(c, _host.Corrector) for c in _host.CORRECTORS.values())
    assert _host.IID_METHODS["auto_gauss"] is _host.AutoGaussCorrectedScoreFn


def test_support_and_batches():
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    theta = torch.tensor([[0.5, 0.5], [0.5, 2.0]])
    assert _host.within_support(prior, theta).tolist() == [True, False]
    assert _host.ensure_theta_batched(theta[0]).shape == (1, 2)


def test_vp_estimators_have_a_linear_rate():
    theta, x = torch.randn(20, 2), torch.randn(20, 2)
    net = posterior_score_nn("mlp", sde_type="vp")(theta, x)
    assert isinstance(net, _host.VPScoreEstimator)
    m, s = net.mean_t_fn(torch.tensor([0.5])), net.std_fn(torch.tensor([0.5]))
    assert float(m**2 + s**2) == pytest.approx(1, abs=1e-3)
    rate = net.beta_min * 0.5 + (net.beta_max - net.beta_min) * 0.125
    assert float(m.log() * -2) == pytest.approx(rate, rel=1e-3)


def test_training_returns_the_trainers_own_network():
    trainer = NPSE(show_progress_bars=False)
    trainer.append_simulations(torch.randn(40, 2), torch.randn(40, 2))
    estimator = trainer.train(max_num_epochs=1, training_batch_size=20)
    assert estimator is trainer._neural_net
    posterior = trainer.build_posterior(prior=BoxUniform(-torch.ones(2), torch.ones(2)))
    assert posterior.vector_field_estimator is not estimator


def test_potentials_of_vector_fields_are_potentials():
    assert issubclass(_host.VectorFieldBasedPotential, BasePotential)


def test_posteriors_refuse_nan_so_that_missing_observations_are_finite():
    """In 0.27 through `process_x`; on main by an argument that is on by default."""
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    posterior = RejectionPosterior(lambda theta, x: theta[:, 0], proposal=prior)
    with pytest.raises(ValueError, match="NaN"):
        posterior.set_default_x(torch.tensor([[torch.nan]]))
