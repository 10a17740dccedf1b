"""What sbi's main branch has and 0.27 has not: each test fails without its detection.

The suite runs on one sbi. Here a stand-in of the other shape is put in its place:
trainers that warn of networks by name, configurations of networks, and potentials whose
observations are bound instead of set. `host_contract_test` says how the suite itself
was run on main.
"""

import copy
import functools
import warnings
from dataclasses import dataclass

import pytest
import sbi.neural_nets
import torch
from registry import DROP_INS, SIMULATOR, new_drop_in, simulations, train
from sbi.inference.potentials.base_potential import BasePotential
from sbi.inference.potentials.vector_field_potential import VectorFieldBasedPotential
from sbi.neural_nets import posterior_score_nn
from torch import nn

from sbi_scoreaug import ScoreNPE, _host
from sbi_scoreaug.amortized_cost import (
    CostBasedPotential,
    CostNetBuilder,
    resolve_distance,
)
from sbi_scoreaug.errors import InvalidTypeError
from sbi_scoreaug.score_npe.potential import FactorizedPotential

EPOCH = {"max_num_epochs": 1, "training_batch_size": 20}

# --- Networks by name ----------------------------------------------------------------

NAMES = [(name, network) for name in DROP_INS for network in DROP_INS[name].names]


@pytest.fixture
def host_warns_of_names(monkeypatch):
    """The hosts' constructors warn of a network by name, as on main."""

    def warning(init, names):
        @functools.wraps(init)
        def warn_of_names(self, *args, **kwargs):
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, str)]
            if set(given) & set(names):
                warnings.warn("Passing a string is deprecated", FutureWarning, 2)
            init(self, *args, **kwargs)

        return warn_of_names

    for pair in (pair for pair in DROP_INS.values() if pair.names):
        init = warning(pair.host.__init__, pair.names)
        monkeypatch.setattr(pair.host, "__init__", init)


