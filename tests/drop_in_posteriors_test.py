"""What can be done with sbi's posteriors can be done with those of our trainers.

Trainers are trained once, for an epoch or two: nothing here looks at their quality. As
in `drop_in_test`, a failure that the host's class shares is an `xfail` that quotes it.
"""

import copy
import functools
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from drop_in_test import EPOCH, MIXES, every_trainer, or_xfail, with_data
from registry import DROP_INS, SIMULATOR, new_drop_in, simulations, train
from sbi.analysis import ActiveSubspace, conditional_corrcoeff, pairplot
from sbi.diagnostics import check_sbc, run_sbc, run_tarp
from sbi.diagnostics.lc2st import LC2ST
from sbi.diagnostics.misspecification import calc_misspecification_mmd
from sbi.inference import EnsemblePosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VectorFieldPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets import classifier_nn, posterior_nn
from sbi.utils import BoxUniform, MultipleIndependent
from torch import nn
from torch.distributions import Exponential, Normal

from sbi_scoreaug import CostNetBuilder, smooth_classifier_nn
from sbi_scoreaug.errors import InvalidTypeError

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

X_O = torch.tensor([[0.2, -0.1]])
QUIET = {"show_progress_bars": False}
PARAMETERS = {
    "mcmc": MCMCPosteriorParameters(
        num_chains=2, warmup_steps=2, thin=1, init_strategy="proposal"
    ),
    "rejection": RejectionPosteriorParameters(
        num_samples_to_find_max=100, num_iter_to_find_max=3
    ),
    "vi": VIPosteriorParameters(num_transforms=1, hidden_features=8),
    "importance": ImportanceSamplingPosteriorParameters(oversampling_factor=4),
    "direct": DirectPosteriorParameters(max_sampling_batch_size=100),
    "sde": VectorFieldPosteriorParameters(max_sampling_batch_size=100),
    "ode": VectorFieldPosteriorParameters(enable_transform=True),
}
OLD_PARAMETERS = {
    "mcmc": {"mcmc_parameters": {"num_chains": 2, "warmup_steps": 2, "thin": 1}},
    "rejection": {"rejection_sampling_parameters": {"num_iter_to_find_max": 3}},
    "vi": {"vi_parameters": {"q": "gaussian"}},
    "importance": {"importance_sampling_parameters": {"oversampling_factor": 4}},
    "direct": {"direct_sampling_parameters": {"max_sampling_batch_size": 100}},
    "sde": {"vectorfield_sampling_parameters": {"max_sampling_batch_size": 100}},
    "ode": {"vectorfield_sampling_parameters": {"enable_transform": True}},
}
SAMPLED = [(name, way) for name, pair in DROP_INS.items() for way in pair.samplers]


@functools.cache
def trained(name, ours=True):
    torch.manual_seed(0)
    trainer = with_data(name, ours, 100)
    train(trainer, **{**EPOCH, "max_num_epochs": 3})
    return trainer


def built(name, ours=True, sample_with=None, **options):
    """A posterior with a default x; of variational ones, fitted for a moment."""
    way = sample_with or DROP_INS[name].samplers[0]
    if ours and name == "ACE":
        options.setdefault("beta", 1.0)
    if not {"posterior_parameters", *OLD_PARAMETERS[way]} & set(options):
        options["posterior_parameters"] = PARAMETERS[way]
    trainer = trained(name, ours)
    posterior = trainer.build_posterior(sample_with=way, **options)
    posterior.set_default_x(X_O)
    if way == "vi":
        posterior.train(max_num_iters=3, show_progress_bar=False)
    return posterior


# --- Building ----------------------------------------------------------------------


OLD = pytest.param(True, id="a dictionary", marks=pytest.mark.slow)


@pytest.mark.parametrize("old", [pytest.param(False, id="an object"), OLD])
@pytest.mark.parametrize(("name", "way"), SAMPLED)
def test_every_sampler_with_its_parameters(name, way, old):
    if name in MIXES and (old or way in ("vi", "rejection")):
        return  # the code of NRE_A

    def attempt(ours):
        options = OLD_PARAMETERS[way] if old else {}
        posterior = built(name, ours, way, **options)
        assert posterior.sample((5,), **QUIET).shape == (5, 2)
        potential = posterior.potential(torch.zeros(3, 2))
        assert potential.shape == (3,) and potential.isfinite().all()

    or_xfail(attempt, name)


