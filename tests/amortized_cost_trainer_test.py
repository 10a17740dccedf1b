"""The trainer's life cycle, sbi's samplers on its potential, and bad input."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from sbi.diagnostics import run_sbc, run_tarp
from sbi.inference import NLE_A, EnsemblePosterior
from sbi.inference.posteriors import MCMCPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.utils import BoxUniform
from torch.distributions import MultivariateNormal

from sbi_scoreaug import AmortizedCostEstimator, CostNetBuilder
from sbi_scoreaug.amortized_cost import ModelWarning
from sbi_scoreaug.amortized_cost.training_loss import TrainingLoss
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError, InvalidTypeError
from sbi_scoreaug.simulators import GaussianMixtureTrials, LinearGaussianCost

PROBLEM = LinearGaussianCost(dim=2, noise_variance=0.25)
QUICK = {"max_num_epochs": 1}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:The following arguments are deprecated"),
]


def new_trainer(num_simulations=300, problem=PROBLEM, **kwargs):
    theta = problem.prior.sample((num_simulations,))
    trainer = AmortizedCostEstimator(problem.prior, show_progress_bars=False, **kwargs)
    return trainer.append_simulations(theta, problem(theta))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    trainer = new_trainer(1000)
    trainer.train(max_num_epochs=8)
    return trainer


@pytest.fixture
def x_o():
    return PROBLEM(torch.tensor([[0.5, -0.5]]))


@pytest.fixture
def validation_restored():
    """Pyro switches torch's argument validation on for good."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


def mean_matches(samples, x_o, beta, atol=0.2):
    exact = PROBLEM.exact_posterior(x_o, beta)
    torch.testing.assert_close(samples.mean(0), exact.mean, atol=atol, rtol=0)
    torch.testing.assert_close(samples.std(0), exact.stddev, atol=0.15, rtol=0)


# contract


def test_signatures_keep_the_host_arguments():
    for name in ("append_simulations", "train", "build_posterior"):
        host = inspect.signature(getattr(NLE_A, name)).parameters
        ours = inspect.signature(getattr(AmortizedCostEstimator, name)).parameters
        assert list(ours)[: len(host)] == list(host)
    ours = list(inspect.signature(AmortizedCostEstimator.__init__).parameters)
    host = list(inspect.signature(NLE_A.__init__).parameters)
    assert [a for a in host if a != "density_estimator"] == [
        a for a in ours if a not in ("distance", "cost_net")
    ]


def test_estimator_and_simulations(trained, x_o):
    net = trained._neural_net
    assert isinstance(net, ConditionalEstimator)
    theta = PROBLEM.prior.sample((50,))
    cost = net(theta, x_o.expand(50, 2))
    assert cost.shape == (50,)
    exact = PROBLEM.expected_cost(theta, x_o)
    assert (cost - exact).abs().mean() < 0.1 * exact.std()
    assert (cost.flip(0) - exact).abs().mean() > 0.3 * exact.std()  # control
    assert len(trained.get_simulations()) == 3
    assert all(p.grad is None for p in net.parameters())
    assert trained.summary["epochs_trained"]


# life cycle


def test_resume_rounds_and_retraining():
    trainer = new_trainer()
    first = trainer.train(**QUICK)
    split = trainer.val_indices
    trainer.train(resume_training=True, max_num_epochs=2)
    assert trainer.epoch == 3 and torch.equal(trainer.val_indices, split)
    theta = 0.5 * PROBLEM.prior.sample((100,))
    trainer.append_simulations(theta, PROBLEM(theta), from_round=1)
    assert trainer.train(discard_prior_samples=True, **QUICK) is first
    assert len(trainer.train_indices) == 90
    assert trainer.train(retrain_from_scratch=True, **QUICK) is not first


def test_small_data_get_enough_steps(monkeypatch):
    trainer = new_trainer(60)
    steps = []
    losses = trainer._get_losses
    monkeypatch.setattr(
        trainer,
        "_get_losses",
        lambda batch: steps.append(trainer._neural_net.training) or losses(batch),
    )
    trainer.train(max_num_epochs=1)
    assert sum(steps) >= 2 * 50


def test_validation_pairs_are_fixed_and_training_pairs_fresh(monkeypatch):
    trainer = new_trainer(cost_net="net")
    seen = {True: [], False: []}
    label = TrainingLoss.label

    def spy(loss, x, index, generator):
        pairs = label(loss, x, index, generator)
        seen[trainer._neural_net.training].append(pairs[0])
        return pairs

    monkeypatch.setattr(TrainingLoss, "label", spy)
    trainer.train(max_num_epochs=1)
    half = len(seen[False]) // 2
    assert half and all(map(torch.equal, seen[False][:half], seen[False][half:]))
    assert not torch.equal(seen[True][0], seen[True][1])


