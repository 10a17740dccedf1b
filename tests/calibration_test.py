r"""Calibration as a test: ranks and expected coverage where the answer is known.

x = A theta + noise of standard deviation .5 in both components, theta ~ N(0, I). Over
pairs (theta, x) from prior and simulator, the posterior's distribution function at the
true theta_k, u_k, is uniform if the posterior is right: its ranks (simulation-based
calibration). So is |2 u_k - 1|, the smallest central interval that holds theta_k:
expected coverage, sensitive to the posterior's width. Both are tested by Kolmogorov and
Smirnov; a method is calibrated if no p-value is below .001 after Bonferroni.

Each method has a negative control that must fail the same test: scores times 1.5 for
those that match scores, beta times 3, and n off by one: one observation taken for two.

Recorded at seed 0, the smallest p-value and that of the control: NRE .09 and 4e-13, NLE
.11 and 8e-13, NPE .23 and 3e-12, ScoreNPE .46 and 1e-8, ACE .17 and 2e-70.

The generalized posterior of the mean squared error is the posterior itself at beta =
dim_x / (2 sigma^2), since the noise has one sigma.

References: Talts et al. 2018 (arXiv 1804.06788); Hermans et al. 2021 (arXiv
2110.06581).
"""

import functools

import pytest
import torch
from registry import Recorder, train
from sbi.neural_nets import likelihood_nn, posterior_nn
from scipy.stats import kstest

from sbi_scoreaug import (
    AmortizedCostEstimator,
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
    ScoreNPE,
    smooth_classifier_nn,
)
from sbi_scoreaug.simulators import LinearGaussian

pytestmark = pytest.mark.slow
SIGMA = 0.5
TASK = LinearGaussian(dim=2, noise_std=SIGMA)
NUM_PAIRS, NUM_DRAWS, NUM_SAMPLES = 1000, 1000, 200
BETA = 2 / (2 * SIGMA**2)
QUIET = {"show_progress_bars": False}
ALPHA = 1e-3


@functools.cache
def fitted(cls, scale=1.0, num_simulations=1500, epochs=16, **options):
    """A trainer of 1500 simulations whose scores are off by the factor `scale`."""
    theta = TASK.prior.sample((num_simulations,))
    x = TASK(theta)
    trainer = cls(TASK.prior, tracker=Recorder(), **QUIET, **options)
    score = scale * TASK.score(theta, x)
    trainer.append_simulations(theta, x, score=score, score_check=False)
    steps = {"num_steps": 2000} if cls is ScoreNPE else {"max_num_epochs": epochs}
    return train(trainer, **steps), trainer


def by_weights(log_weight, theta):
    """u `(num_pairs, 2)` from prior draws, weighted by exp of log_weight(theta', x)."""
    x = TASK(theta)
    draws = TASK.prior.sample((NUM_DRAWS,))
    found = []
    for row, x_o in zip(theta, x, strict=True):
        with torch.no_grad():
            value = log_weight(draws, x_o.expand(NUM_DRAWS, -1))
        weights = value.double().softmax(0)
        found.append((weights[:, None] * (draws < row)).sum(0))
    return torch.stack(found)


def by_samples(samples, theta):
    """u `(num_pairs, 2)` from samples `(num_samples, num_pairs, 2)`."""
    return (samples < theta).double().mean(0)


def ratio(scale=1.0):
    net, _ = fitted(ScoreAugmentedNRE, scale, classifier=smooth_classifier_nn("mlp"))
    return lambda theta: by_weights(net, theta)


def likelihood(scale=1.0):
    flow = likelihood_nn("maf", hidden_features=20, num_transforms=3)
    net, _ = fitted(ScoreAugmentedNLE, scale, density_estimator=flow)
    return lambda theta: by_weights(lambda t, x: net.log_prob(x[None], t)[0], theta)


def posterior(scale=1.0):
    flow = posterior_nn("maf", hidden_features=20, num_transforms=3)
    net, _ = fitted(ScoreAugmentedNPE, scale, density_estimator=flow)
    return lambda theta: by_samples(
        net.sample((NUM_SAMPLES,), condition=TASK(theta)).detach(),
        theta,
    )


def cost(factor=1.0):
    _, trainer = fitted(AmortizedCostEstimator)
    net = trainer._neural_net
    return lambda theta: by_weights(lambda t, x: -factor * BETA * net(t, x), theta)


def sets(num_observations=2, counted=1):
    _, trainer = fitted(ScoreNPE, num_hidden=64)
    built = trainer.build_posterior()

    def ranks(theta):
        theta = theta[:300]  # sets are sampled one after the other
        x = torch.stack([TASK(theta) for _ in range(num_observations)], 1)
        x = x.repeat(1, counted, 1)
        samples = built.sample_batched((NUM_SAMPLES,), x=x, **QUIET)
        return by_samples(samples, theta)

    return ranks


def smallest_p(ranks):
    """The smallest p-value of uniform ranks and coverage, after Bonferroni."""
    torch.manual_seed(1)
    u = ranks(TASK.prior.sample((NUM_PAIRS,)))
    columns = [*u.T, *(2 * u - 1).abs().T]
    return len(columns) * min(kstest(c.numpy(), "uniform").pvalue for c in columns)


METHODS = {
    "NRE": (ratio, {"scale": 1.5}),
    "NLE": (likelihood, {"scale": 1.5}),
    "NPE": (posterior, {"scale": 1.5}),
    "ScoreNPE": (sets, {"num_observations": 1, "counted": 2}),
    "ACE": (cost, {"factor": 3.0}),
}


def test_the_exact_posterior_passes_and_a_narrow_one_fails():
    def exact(width):
        def ranks(theta):
            rows = [TASK.exact_posterior(x) for x in TASK(theta)]
            mean = torch.stack([p.mean for p in rows])
            sd = width * torch.stack([p.stddev for p in rows])
            return torch.distributions.Normal(mean, sd).cdf(theta)

        return ranks

    assert smallest_p(exact(1.0)) > ALPHA
    assert smallest_p(exact(0.7)) < ALPHA


@pytest.mark.parametrize("method", METHODS)
def test_the_method_is_calibrated_and_its_negative_control_is_not(method):
    build, wrong = METHODS[method]
    torch.manual_seed(0)
    assert smallest_p(build()) > ALPHA
    torch.manual_seed(0)
    assert smallest_p(build(**wrong)) < ALPHA