@pytest.mark.parametrize(("name", "network"), NAMES)
def test_names_of_networks_cause_no_warning(host_warns_of_names, name, network):
    pair = DROP_INS[name]
    with pytest.warns(FutureWarning, match="string"):  # the stand-in does warn
        new_drop_in(name, ours=False, **{pair.argument: network})
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trainer = new_drop_in(name, **{pair.argument: network})
    theta, x, _ = simulations(60)
    built = trainer._build_neural_net(theta, x)
    assert any(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize("name", ["NLE_A", "NPE_C"])
def test_a_flow_of_none_is_left_to_the_host(monkeypatch, name):
    """The host's default on main; 0.27 refuses it."""
    host, given = DROP_INS[name].host, []
    original = host.__init__

    def with_a_default(self, prior, net, **kwargs):
        given.append(net)
        original(self, prior, net or "maf", **kwargs)

    monkeypatch.setattr(host, "__init__", with_a_default)
    new_drop_in(name, density_estimator=None)
    assert given == [None]


# --- Configurations of networks ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Configuration:
    """In the place of `VectorFieldEstimatorBuilder`: main's, with fewer fields."""

    model: str = "mlp"
    estimator_type: str | None = None
    sde_type: str | None = None
    hidden_features: int | None = None
    embedding_net: nn.Module | None = None

    def build(self, batch_input, batch_condition):
        """As on main; the trainer has to say what is estimated."""
        if self.estimator_type != "score":
            raise ValueError(f"estimator_type is {self.estimator_type}")
        build = posterior_score_nn(
            self.model,
            sde_type=self.sde_type or "ve",
            hidden_features=self.hidden_features or 8,
            embedding_net=self.embedding_net or nn.Identity(),
        )
        return build(batch_input, batch_condition)


def configuration(cls, **fields):
    """Return one of the stand-in's, or one of main's where that is installed."""
    if isinstance(cls, str):
        cls = getattr(sbi.neural_nets, cls, None)
        if cls is None:
            pytest.skip("a configuration of sbi's main branch")
    return cls(**fields)


CONFIGURATIONS = pytest.mark.parametrize(
    "cls", [Configuration, "VectorFieldEstimatorBuilder"]
)


@CONFIGURATIONS
def test_score_npe_takes_configurations_and_makes_them_vp(cls):
    network = configuration(cls, hidden_features=8)
    assert _host.is_configuration(network)
    embedding = nn.Linear(2, 3)
    trainer = new_drop_in("NPSE", vf_estimator=network, embedding_net=embedding)
    theta, x, _ = simulations(60)
    estimator = train(trainer.append_simulations(theta, x), **EPOCH)
    assert isinstance(estimator.net, _host.VPScoreEstimator)
    layers = [m for m in estimator.modules() if isinstance(m, nn.Linear)]
    assert any(m.weight.shape == (3, 2) for m in layers)  # the embedding net
    samples = trainer.build_posterior().sample((5,), x=x[:1], show_progress_bars=False)
    assert samples.shape == (5, 2)
    assert network.sde_type is None and network.estimator_type is None  # untouched


@CONFIGURATIONS
@pytest.mark.parametrize("field", [{"sde_type": "ve"}, {"estimator_type": "flow"}])
def test_what_a_configuration_says_is_not_overwritten(cls, field):
    network = configuration(cls, hidden_features=8, **field)
    trainer = ScoreNPE(SIMULATOR.prior, network, show_progress_bars=False)
    theta, x, _ = simulations(60)
    with pytest.raises((InvalidTypeError, ValueError), match="VP|flow"):
        train(trainer.append_simulations(theta, x), **EPOCH)


@pytest.mark.parametrize(
    ("name", "cls"), [("NRE_A", "LinearClassifierConfig"), ("NLE_A", "MAFConfig")]
)
def test_configurations_go_on_to_the_host(name, cls):
    trainer = new_drop_in(name, **{DROP_INS[name].argument: configuration(cls)})
    theta, x, _ = simulations(60)
    train(trainer.append_simulations(theta, x), **EPOCH)
    assert trainer.build_posterior()


# --- Observations that are bound -----------------------------------------------------


class BoundPotential:
    """In the place of `BasePotential`: as on the branch that replaces `set_x`."""

    def __init__(self, prior, x_o=None, device="cpu"):
        self.prior, self.device = prior, device
        self._x_o, self._x_is_iid = x_o, True

    def set_x(self, x_o, x_is_iid=True):
        warnings.warn("set_x() is deprecated, use bind()", FutureWarning, stacklevel=2)
        self._x_o, self._x_is_iid = x_o, x_is_iid

    def bind(self, x_o, x_is_iid=True):
        bound = copy.copy(self)
        bound._x_o, bound._x_is_iid = x_o, x_is_iid
        return bound


def bind_vector_field(self, x_o, x_is_iid=False, **kwargs):
    """In the place of the vector field's `bind`, which makes one of the host's own."""
    bound = VectorFieldBasedPotential(self.vector_field_estimator, self.prior)
    bound._x_o, bound._x_is_iid = x_o, x_is_iid
    return bound


@pytest.fixture
def host_binds(monkeypatch):
    """Potentials of the host as on the branch; `set_x` is an error."""
    for name in ("__init__", "set_x", "bind"):
        new = vars(BoundPotential)[name]
        monkeypatch.setattr(BasePotential, name, new, raising=False)
    monkeypatch.setattr(VectorFieldBasedPotential, "set_x", BoundPotential.set_x)
    new = {"name": "bind", "value": bind_vector_field, "raising": False}
    monkeypatch.setattr(VectorFieldBasedPotential, **new)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


def cost_potential(x_o, **kwargs):
    torch.manual_seed(1)
    theta, x, _ = simulations(40)
    net = CostNetBuilder("particles")(theta, x, resolve_distance("mae").fit(x))
    return CostBasedPotential(net, SIMULATOR.prior, x_o, beta=2.0, **kwargs)


@pytest.mark.parametrize("iid", [True, False])
def test_a_bound_cost_forgets_the_other_observations(host_binds, iid):
    theta, x, _ = simulations(6)
    potential = cost_potential(x[:1])
    before = potential(theta)
    bound = potential.bind(x + 1, x_is_iid=iid)
    expected = cost_potential(None)
    expected.set_x(x + 1, iid)
    assert isinstance(bound, CostBasedPotential) and bound.beta == 2.0
    assert torch.equal(bound(theta), expected(theta))
    assert not torch.allclose(bound(theta), before)  # control
    assert torch.equal(potential(theta), before)  # the original keeps its own
    assert torch.equal(potential.x_o, x[:1]) and potential.x_is_iid


def test_a_bound_cost_checks_its_observations(host_binds):
    _, x, _ = simulations(6)
    with pytest.raises(ValueError, match="expected shape"):
        cost_potential(x[:, :1])
    with pytest.raises(ValueError, match="expected finite"):
        cost_potential(None).bind(x * torch.nan)


def test_a_bound_set_stays_a_set(host_binds):
    """The host's `bind` would give the host's potential, of one observation."""
    torch.manual_seed(1)
    theta, x, _ = simulations(60)
    trainer = new_drop_in("NPSE").append_simulations(theta, x)
    train(trainer, **EPOCH)
    posterior = trainer.build_posterior()
    expected = posterior.log_prob(theta[:4], x=x[:3])
    new = FactorizedPotential(posterior.vector_field_estimator, posterior.prior, x[:3])
    assert torch.equal(new(theta[:4]), expected)
    bound = posterior.potential_fn.bind(x[:1], x_is_iid=False, iid_method="auto_gauss")
    assert isinstance(bound, FactorizedPotential)
    assert torch.equal(posterior.potential_fn.x_o, x[:3])
    posterior.potential_fn = bound  # as the posteriors of that host do
    torch.testing.assert_close(posterior.log_prob(theta[:4], x=x[:3]), expected)
    tolerant = bound.bind(x[:3], atol=1e-1, rtol=1e-1)
    assert tolerant.ode_kwargs == {"atol": 1e-1, "rtol": 1e-1}
    assert "atol" not in bound.ode_kwargs
