"""Pictures: what is drawn, not only that something is."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from registry import SIMULATOR, new_trainer, simulations, train

from sbi_scoreaug import plots
from sbi_scoreaug.errors import InvalidInputError, InvalidStateError

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
