"""The trainers that the score term serves, each beside its host, and small helpers.

A new trainer is one line here: every test over `TRAINERS` runs on it. `RATIO_TRAINERS`
are those among them whose network is a classifier. `DROP_INS` are all trainers of the
package, each beside the class of sbi in whose place it is put.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from sbi.inference import BNRE, NLE_A, NPE_C, NPSE, NRE_A, NRE_B, NRE_C
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_nn,
    posterior_score_nn,
)

from sbi_scoreaug import (
    AmortizedCostEstimator,
    CostNetBuilder,
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
    ScoreNPE,
    smooth_classifier_nn,
)
from sbi_scoreaug.benchmarks.overhead_trainers import (
    ScoreAugmentedBNRE,
    ScoreAugmentedNRE_B,
    ScoreAugmentedNRE_C,
)
from sbi_scoreaug.simulators import LinearGaussian

RATIO_TRAINERS = {
    "NRE_A": (NRE_A, ScoreAugmentedNRE),
    "NRE_B": (NRE_B, ScoreAugmentedNRE_B),
    "NRE_C": (NRE_C, ScoreAugmentedNRE_C),
    "BNRE": (BNRE, ScoreAugmentedBNRE),
}
TRAINERS = {
    **RATIO_TRAINERS,
    "NLE_A": (NLE_A, ScoreAugmentedNLE),
    "NPE_C": (NPE_C, ScoreAugmentedNPE),
}
BUILDERS = {
    NLE_A: likelihood_nn("maf", hidden_features=16, num_transforms=3),
    NPE_C: posterior_nn("maf", hidden_features=16, num_transforms=3),
}
SIMULATOR = LinearGaussian(dim=2)


@dataclass(frozen=True)
class DropIn:
    """A trainer of ours beside the class of sbi in whose place it is put.

    Args:
        host: The class of sbi.
        ours: Our class.
        argument: The constructor's argument that takes a network.
        host_net: A small network, as the host takes it.
        our_net: The same for ours.
        names: Networks that both know by name.
        samplers: What `build_posterior(sample_with=...)` takes.
        options: Further arguments of our constructor.
    """

    host: type
    ours: type
    argument: str
    host_net: Any
    our_net: Any
    names: tuple[str, ...]
    samplers: tuple[str, ...] = ("mcmc", "rejection", "vi", "importance")
    options: dict[str, Any] = field(default_factory=dict)


def _ratio_drop_in(name):
    nets = (
        build("mlp", hidden_features=8)
        for build in (classifier_nn, smooth_classifier_nn)
    )
    return DropIn(*RATIO_TRAINERS[name], "classifier", *nets, ("linear", "resnet"))


_MAF = {"model": "maf", "hidden_features": 8, "num_transforms": 1}
DROP_INS = {
    **{name: _ratio_drop_in(name) for name in RATIO_TRAINERS},
    "NLE_A": DropIn(
        NLE_A,
        ScoreAugmentedNLE,
        "density_estimator",
        likelihood_nn(**_MAF),
        likelihood_nn(**_MAF),
        ("mdn", "zuko_maf"),
    ),
    "NPE_C": DropIn(
        NPE_C,
        ScoreAugmentedNPE,
        "density_estimator",
        posterior_nn(**_MAF),
        posterior_nn(**_MAF),
        ("mdn", "zuko_nsf"),
        ("direct", "mcmc", "rejection", "vi", "importance"),
    ),
    "NPSE": DropIn(
        NPSE,
        ScoreNPE,
        "vf_estimator",
        posterior_score_nn("mlp", sde_type="vp", hidden_features=8),
        "factorized",
        ("mlp", "ada_mlp"),
        ("sde", "ode"),
        {"num_hidden": 8, "num_blocks": 1},
    ),
    # The cost estimator stands beside NLE_A: its second argument is the distance.
    "ACE": DropIn(
        NLE_A,
        AmortizedCostEstimator,
        "cost_net",
        likelihood_nn(**_MAF),
        CostNetBuilder("quadratic", hidden_features=8, num_blocks=1),
        (),
    ),
}


class Recorder:
    """A tracker that keeps what it is told."""

    log_dir = None

    def __init__(self):
        self.metrics = []

    def log_metric(self, name, value, step=None):
        self.metrics.append((name, value, step))

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.log_metric(name, value, step)

    def log_params(self, params):
        pass

    def add_figure(self, name, figure, step=None):
        pass

    def flush(self):
        pass


def simulations(num_simulations=200, simulator=SIMULATOR):
    """Return theta, x and score from the prior."""
    theta = simulator.prior.sample((num_simulations,))
    x = simulator(theta)
    return theta, x, simulator.score(theta, x)


def new_trainer(
    cls=ScoreAugmentedNRE, prior=SIMULATOR.prior, classifier=None, **kwargs
):
    """Return a quiet trainer with a small smooth classifier or flow."""
    small = [build for host, build in BUILDERS.items() if issubclass(cls, host)]
    small.append(smooth_classifier_nn("mlp", hidden_features=20))
    classifier = classifier or small[0]
    kwargs.setdefault("tracker", Recorder())
    return cls(prior, classifier, show_progress_bars=False, **kwargs)


def new_drop_in(name, ours=True, prior=SIMULATOR.prior, **kwargs):
    """Return a quiet trainer of `DROP_INS`, ours or the host's, and a small network."""
    pair = DROP_INS[name]
    options = {"tracker": Recorder(), "show_progress_bars": False}
    argument = "density_estimator" if not ours and name == "ACE" else pair.argument
    options[argument] = pair.our_net if ours else pair.host_net
    options.update(pair.options if ours else {})
    return (pair.ours if ours else pair.host)(prior=prior, **{**options, **kwargs})


def train(trainer, *args, seed=1, **kwargs):
    """Train from a seed, without what sbi prints and says of the number of epochs."""
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum number of epochs")
        return trainer.train(*args, **kwargs)


def weights_of(estimator):
    """Return all parameters and buffers of a network as one vector."""
    return torch.cat([v.double().flatten() for v in estimator.state_dict().values()])


def log_surrogate(name, estimator, theta, x, prior=SIMULATOR.prior):
    """Return log r(x|theta), log q(x|theta), or log q(theta|x) - log p(theta)."""
    if name == "NLE_A":
        return estimator.log_prob(x.unsqueeze(0), theta)[0]
    if name == "NPE_C":
        return estimator.log_prob(theta.unsqueeze(0), x)[0] - prior.log_prob(theta)
    return estimator(theta, x)


def surrogate_score(estimator, theta, x, name="NRE_A"):
    """Return the gradient of `log_surrogate` by autograd, for hosts and for ours."""
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(log_surrogate(name, estimator, leaf, x).sum(), leaf)[0]


def score_error(estimator, simulator=SIMULATOR, num_pairs=500, name="NRE_A"):
    """Return mean |grad f - s|^2 / mean |s|^2 over fresh pairs."""
    theta, x, score = simulations(num_pairs, simulator)
    error = surrogate_score(estimator, theta, x, name) - score
    return float(error.square().sum() / score.square().sum())