@pytest.mark.parametrize("name", DROP_INS)
def test_wrong_combinations_are_refused_as_by_the_host(name):
    way = DROP_INS[name].samplers[0]
    wrong = {
        "both": {"posterior_parameters": PARAMETERS[way], **OLD_PARAMETERS[way]},
        "of another": {"posterior_parameters": DirectPosteriorParameters()},
        "unknown": {"sample_with": "dreams"},
        "no estimator": {"prior": SIMULATOR.prior, "sample_with": 3},
    }
    if way == "direct":
        wrong["of another"] = {"posterior_parameters": PARAMETERS["mcmc"]}
    for options in wrong.values():
        options = {"sample_with": way, **options}
        try:
            trained(name, ours=False).build_posterior(**options)
        except Exception as error:
            own = {"beta": 1.0} if name == "ACE" else {}
            with pytest.raises((type(error), ValueError, TypeError)):
                trained(name).build_posterior(**options, **own)


@every_trainer
def test_the_estimator_by_position_and_by_name(name):
    trainer = trained(name)
    own = {"beta": 1.0} if name == "ACE" else {}
    names = ("vector_field_estimator" if name == "NPSE" else "density_estimator",)
    assert trainer.build_posterior(trainer._neural_net, SIMULATOR.prior, **own)
    assert trainer.build_posterior(**{names[0]: trainer._neural_net}, **own)
    with pytest.raises((TypeError, InvalidTypeError)):
        trainer.build_posterior(nn.Linear(2, 2), **own)


SLICES = ("slice_np", "slice_np_vectorized")
GRADIENTS = ("hmc_pyro", "nuts_pyro")
PYMC = ("slice_pymc", "hmc_pymc", "nuts_pymc")
WITH_MCMC = [name for name, pair in DROP_INS.items() if "mcmc" in pair.samplers]


