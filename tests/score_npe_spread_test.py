"""The word of the default sampler where its one covariance does not fit all."""

import warnings

import pytest
import torch

from sbi_scoreaug.errors import ScoreWarning
from sbi_scoreaug.score_npe import ComposedScore, VPSchedule, sample_set

SCHEDULE = VPSchedule()


def posterior_score(theta, t, x):
    """Exact: theta ~ N(0, 1), x_j = (y_j, V_j) with y_j ~ N(theta, V_j)."""
    m, y, variance = SCHEDULE.mean(t), x[:, :1], x[:, 1:]
    c = variance / (1 + variance)
    return (m * y / (1 + variance) - theta[:, None]) / (m**2 * c + 1 - m**2)


def sample(variances, **options):
    variance = torch.tensor(variances).double()
    x = torch.stack(
        [1 + torch.randn(len(variance)).double() * variance.sqrt(), variance]
    )
    score = ComposedScore(posterior_score, x.mT)
    samples, diagnostics = sample_set(score, SCHEDULE, 2000, 1, **options)
    precision = 1 + (1 / variance).sum()
    return float(samples.std() * precision**0.5), diagnostics


def test_observations_of_very_unequal_precision_are_said():
    with pytest.warns(ScoreWarning, match="unequal precision"):
        ratio, diagnostics = sample([0.001, *[10.0] * 30])
    assert ratio > 1.8  # it is 2.3
    assert 0.7 * ratio**2 < diagnostics.excess_spread < 1.3 * ratio**2


@pytest.mark.parametrize(
    ("variances", "options"),
    [
        ([1.0] * 4, {}),
        ([0.001, *[10.0] * 30], {"sampler": "gauss"}),
        ([0.01, *[4.0] * 3], {"polish": True}),
    ],
)
def test_samplers_that_fit_say_nothing(variances, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ratio, _ = sample(variances, **options)
    assert abs(ratio - 1) < 0.1
