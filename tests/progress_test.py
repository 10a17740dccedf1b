"""What runs long says how far it is, and is silent if told so."""

import warnings

import pytest
import torch
from registry import Recorder

from sbi_scoreaug import AmortizedCostEstimator, ScoreAugmentedNRE, ScoreNPE
from sbi_scoreaug.simulators import LinearGaussian

PROBLEM = LinearGaussian(dim=2)
TRAINERS = (AmortizedCostEstimator, ScoreAugmentedNRE, ScoreNPE)


def trained(cls, show):
    theta = PROBLEM.prior.sample((100,))
    x = PROBLEM(theta)
    trainer = cls(PROBLEM.prior, show_progress_bars=show, tracker=Recorder())
    trainer.append_simulations(theta, x, score=PROBLEM.score(theta, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the few epochs
        trainer.train(training_batch_size=20, max_num_epochs=1)
    return trainer


@pytest.mark.parametrize("cls", TRAINERS)
def test_training_shows_epochs_and_loss(cls, capsys):
    trainer = trained(cls, True)
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.split("\r") if "Epochs" in line]
    loss = trainer.summary["validation_loss"][0]
    expected = f"Epochs trained: 1, validation loss {loss:.4g}"
    assert lines[0] == f"Training neural network. {expected}"


@pytest.mark.parametrize("cls", TRAINERS)
def test_training_is_silent_if_told_so(cls, capsys):
    trained(cls, False)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.filterwarnings("ignore")  # of a network that has learned nothing
def test_the_calibration_of_beta_shows_a_bar(show, capsys):
    trainer = trained(AmortizedCostEstimator, show)
    theta = PROBLEM.prior.sample((20,))
    torch.manual_seed(0)
    trainer.calibrate_beta(theta=theta, x=PROBLEM(theta))
    assert ("Calibrating beta" in capsys.readouterr().err) == show
