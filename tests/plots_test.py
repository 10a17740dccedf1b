"""Pictures: what is drawn, not only that something is."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from registry import SIMULATOR, new_drop_in, new_trainer, simulations, train

from sbi_scoreaug import BetaCalibration, check_score, plots
from sbi_scoreaug.amortized_cost import CostDiagnosis
from sbi_scoreaug.errors import (
    InvalidInputError,
    InvalidStateError,
    InvalidTypeError,
)
from sbi_scoreaug.score_npe import SAMPLERS, ComposedScore, VPSchedule, sample_set
from sbi_scoreaug.score_npe.diagnostics import NUM_TRACES, SamplerDiagnostics
from sbi_scoreaug.simulators import GaussianGaussian

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def trainer():
    theta, x, score = simulations(200)
    trained = new_trainer().append_simulations(theta, x, score=score)
    train(trained, max_num_epochs=4)
    return trained


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_training_curves_show_the_summary(trainer):
    figure, axes = plots.training_curves(trainer)
    assert len(figure.axes) == 3
    lines = axes[1].lines
    assert len(lines) == trainer._theta_roundwise[0].shape[1]
    drawn = np.stack([line.get_ydata() for line in lines], 1)
    assert np.allclose(drawn, trainer.summary["score_error"])
    assert (
        axes[0].lines[0].get_ydata()[-1] == trainer.summary["validation_host_loss"][-1]
    )


def test_training_curves_need_scores():
    theta, x, _ = simulations(60)
    plain = new_trainer().append_simulations(theta, x)
    train(plain, max_num_epochs=1)
    with pytest.raises(InvalidStateError, match="score"):
        plots.training_curves(plain)


@pytest.mark.parametrize("name", ["NPSE", "ACE"])
def test_trainers_without_a_score_error_are_told_apart(name):
    theta, x, score = simulations(60)
    other = new_drop_in(name).append_simulations(theta, x, score=score)
    train(other, max_num_epochs=1, training_batch_size=20)
    with pytest.raises(InvalidTypeError, match="reports no score error") as raised:
        plots.training_curves(other)
    assert type(other).__name__ in str(raised.value)
    assert other.summary["validation_loss"]  # what is named instead
    with pytest.raises(InvalidTypeError, match="ScoreAugmentedNLE.*no `surrogate"):
        plots.score_fit(other, theta, x, score)


def test_the_score_fit_leaves_unknown_components_out(trainer):
    theta, x, score = simulations(50)
    score = score.clone()
    score[:10, 0] = torch.nan
    _, axes = plots.score_fit(trainer, theta, x, score)
    points = axes[0].lines[1]
    assert len(points.get_xdata()) == 40 and len(axes[1].lines[1].get_xdata()) == 50
    found = trainer.surrogate_score(theta, x)
    assert np.allclose(points.get_ydata(), found[10:, 0])
    with pytest.raises(InvalidInputError, match="shape of theta"):
        plots.score_fit(trainer, theta, x, score[:5])


def test_the_posterior_is_drawn_over_samples_or_a_grid():
    theta, x, _ = simulations(1)
    reference = SIMULATOR.exact_posterior(x)
    samples = {"a": torch.randn(300, 2), "b": torch.randn(900, 2)}
    figure, axes = plots.posterior_against_reference(
        samples, reference.sample((1000,)), truth=theta[0], labels=["m", "s"]
    )
    assert [axis.get_title() for axis in axes] == ["a", "b"]
    assert len(axes[0].lines[0].get_xdata()) == 300
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_xlabel() == "m" and axes[0].get_ylabel() == "s"
    other, more = plt.subplots(1, 2)
    again, _ = plots.posterior_against_reference(samples, reference, ax=more)
    assert again is other


@pytest.mark.parametrize("wrong", [(0, 0), (0, 7)])
def test_parameters_have_to_exist(wrong):
    with pytest.raises(InvalidInputError, match="different"):
        plots.posterior_against_reference(
            torch.randn(9, 2), torch.randn(9, 2), parameters=wrong
        )


def test_axes_and_labels_are_counted(trainer):
    figure, axes = plt.subplots(1, 2)
    with pytest.raises(InvalidInputError, match="expected 3 axes, got 2"):
        plots.training_curves(trainer, ax=axes)
    with pytest.raises(InvalidInputError, match="labels"):
        plots.training_curves(trainer, labels=["only one"])


LADDER = torch.tensor([1.0, 2.0, 4.0, 8.0])


def calibration(beta=2.0, method="ml"):
    return BetaCalibration(
        beta=beta,
        method=method,
        scale_free=beta,
        stderr=0.1,
        betas=LADDER,
        coverage=0.7 - 0.05 * LADDER,
        effective_fraction=1 / LADDER,
        predictive_cost=2 / LADDER,
        true_cost=0.5,
        acceptance=torch.full((4,), 0.5),
    )


def test_calibrations_of_several_rules_share_their_axes():
    found, other = calibration(), calibration(4.0, "coverage")
    figure, axes = plots.temperature_calibration(found, other)
    assert len(figure.axes) == 3
    curve, chosen, target = axes[0].lines[:3]
    assert np.allclose(curve.get_ydata(), found.coverage)
    assert list(chosen.get_xdata()) == [2.0, 2.0]
    assert list(target.get_ydata()) == [0.5, 0.5]
    assert np.allclose(axes[2].lines[0].get_ydata(), found.predictive_cost)
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert texts == ["ml: 2", "coverage: 4"]
    with pytest.raises(InvalidInputError, match="at least one"):
        plots.temperature_calibration()


@pytest.mark.parametrize(
    ("draw", "num"),
    [
        (calibration().plot, 3),
        (
            CostDiagnosis(0.9, 0.95, 2.0, 9.0, 1.0, torch.rand(50), 0.1, True, 50).plot,
            1,
        ),
        (check_score(*simulations(60), SIMULATOR.prior).plot, 1),
    ],
)
def test_methods_that_plot_take_axes(draw, num):
    figure, axes = draw()
    assert np.size(axes) == num and np.ravel(axes)[0].figure is figure
    other, more = plt.subplots(1, num)
    again, drawn = draw(ax=more)
    assert again is other and np.all(np.ravel(drawn) == np.ravel(more))
    assert all(axis.has_data() for axis in np.ravel(more))


SMALL = {
    "auto": ({}, 22),  # the polish is one step
    "gauss": ({"num_steps": 8}, 9),
    "langevin": ({"num_levels": 10, "steps_per_level": 3}, 10),
    "composed": ({"num_levels": 16}, 16),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_traces_end_at_the_samples(sampler):
    problem, schedule = GaussianGaussian(dim=2), VPSchedule()
    x = problem(torch.ones(4, 2)).double()

    def posterior_score(theta, t, x):
        return problem.diffused_score(theta, schedule.mean(t), x)

    options, num_steps = SMALL[sampler]
    score = ComposedScore(posterior_score, x)
    samples, found = sample_set(score, schedule, 400, 2, sampler=sampler, **options)
    assert len(found.traces) == num_steps
    assert found.traces[0].shape == (NUM_TRACES, 2)
    if sampler == "auto":  # it returns its particles in another order
        distance = torch.cdist(found.traces[-1].double(), samples)
        assert distance.amin(1).max() < 1e-6
    else:
        assert torch.allclose(found.traces[-1], samples[:NUM_TRACES].float())
    _, axes = plots.sampler_traces(found, labels=["a", "b"])
    band = axes[1].lines[-1].get_ydata()
    assert np.allclose(band, [rows[:, 1].mean() for rows in found.traces], atol=1e-5)
    assert len(axes[0].lines) == 21 and axes[1].get_title() == "b"


def test_traces_need_a_composed_sampler():
    with pytest.raises(InvalidStateError, match="traces"):
        plots.sampler_traces(SamplerDiagnostics("sde", 1))