@pytest.mark.slow
@pytest.mark.parametrize("method", SLICES + GRADIENTS + PYMC)
@pytest.mark.parametrize("name", WITH_MCMC)
def test_markov_chains(name, method):
    if method in PYMC:
        pytest.importorskip("pymc")

    def attempt(ours):
        chains = MCMCPosteriorParameters(
            method=method, num_chains=2, warmup_steps=2, thin=1
        )
        posterior = built(name, ours, "mcmc", posterior_parameters=chains)
        assert posterior.sample((4,), **QUIET).shape == (4, 2)

    or_xfail(attempt, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NRE_A", "NLE_A", "ACE"])
def test_chains_in_processes_of_their_own(name):
    chains = MCMCPosteriorParameters(
        method="slice_np", num_chains=2, warmup_steps=2, thin=1, num_workers=2
    )
    posterior = built(name, True, "mcmc", posterior_parameters=chains)
    assert posterior.sample((4,), **QUIET).shape == (4, 2)


# --- Using -------------------------------------------------------------------------


@every_trainer
def test_sampling_evaluating_and_moving(name):
    x = torch.cat([X_O, -X_O, 2 * X_O])
    theta = torch.randn(4, 2)
    attempts = {
        "sample": lambda p: p.sample((3,), x=X_O, **QUIET),
        "sample_batched": lambda p: p.sample_batched((3,), x=x, **QUIET),
        "potential": lambda p: p.potential(theta, x=X_O),
        "map": lambda p: p.map(num_iter=2, num_to_optimize=2, num_init_samples=5),
        "deepcopy": lambda p: copy.deepcopy(p).sample((2,), **QUIET),
    }
    if name in ("NPE_C", "NPSE"):
        attempts["log_prob"] = lambda p: p.log_prob(theta, x=X_O)
        attempts["log_prob_batched"] = lambda p: p.log_prob_batched(
            theta.expand(3, 4, 2).transpose(0, 1), x=x
        )
    shapes = {"sample": (3, 2), "sample_batched": (3, 3, 2), "potential": (4,)}
    failures = []
    for case, attempt in attempts.items():
        try:
            found = attempt(built(name))
        except Exception:
            with pytest.raises(Exception) as of_host:  # noqa: B017, PT011
                attempt(built(name, ours=False))
            failures.append(f"{case}: {of_host.value!r}")
        else:
            shape = shapes.get(case, tuple(found.shape))
            assert tuple(found.shape) == shape and not found.isnan().any(), case
    if failures:
        pytest.xfail(f"sbi's own {DROP_INS[name].host.__name__}: {failures}")


@every_trainer
def test_ensembles_also_with_a_host_member(name):
    """But for NPSE, whose class of posterior is another."""
    members = [built(name), built(name)]
    if name not in ("NPSE", "ACE"):
        members[1] = built(name, ours=False)
    ensemble = EnsemblePosterior(members).set_default_x(X_O)
    assert ensemble.sample((4,), **QUIET).shape == (4, 2)
    assert ensemble.potential(torch.zeros(3, 2)).shape == (3,)


LOADING = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import registry  # classes made in the tests live there
for name in sys.argv[3:]:
    with open(f"{sys.argv[1]}/{name}.pkl", "rb") as file:
        trainer, posterior, theta, potential = pickle.load(file)
    assert torch.equal(posterior.potential(theta), potential), name
    assert posterior.sample((2,), show_progress_bars=False).shape == (2, 2)
    assert len(trainer._score_roundwise[0]) == 100, name
    more = {"resume_training": True, "max_num_epochs": trainer.epoch + 1}
    registry.train(trainer, training_batch_size=20, **more)
    print("loaded", name)
"""


def test_trainers_and_posteriors_are_loaded_in_a_fresh_process(tmp_path):
    theta = torch.randn(5, 2)
    names = list(DROP_INS)
    for name in names:
        posterior = built(name)
        posterior.sample((2,), **QUIET)  # posteriors keep what they sampled with
        content = trained(name), posterior, theta, posterior.potential(theta)
        with warnings.catch_warnings(), (tmp_path / f"{name}.pkl").open("wb") as file:
            warnings.simplefilter("ignore")
            pickle.dump(content, file)
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", LOADING, str(tmp_path), tests, *names]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == [w for name in names for w in ("loaded", name)], (
        done.stderr
    )


# --- Diagnostics and analysis ------------------------------------------------------


def _sbc_and_tarp(name, num_datasets, num_samples):
    def attempt(ours):
        theta, x, _ = simulations(num_datasets)
        posterior = built(name, ours)
        options = {"num_posterior_samples": num_samples, "show_progress_bar": False}
        ranks, dap = run_sbc(theta, x, posterior, **options)
        assert ranks.shape == (num_datasets, 2) and dap.shape == (num_datasets, 2)
        coverage, _ = run_sbc(
            theta, x, posterior, reduce_fns=posterior.potential, **options
        )
        assert coverage.shape == (num_datasets, 1)
        ecp, alpha = run_tarp(theta, x, posterior, num_bins=4, **options)
        assert len(ecp) == len(alpha)
        return ranks, theta, dap

    return or_xfail(attempt, name)


@pytest.mark.parametrize("name", ["NRE_A", "NPE_C", "ACE"])
def test_simulation_based_calibration_coverage_and_tarp(name):
    ranks, theta, dap = _sbc_and_tarp(name, 4, 6)
    assert ranks.shape == theta.shape == dap.shape
    assert (ranks >= 0).all() and (ranks <= 6).all()


@pytest.mark.slow
@every_trainer
def test_calibration_of_every_trainer_and_lc2st(name):
    ranks, theta, dap = _sbc_and_tarp(name, 50, 60)
    assert check_sbc(ranks, theta, dap, num_posterior_samples=60)
    x = SIMULATOR(theta)
    samples = built(name).sample_batched((1,), x=x, **QUIET)[0]
    lc2st = LC2ST(theta, x, samples, classifier="mlp", num_trials_null=3)
    lc2st.train_under_null_hypothesis(verbosity=0)
    lc2st.train_on_observed_data(verbosity=0)
    drawn = built(name).sample((50,), **QUIET)
    assert 0 <= lc2st.p_value(theta_o=drawn, x_o=X_O) <= 1


@every_trainer
def test_misspecification_sensitivity_and_pictures(name):
    from matplotlib import pyplot as plt

    theta, x, _ = simulations(60)
    samples = built(name).sample((30,), **QUIET)
    figure, _ = pairplot(samples)
    plt.close(figure)

    def attempt(ours):
        trainer, posterior = trained(name, ours), built(name, ours)
        p_value, _ = calc_misspecification_mmd(x[:5], x[5:], n_shuffle=5)
        assert 0 <= p_value <= 1
        if name == "NPE_C":
            calc_misspecification_mmd(
                x[:5], x[5:], inference=trainer, mode="embedding", n_shuffle=5
            )
        values, vectors = ActiveSubspace(posterior).find_directions(
            posterior_log_prob_as_property=True,
            norm_gradients_to_prior=name == "NPE_C",
            num_monte_carlo_samples=10,
        )
        assert values.shape == (2,) and vectors.shape == (2, 2)

    or_xfail(attempt, name)


@every_trainer
def test_conditional_correlations(name):
    def attempt(ours):
        posterior = built(name, ours)
        found = conditional_corrcoeff(
            posterior,
            limits=torch.tensor([[-3.0, 3.0]]).repeat(2, 1),
            condition=torch.zeros(1, 2),
            resolution=5,
        )
        assert found.shape == (2, 2)

    or_xfail(attempt, name)


# --- Priors and data of other kinds ------------------------------------------------


class ANumpyPrior:
    """A prior of the user's: not of torch, and without a support."""

    def __init__(self):
        self.torch = torch.distributions.MultivariateNormal(
            torch.zeros(2), torch.eye(2)
        )

    def sample(self, sample_shape=()):
        return self.torch.sample(sample_shape)

    def log_prob(self, theta):
        return self.torch.log_prob(theta)


def custom_prior():
    from sbi.utils.user_input_checks import process_prior

    return process_prior(ANumpyPrior())[0]


PRIORS = {
    "a box": lambda: BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)),
    "independent": lambda: MultipleIndependent(
        [Exponential(torch.ones(1)), Normal(torch.zeros(1), torch.ones(1))]
    ),
    "custom": custom_prior,
}


