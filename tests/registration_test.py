"""register() and citation()."""

import subprocess
import sys
import warnings

import pytest
import sbi.inference
from registry import SIMULATOR, new_trainer
from sbi.inference import NRE_A, infer

import sbi_scoreaug
from sbi_scoreaug import AmortizedCostEstimator, ScoreNPE, citation, register
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError, ScoreWarning

EPOCH = {"max_num_epochs": 1, "training_batch_size": 50}


@pytest.fixture
def registered():
    """sbi as it was, after the test."""
    before = dict(vars(sbi.inference))
    register()
    yield
    for name in set(vars(sbi.inference)) - set(before):
        delattr(sbi.inference, name)


def test_importing_changes_nothing_in_sbi():
    code = (
        "import sbi.inference as host; before = dict(vars(host)); import sbi_scoreaug;"
        "changed = {n for n, v in vars(host).items() if v is not before.get(n)};"
        "assert not changed, changed"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "method", ["score_nre", "score_nle", "score_augmented_npe", "score_npe", "ace"]
)
def test_infer_finds_every_method(registered, method, logs_elsewhere):
    register()  # twice does no harm
    posterior = infer(
        SIMULATOR,
        SIMULATOR.prior,
        method=method,
        num_simulations=100,
        init_kwargs={"show_progress_bars": False},
        train_kwargs=EPOCH,
    )
    assert hasattr(posterior, "sample")


def test_infer_trains_on_scores_given_as_a_function(registered, logs_elsewhere):
    called = []

    def score_fn(theta, x):
        called.append(len(theta))
        return SIMULATOR.score(theta, x)

    infer(
        SIMULATOR,
        SIMULATOR.prior,
        method="score_nre",
        num_simulations=100,
        init_kwargs={"score_fn": score_fn, "show_progress_bars": False},
        train_kwargs=EPOCH,
    )
    assert called == [100]


def test_infer_without_scores_says_so(registered, logs_elsewhere):
    options = {"prior": SIMULATOR.prior, "show_progress_bars": False}
    with pytest.warns(ScoreWarning, match="draws simulations without scores"):
        sbi.inference.SCORE_NRE(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScoreWarning)
        sbi.inference.SCORE_NRE(score_fn=SIMULATOR.score, **options)
        sbi.inference.SCORE_NPE(**options)


def test_a_name_that_is_taken_is_left_alone(monkeypatch):
    monkeypatch.delattr(sbi.inference, "SCORE_NRE", raising=False)
    monkeypatch.setattr(sbi.inference, "ACE", NRE_A, raising=False)
    with pytest.raises(InvalidInputError, match="'ACE'"):
        register()
    assert sbi.inference.ACE is NRE_A and not hasattr(sbi.inference, "SCORE_NRE")


def test_citations_name_the_paper_and_sbi():
    for trainer, eprint in [
        (new_trainer(), "2605.12118"),
        (ScoreNPE, "2209.14249"),
        (AmortizedCostEstimator, "2305.15208"),
    ]:
        entries = citation(trainer)
        assert eprint in entries and "10.21105/joss.02505" in entries
        assert entries.count("@") == 2
    assert sbi_scoreaug.citation is citation


def test_a_trainer_of_sbi_is_not_ours_to_cite():
    with pytest.raises(InvalidTypeError, match="NRE_A"):
        citation(NRE_A())
