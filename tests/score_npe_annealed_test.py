"""The paper's two samplers against closed forms, and the weights of their paths."""

import pytest
import torch

from sbi_scoreaug.errors import InvalidStateError, ScoreWarning
from sbi_scoreaug.score_npe import ComposedScore, VPSchedule, sample_set
from sbi_scoreaug.score_npe.annealed import langevin, run_composed
from sbi_scoreaug.score_npe.diagnostics import SamplerDiagnostics
from sbi_scoreaug.score_npe.feynman_kac import PathWeights, effective_sample_size
from sbi_scoreaug.score_npe.task import SamplingTask
from sbi_scoreaug.simulators import GaussianGaussian

SCHEDULE = VPSchedule()


def exact_score(simulator, x, **options):
    """Scores of posteriors N((1 - c) x_j, c), as `simulator` has them, only faster."""
    c = simulator.exact_posterior(x[:1]).variance

    def posterior_score(theta, t, x):
        m = SCHEDULE.mean(t)
        return (m * (1 - c) * x - theta[:, None]) / (m**2 * c + 1 - m**2)

    return ComposedScore(posterior_score, x, **options)


def draw_set(simulator, num_observations, seed=0):
    torch.manual_seed(seed)
    theta = simulator.prior.sample((1,)).double()
    return simulator(theta.expand(num_observations, -1))


def make_task(simulator, x, num_samples, **options):
    diagnostics = SamplerDiagnostics("", len(x))
    score = exact_score(simulator, x, **options)
    return SamplingTask(score, SCHEDULE, num_samples, simulator.dim_theta, diagnostics)


def spread(samples, posterior):
    return float((samples.std(0) / posterior.variance.sqrt()).mean())


def spread_in_closed_form(noise_variance, n, algorithm, prior_score, **options):
    """Ratio of sd by the linear recursion of the variance, written out from the paper.

    Prior N(0, 1), each posterior variance c; U has the slope -n A + (n - 1) w.
    """
    c = noise_variance / (1 + noise_variance)
    num_levels = options.get("num_levels", 400)
    variance = 1 / n if prior_score == "bridge" or algorithm == 1 else 1.0
    for i in range(num_levels, 0, -1):
        m1, m0 = SCHEDULE.mean(i / num_levels), SCHEDULE.mean((i - 1) / num_levels)
        alpha = (m1 / m0) ** 2
        w = 1 - i / num_levels if prior_score == "bridge" else 1
        slope = -n / (m1**2 * c + 1 - m1**2) + (n - 1) * w
        if algorithm == 2:
            variance *= (1 + (1 - alpha) * slope) ** 2 / alpha
            variance += (1 - alpha) * (i > 1)
            continue
        delta = options["step"] * (1 - alpha) / alpha**0.5
        for _ in range(options["steps_per_level"]):
            variance = variance * (1 + delta * slope / 2) ** 2 + delta
    return (variance * (n / c - (n - 1))) ** 0.5


def test_exact_scores_are_those_of_the_simulator():
    simulator = GaussianGaussian(3)
    x, theta = draw_set(simulator, 4), torch.randn(5, 3).double()
    expected = simulator.diffused_score(theta, SCHEDULE.mean(0.3), x)
    found = exact_score(simulator, x).posterior_score(theta, 0.3, x)
    torch.testing.assert_close(found, expected)


# Algorithm 1


@pytest.mark.parametrize("prior_score", ["bridge", "diffused"])
@pytest.mark.parametrize("num_observations", [1, 20])
def test_algorithm_1_has_the_spread_of_its_recursion(num_observations, prior_score):
    simulator = GaussianGaussian(2, variances=torch.full((2,), 1.0))
    options = {"num_levels": 30, "steps_per_level": 5, "step": 0.25}
    options["prior_score"] = prior_score
    x = draw_set(simulator, num_observations)
    samples, diagnostics = sample_set(
        exact_score(simulator, x), SCHEDULE, 3000, 2, sampler="langevin", **options
    )
    found = spread(samples, simulator.exact_posterior(x))
    expected = spread_in_closed_form(1.0, num_observations, 1, **options)
    # Two spreads of 3000 samples: standard error .009.
    assert abs(found - expected) < 0.04
    wrong = spread_in_closed_form(1.0, num_observations, 2, prior_score, num_levels=30)
    assert num_observations == 1 or abs(found - wrong) > 0.04
    assert diagnostics.evaluations == 150 and not diagnostics.messages
    assert diagnostics.effective_sample_size is None


def test_algorithm_1_with_the_steps_of_the_paper():
    """Its limits, by the recursion: too wide at n = 1, right at n = 30."""
    options = {"steps_per_level": 50, "step": 0.05}
    at_one = spread_in_closed_form(1.0, 1, 1, "bridge", **options)
    assert 1.03 < at_one < 1.15
    assert abs(spread_in_closed_form(1.0, 30, 1, "bridge", **options) - 1) < 0.03


@pytest.mark.parametrize("variance", [1.0, 0.05])
def test_steps_that_would_diverge_are_shrunk_with_a_warning(variance):
    """Also where the curvature comes from precise observations, not from many."""
    simulator = GaussianGaussian(2, variances=torch.full((2,), variance))
    x = draw_set(simulator, 100)
    options = {"num_levels": 40, "steps_per_level": 10, "step": 1.0}
    with pytest.warns(ScoreWarning, match="shrunk") as caught:
        task = make_task(simulator, x, 200)
        samples = langevin(task, **options)
    assert len(caught) == 1 and task.diagnostics.messages
    assert 0.9 < spread(samples, simulator.exact_posterior(x)) < 1.6
    task = make_task(simulator, x, 20)
    options = {**options, "num_levels": 20, "steps_per_level": 200}
    with pytest.raises(InvalidStateError, match="finite"):
        langevin(task, shrink_steps=False, **options)


