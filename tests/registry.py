"""The trainers that the score term serves, each beside its host, and small helpers.

A new trainer is one line here: every test over `TRAINERS` runs on it. `RATIO_TRAINERS`
are those among them whose network is a classifier.
"""

import contextlib
import io
import warnings

import torch
from sbi.inference import BNRE, NLE_A, NPE_C, NRE_A, NRE_B, NRE_C
from sbi.neural_nets import likelihood_nn, posterior_nn

from sbi_scoreaug import (
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
    ScoreAugmentedRatioTerm,
    smooth_classifier_nn,
)
from sbi_scoreaug.simulators import LinearGaussian


class ScoreAugmentedNRE_B(ScoreAugmentedRatioTerm, NRE_B):
    """NRE-B with exact scores."""


class ScoreAugmentedNRE_C(ScoreAugmentedRatioTerm, NRE_C):
    """NRE-C with exact scores."""


class ScoreAugmentedBNRE(ScoreAugmentedRatioTerm, BNRE):
    """Balanced NRE with exact scores."""


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