@pytest.mark.parametrize("case", PRIORS)
@every_trainer
def test_priors_of_other_kinds(name, case):
    def attempt(ours):
        prior = PRIORS[case]()
        theta = prior.sample((60,))
        trainer = new_drop_in(name, ours, prior=prior)
        own = {"score": SIMULATOR.score(theta, theta)} if ours else {}
        trainer.append_simulations(theta, theta.clone(), **own)
        train(trainer, **EPOCH)
        way = DROP_INS[name].samplers[0]
        options = {"beta": 1.0} if ours and name == "ACE" else {}
        posterior = trainer.build_posterior(
            sample_with=way, posterior_parameters=PARAMETERS[way], **options
        )
        if case == "a box":  # the others cannot be moved
            posterior.to("cpu")
        samples = posterior.sample((3,), x=theta[:1], **QUIET)
        assert prior.log_prob(samples).isfinite().all()

    or_xfail(attempt, name)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
        )

    def forward(self, x):
        return self.net(x.reshape(len(x), 1, 4, 4))


@pytest.mark.parametrize("name", ["NRE_A", "NPE_C", "NPSE", "ACE"])
def test_images_through_an_embedding_net(name):
    theta, x, score = simulations(60)
    images = torch.randn(60, 1, 4, 4) + x.sum(1)[:, None, None, None]
    way = DROP_INS[name].samplers[0]

    def attempt(ours, batched=True):
        net, classifier = Embedding(), smooth_classifier_nn if ours else classifier_nn
        options = {
            "NRE_A": lambda: {"classifier": classifier("mlp", embedding_net_x=net)},
            "NPE_C": lambda: {
                "density_estimator": posterior_nn("maf", embedding_net=net)
            },
            "NPSE": lambda: {"embedding_net": net},
            "ACE": lambda: {"cost_net": CostNetBuilder("net", embedding_net=net)},
        }[name]()
        trainer = new_drop_in(name, ours, **options)
        own = {"score": score, "score_check": False} if ours else {}
        trainer.append_simulations(theta, images, **own)
        train(trainer, **EPOCH)
        posterior = trainer.build_posterior(
            sample_with=way,
            posterior_parameters=PARAMETERS[way],
            **({"beta": 1.0} if name == "ACE" else {}),
        )
        assert posterior.sample((3,), x=images[:1], **QUIET).shape == (3, 2)
        if batched:
            drawn = posterior.sample_batched((3,), x=images[:2], **QUIET)
            assert drawn.shape == (3, 2, 2)

    attempt(ours=True, batched=False)
    or_xfail(attempt, name)