def test_pickle_and_copy(trained, x_o):
    posterior = trained.build_posterior(beta=3.0).set_default_x(x_o)
    theta = PROBLEM.prior.sample((5,))
    for twin in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert twin.beta == 3.0 and "beta=3" in repr(twin)
        assert torch.equal(twin.potential(theta), posterior.potential(theta))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = pickle.loads(pickle.dumps(trained))
    again = twin.build_posterior(beta=3.0)
    torch.testing.assert_close(again.potential(theta, x_o), posterior.potential(theta))
    twin.train(resume_training=True, max_num_epochs=trained.epoch)
    with pytest.raises(InvalidStateError, match="unpickled"):
        twin.train(retrain_from_scratch=True)


def test_lambda_distance_trains_but_does_not_pickle(x_o):
    trainer = new_trainer(distance=lambda x, x_t: (x - x_t).abs().sum(1))
    trainer.train(**QUICK)
    posterior = trainer.build_posterior(beta=1.0, sample_with="importance")
    assert posterior.sample((5,), x=x_o).shape == (5, 2)
    with pytest.raises(InvalidTypeError, match="pickled"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickle.dumps(trainer)
    trainer.train(resume_training=True, max_num_epochs=2)  # nothing is lost


def test_posteriors_are_independent(trained, x_o):
    low, high = trained.build_posterior(beta=1.0), trained.build_posterior(beta=9.0)
    high.beta = 3.0
    assert (low.beta, high.beta) == (1.0, 3.0)
    assert low.potential_fn.estimator is not trained._neural_net
    assert type(low).__mro__[2] is MCMCPosterior


# sbi's samplers and diagnostics


@pytest.mark.parametrize(
    ("sample_with", "parameters"),
    [
        ("mcmc", MCMCPosteriorParameters(num_chains=20, warmup_steps=20)),
        ("mcmc", MCMCPosteriorParameters("hmc_pyro", num_chains=1, warmup_steps=40)),
        pytest.param(
            "mcmc",
            MCMCPosteriorParameters("nuts_pyro", num_chains=1, warmup_steps=60),
            marks=pytest.mark.slow,
        ),
        ("rejection", None),
        ("importance", ImportanceSamplingPosteriorParameters()),
        ("vi", VIPosteriorParameters(q="gaussian")),
    ],
)
@pytest.mark.usefixtures("validation_restored")
def test_every_sampler_finds_the_posterior(trained, x_o, sample_with, parameters):
    posterior = trained.build_posterior(
        sample_with=sample_with, posterior_parameters=parameters, beta=4.0
    ).set_default_x(x_o)
    if sample_with == "vi":
        posterior.train(show_progress_bar=False, max_num_iters=150, learning_rate=0.03)
    num = 80 if getattr(parameters, "method", "").endswith("pyro") else 1000
    samples = posterior.sample((num,), show_progress_bars=False)
    mean_matches(samples, x_o, 4.0)
    if sample_with != "vi":
        with pytest.raises(AssertionError):
            mean_matches(samples, x_o + 1.5, 4.0)  # control


def test_beta_can_be_changed_without_training(trained, x_o):
    posterior = trained.build_posterior(sample_with="importance", beta=4.0)
    posterior.set_default_x(x_o)
    spreads = []
    for beta in (1.0, 12.0):
        posterior.beta = beta
        samples = posterior.sample((1000,), show_progress_bars=False)
        mean_matches(samples, x_o, beta)
        spreads.append(samples.std(0).mean())
    assert spreads[1] < 0.6 * spreads[0]  # exactly 0.39


def test_a_variational_fit_holds_at_its_own_beta_only(trained, x_o):
    posterior = trained.build_posterior(sample_with="vi", beta=4.0).set_default_x(x_o)
    fit = {
        "max_num_iters": 2,
        "show_progress_bar": False,
        "check_for_convergence": False,
    }
    posterior.train(**fit, quality_control=False)
    assert posterior.sample((3,)).shape == (3, 2)
    posterior.beta = 9.0
    for twin in (posterior, pickle.loads(pickle.dumps(posterior))):
        with pytest.raises(InvalidStateError, match="fitted, got 9"):
            twin.sample((3,))
        with pytest.raises(InvalidStateError, match="Call its train again"):
            twin.log_prob(torch.zeros(1, 2))
    posterior.train(**fit, quality_control=False)
    assert posterior.log_prob(posterior.sample((3,))).shape == (3,)


def test_sample_batched_warns_of_odd_observations(trained, x_o):
    parameters = MCMCPosteriorParameters(num_chains=2, warmup_steps=2)
    posterior = trained.build_posterior(beta=1.0, posterior_parameters=parameters)
    with pytest.warns(ModelWarning, match="1 of 2"):
        posterior.sample_batched(
            (2,), torch.cat([x_o, x_o + 20]), show_progress_bars=False
        )
    with pytest.raises(InvalidInputError, match="x_o"):
        posterior.sample_batched((2,), x_o * torch.nan)


def test_map_iid_batches_ensembles_and_plots(trained, x_o):
    parameters = MCMCPosteriorParameters(num_chains=10, warmup_steps=10)
    posterior = trained.build_posterior(beta=4.0, posterior_parameters=parameters)
    x = torch.cat([x_o, x_o + 0.5])
    posterior.set_default_x(x)  # two trials: costs add up
    samples = posterior.sample((500,), show_progress_bars=False)
    mean_matches(samples, x.mean(0), 8.0)
    posterior.set_default_x(x_o)
    found = posterior.map(num_iter=30, num_init_samples=20, num_to_optimize=5)
    exact = PROBLEM.exact_posterior(x_o, 4.0).mean
    torch.testing.assert_close(found.flatten(), exact, atol=0.25, rtol=0)
    batched = posterior.sample_batched((20,), x, show_progress_bars=False)
    assert batched.shape == (20, 2, 2)
    other = trained.build_posterior(beta=4.0, posterior_parameters=parameters)
    ensemble = EnsemblePosterior([posterior, other])
    assert ensemble.set_default_x(x_o).sample((4,)).shape == (4, 2)


def test_sbc_and_tarp_run(trained):
    parameters = MCMCPosteriorParameters(num_chains=2, warmup_steps=5)
    posterior = trained.build_posterior(beta=2.0, posterior_parameters=parameters)
    theta = PROBLEM.prior.sample((10,))
    x = PROBLEM(theta)
    options = {"num_posterior_samples": 10, "show_progress_bar": False}
    ranks, _ = run_sbc(theta, x, posterior, **options)
    assert ranks.shape == (10, 2)
    assert run_tarp(theta, x, posterior, **options)[0].isfinite().all()


def test_sets_of_trials():
    problem = GaussianMixtureTrials()
    trainer = new_trainer(400, problem, distance="mmd")
    trainer.train(max_num_epochs=5)
    posterior = trainer.build_posterior(sample_with="importance", beta=75.0)
    truth = torch.tensor([[4.0, -4.0]])
    x_o = problem(truth)
    for x in (x_o, x_o[:, :3], x_o[0]):
        samples = posterior.sample((200,), x=x, show_progress_bars=False)
        assert (samples.mean(0) - truth).abs().max() < 2.5
        assert (samples.mean(0) + truth).abs().max() > 4  # control
    padded = problem(problem.prior.sample((50,)))
    padded[:, 3:] = torch.nan
    trainer.append_simulations(problem.prior.sample((50,)), padded)
    trainer.train(**QUICK, retrain_from_scratch=True)
    trainer = new_trainer(300, problem, distance="energy", cost_net="net")
    assert trainer.train(**QUICK) is not None


def test_images_with_an_embedding_net():
    theta = torch.rand(60, 1)
    x = theta[:, :, None] * torch.ones(60, 4, 4) + 0.1 * torch.randn(60, 4, 4)
    embedding = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    net = CostNetBuilder("net", embedding_net=embedding)
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    trainer = AmortizedCostEstimator(prior, cost_net=net, show_progress_bars=False)
    trainer.append_simulations(theta, x).train(**QUICK)
    posterior = trainer.build_posterior(sample_with="importance", beta=1.0)
    assert posterior.sample((3,), x=x[:1], show_progress_bars=False).shape == (3, 1)


# invalid simulations


def test_failing_simulations():
    theta = PROBLEM.prior.sample((800,))
    x = PROBLEM(theta)
    fails = theta[:, 0] > 0.7
    x[fails] = torch.nan
    truth = torch.tensor([0.6, 0.0])
    x_o = (truth + PROBLEM.shift.float())[None]
    far = x_o + torch.tensor([[8.0, 0.0]])  # beyond the failing region
    above, beyond = {}, {}
    for mode in ("drop", "penalty"):
        trainer = AmortizedCostEstimator(PROBLEM.prior, show_progress_bars=False)
        trainer.append_simulations(theta, x)
        with pytest.raises(InvalidInputError, match=f"in {int(fails.sum())}"):
            trainer.train()
        net = trainer.train(invalid=mode, max_num_epochs=5)
        posterior = trainer.build_posterior(sample_with="importance", beta=4.0)
        samples = posterior.sample((500,), x=x_o, show_progress_bars=False)
        above[mode] = (samples[:, 0] > 0.8).float().mean().item()
        with pytest.warns(ModelWarning):
            samples = posterior.sample((500,), x=far, show_progress_bars=False)
        beyond[mode] = (samples[:, 0] > 0.8).float().mean().item()
    assert above["drop"] > 0.2  # failing says nothing: the control
    assert above["penalty"] < 0.05
    assert beyond["drop"] > 0.9 and beyond["penalty"] < 0.1
    grid = torch.tensor([[-1.0, 0.0], [2.0, 0.0]])
    probability = net.failure_probability(grid)
    assert probability[0] < 0.1 and probability[1] > 0.9
    assert isinstance(trainer.calibrate_beta("ml").beta, float)


def test_exclude_invalid_drops_at_once():
    theta = PROBLEM.prior.sample((50,))
    x = PROBLEM(theta)
    x[:10] = torch.inf
    trainer = AmortizedCostEstimator(PROBLEM.prior, show_progress_bars=False)
    trainer.append_simulations(theta, x, exclude_invalid_x=True)
    assert len(trainer.get_simulations()[0]) == 40


# temperature


def test_calibrations_are_kept_for_a_network_and_a_prior():
    trainer = new_trainer()
    trainer.train(**QUICK)
    options = {"num_observations": 8, "num_particles": 10}
    wide = MultivariateNormal(torch.zeros(2), torch.eye(2))
    found = trainer.calibrate_beta("ml", prior=wide, **options)
    assert trainer.calibrate_beta("ml", prior=wide, **options) is found
    assert trainer.calibrate_beta("coverage", prior=wide, **options) is not found
    for _ in range(3):  # freed priors: their place in memory is used again
        narrow = MultivariateNormal(torch.zeros(2), 0.5 * torch.eye(2))
        other = trainer.calibrate_beta("ml", prior=narrow, **options)
        assert other is not found
        known = [entry[0] for entry in trainer._calibrations]
        assert any(prior is narrow for prior in known)
        del narrow
    assert other.beta != found.beta
    trainer.train(resume_training=True, max_num_epochs=2)
    assert trainer.calibrate_beta("ml", prior=wide, **options) is not found


# honesty


def test_odd_observations_warn(trained, x_o):
    posterior = trained.build_posterior(sample_with="importance", beta=1.0)
    far = x_o + torch.tensor([0.0, 20.0])
    with pytest.warns(ModelWarning, match=r"outside the targets.*x\[1\]"):
        posterior.set_default_x(far)
    with pytest.warns(ModelWarning, match="append_targets"):
        posterior.sample((1,), x=far, show_progress_bars=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        posterior.set_default_x(x_o).sample((1,), show_progress_bars=False)


def test_appended_targets_become_familiar():
    trainer = new_trainer()
    far = torch.full((20, 2), 12.0) + torch.randn(20, 2)
    trainer.append_targets(far).append_targets(far[0]).train(**QUICK)
    posterior = trainer.build_posterior(sample_with="importance", beta=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        posterior.set_default_x(far[:1])
    familiar = posterior.potential_fn.target_range.is_familiar
    assert familiar(far).float().mean() > 0.8
    assert not familiar(far + 50).any()  # control
    trainer._targets.clear()
    trainer.train(**QUICK)
    assert not trainer._target_range.is_familiar(far).any()  # control


def test_diagnosis_tells_right_from_wrong(trained, x_o):
    good = trained.diagnose(x_o, beta=4.0)
    assert not good.model_is_suspicious and good.familiar
    assert 0.4 < good.r_squared < 1 and good.r_squared < good.r_squared_ceiling + 0.1
    assert good.largest_beta > 1
    bad = trained.diagnose(x_o + 15.0, beta=4.0)
    assert bad.model_is_suspicious and not bad.familiar
    assert "probably wrong" in str(bad)


# bad input


def test_bad_construction():
    for kwargs, error in (
        ({"distance": "l7"}, InvalidInputError),
        ({"distance": 3}, InvalidTypeError),
        ({"cost_net": "maf"}, InvalidInputError),
        ({"cost_net": torch.nn.Linear(1, 1)}, InvalidTypeError),
        ({"cost_net": 3}, InvalidTypeError),
    ):
        with pytest.raises(error):
            AmortizedCostEstimator(PROBLEM.prior, **kwargs)


def test_bad_data_store_nothing():
    trainer = new_trainer(50)
    theta, x = PROBLEM.prior.sample((9,)), torch.randn(9, 2)
    for bad, error in (
        ((theta, x[:5]), InvalidInputError),
        ((theta, torch.randn(9, 3)), InvalidInputError),
        ((theta, x * torch.nan), InvalidInputError),
        ((theta * torch.inf, x), InvalidInputError),
        ((theta, x.double()), InvalidTypeError),
        ((theta.numpy(), x), InvalidTypeError),
    ):
        with pytest.raises(error):
            trainer.append_simulations(*bad)
    for bad in (torch.randn(3, 3), x * torch.nan):
        with pytest.raises(InvalidInputError, match="targets"):
            trainer.append_targets(bad)
    assert len(trainer.get_simulations()[0]) == 50 and not trainer._targets
    with pytest.raises(InvalidInputError, match="Append simulations first"):
        AmortizedCostEstimator(PROBLEM.prior).append_targets(torch.randn(2))


def test_sets_and_points_are_told_apart():
    sets = torch.randn(9, 4, 2)
    theta = torch.randn(9, 2)
    with pytest.raises(InvalidInputError, match="expected sets of trials"):
        AmortizedCostEstimator(PROBLEM.prior, "mmd").append_simulations(theta, theta)
    sets[0, 3] = torch.nan
    with pytest.raises(InvalidInputError, match="distance on sets"):
        AmortizedCostEstimator(PROBLEM.prior, "mse").append_simulations(theta, sets)


def test_bad_training_options():
    with pytest.raises(InvalidStateError, match="append_simulations"):
        AmortizedCostEstimator(PROBLEM.prior).train()
    trainer = new_trainer(50)
    for options in (
        {"invalid": "ignore"},
        {"targets_per_simulation": 0},
        {"targets_per_simulation": 1.5},
        {"widened_fraction": 1.5},
        {"widened_scale": -1.0},
    ):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            trainer.train(**options)
    with pytest.raises(ValueError):
        trainer.train(training_batch_size=-1)
    wrong = new_trainer(50, distance=lambda x, x_t: (x - x_t).abs())
    with pytest.raises(InvalidInputError, match="shape"):
        wrong.train()
    holes = new_trainer(
        50, distance=lambda x, x_t: (20 - (x - x_t).abs().amax(1)).log()
    )
    with pytest.raises(InvalidInputError, match="pairs.*widened_fraction=0"):
        holes.train(widened_scale=20.0)
    with pytest.raises(InvalidInputError, match="at least"):
        new_trainer(3).train()
    assert new_trainer(30).train(training_batch_size=500, **QUICK) is not None


def test_custom_networks():
    def build(theta, x):
        class Net(ConditionalEstimator):
            def __init__(self):
                super().__init__(x.shape[1:], theta.shape[1:])
                self.net = torch.nn.Linear(4, 1)

            def loss(self, input, condition):
                raise NotImplementedError

            def forward(self, theta, x_t):
                return self.net(torch.cat([theta, x_t], 1)).squeeze(1)

        return Net()

    trainer = new_trainer(60, cost_net=build)
    trainer.train(**QUICK)
    assert trainer.build_posterior(beta=1.0) is not None
    with pytest.raises(InvalidTypeError, match="ConditionalEstimator"):
        new_trainer(60, cost_net=lambda theta, x: torch.nn.Linear(1, 1)).train()


def test_bad_posterior_options(trained, x_o):
    with pytest.raises(InvalidStateError, match="train"):
        new_trainer(50).build_posterior(beta=1.0)
    for beta in (0, -1.0, float("nan"), True, "map"):
        with pytest.raises(InvalidInputError, match="beta"):
            trained.build_posterior(beta=beta)
    for name in ("direct", "sde", "nuts"):
        with pytest.raises(InvalidInputError, match="sample_with"):
            trained.build_posterior(sample_with=name)
    with pytest.raises(InvalidTypeError, match="cost network"):
        trained.build_posterior(torch.nn.Linear(1, 1))
    posterior = trained.build_posterior(beta=1.0)
    for x in (x_o * torch.nan, torch.zeros(1, 3)):
        with pytest.raises(InvalidInputError, match="x_o"):
            posterior.set_default_x(x)
        with pytest.raises(InvalidInputError, match="x_o"):
            posterior.sample((2,), x=x)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    estimator = trained._neural_net
    assert trained.build_posterior(estimator=estimator, prior=prior, beta=1.0)