# Algorithm 2


@pytest.mark.parametrize("prior_score", ["bridge", "diffused"])
@pytest.mark.parametrize("num_observations", [1, 2, 8, 50])
def test_algorithm_2_has_the_spread_of_its_recursion(num_observations, prior_score):
    simulator = GaussianGaussian(4, variances=torch.full((4,), 1.0))
    x = draw_set(simulator, num_observations)
    samples, diagnostics = sample_set(
        exact_score(simulator, x),
        SCHEDULE,
        1000,
        4,
        sampler="composed",
        prior_score=prior_score,
    )
    found = spread(samples, simulator.exact_posterior(x))
    expected = spread_in_closed_form(1.0, num_observations, 2, prior_score)
    # 4 spreads of 1000 samples: standard error .011.
    assert abs(found - expected) < 0.05
    assert diagnostics.evaluations == 400


def test_the_spread_of_algorithm_2_tends_to_one_over_root_two():
    """A property of the algorithm, with exact scores and any number of levels."""
    for num_levels in (2000, 8000):
        for prior_score in ("bridge", "diffused"):
            ratios = [
                spread_in_closed_form(1.0, n, 2, prior_score, num_levels=num_levels)
                for n in (1, 2, 8, 30, 300)
            ]
            assert abs(ratios[0] - 1) < 0.01
            assert all(a > b for a, b in zip(ratios[:-1], ratios[1:], strict=True))
            assert abs(ratios[-1] - 0.5**0.5) < 0.02


def test_too_few_levels_are_raised_and_overshooting_is_told():
    simulator = GaussianGaussian(2, variances=torch.full((2,), 1e-3))
    task = make_task(simulator, draw_set(simulator, 30), 100)
    with pytest.warns(ScoreWarning) as caught:
        run_composed(task, 20, "bridge")
    assert "120 are used" in str(caught[0].message)
    assert "overshoot" in str(caught[1].message)
    assert len(task.diagnostics.messages) == 2


# weights of paths


def test_weights_repair_algorithm_2():
    """With the diffused prior its path is exactly that of the weights."""
    simulator = GaussianGaussian(2)
    x = draw_set(simulator, 2, seed=2)
    task = make_task(simulator, x, 4000)
    samples, weights = run_composed(task, 400, "diffused")
    log_weights = weights.finish()
    w = log_weights.softmax(0)[:, None]
    posterior = simulator.exact_posterior(x)
    mean = (w * samples).sum(0)
    std = (w * (samples - mean) ** 2).sum(0).sqrt()
    ratio = float((std / posterior.variance.sqrt()).mean())
    # Standard error .014 at this effective sample size; unweighted .93.
    assert abs(ratio - 1) < 0.04
    assert spread(samples, posterior) < 0.95
    reversed_w = (-log_weights).softmax(0)[:, None]
    mean = (reversed_w * samples).sum(0)
    std = (reversed_w * (samples - mean) ** 2).sum(0).sqrt()
    assert float((std / posterior.variance.sqrt()).mean()) < 0.93
    assert 0.3 * 4000 < effective_sample_size(log_weights) < 0.99 * 4000


@pytest.mark.parametrize("sampler", ["auto", "gauss"])
def test_effective_sample_size_of_the_descent(sampler):
    """All samples at n = 1, by construction; fewer as paths part."""
    simulator, sizes = GaussianGaussian(2), []
    for n in (1, 2, 8):
        score = exact_score(simulator, draw_set(simulator, n))
        _, diagnostics = sample_set(score, SCHEDULE, 200, 2, sampler=sampler)
        sizes.append(diagnostics.effective_sample_size)
    # At n = 1 "gauss" follows the score up to the rounding of its covariance.
    assert abs(sizes[0] - 200) < 1e-3
    assert 200 > sizes[1] > sizes[2] > 0


def test_cross_products_are_those_of_the_definition():
    simulator = GaussianGaussian(3)
    x, theta = draw_set(simulator, 5), torch.randn(7, 3).double()
    single = simulator.diffused_score(theta, SCHEDULE.mean(0.3), x)
    composed = single.sum(1) + 4 * theta
    bracket = composed.square().sum(1) - single.square().sum((1, 2))
    bracket = bracket + 4 * theta.square().sum(1)
    for rows in (3, 10_000):
        excess = exact_score(simulator, x, rows_at_once=rows).excess(theta, 0.3)
        torch.testing.assert_close(excess.cross, bracket)
    minibatch = exact_score(simulator, x, minibatch=2)
    draws = torch.stack([minibatch.excess(theta, 0.3).cross for _ in range(1500)])
    error = (draws.mean(0) - bracket) / (draws.std(0) / 1500**0.5)
    assert error.abs().max() < 4.5


def test_unknown_weights_are_none():
    simulator = GaussianGaussian(2)
    x = draw_set(simulator, 4)
    for options in ({"minibatch": 1}, {"damping": lambda t: 1 - 0.5 * t}):
        score = exact_score(simulator, x, **options)
        _, diagnostics = sample_set(score, SCHEDULE, 100, 2)
        assert diagnostics.effective_sample_size is None
    assert PathWeights(SCHEDULE).finish() is None
    assert effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf])) == 2
    assert effective_sample_size(torch.full((3,), torch.nan)) == 0
