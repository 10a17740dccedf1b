"""Interrupted, killed, out of disk, out of range: nothing is lost, nothing is wrong.

Simulators that raise or hang are in `simulate_test`.
"""

import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from drop_in_test import EPOCH, every_trainer, with_data
from matplotlib.figure import Figure
from registry import DROP_INS, new_drop_in, simulations, train, weights_of
from sbi.utils import BoxUniform

from sbi_scoreaug.benchmarks.cells import read_rows, run_cells
from sbi_scoreaug.errors import InvalidInputError, ScoreaugError
from sbi_scoreaug.panels import save_figure

NAMES = list(DROP_INS)
# Steps are counted from the start of the training: in the first epoch, between two
# validations, and in a later one.
INTERRUPTED_AT = 4


def data_of(trainer):
    """All that a fault must not change, to compare before and after."""
    lists = (trainer._theta_roundwise, trainer._x_roundwise, trainer._score_roundwise)
    return {
        "values": [tensor.clone() for tensors in lists for tensor in tensors],
        "rounds": list(trainer._data_round_index),
        "kinds": list(trainer._score_kinds),
    }


def assert_same_data(trainer, before):
    now = data_of(trainer)
    pairs = zip(now.pop("values"), before["values"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert now == {key: before[key] for key in now}


def interrupt(trainer, at):
    """Let the `at`-th batch of the next training be interrupted from the keyboard."""
    calls, get_losses = [], trainer._get_losses

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return get_losses(*args, **kwargs)

    trainer._get_losses = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(trainer, **{**EPOCH, "max_num_epochs": 5})
    del trainer._get_losses


@pytest.mark.parametrize("at", [INTERRUPTED_AT, 60])
@every_trainer
def test_a_training_interrupted_from_the_keyboard_is_resumed(name, at):
    trainer = with_data(name)
    before = data_of(trainer)
    interrupt(trainer, 12 if name == "NPSE" and at == 60 else at)
    assert_same_data(trainer, before)
    rows, optimizer = trainer.train_indices, trainer.optimizer
    started = weights_of(trainer._neural_net)
    more = {**EPOCH, "max_num_epochs": trainer.epoch + 1}
    estimator = train(trainer, **more, resume_training=True)
    assert trainer.optimizer is optimizer
    assert torch.equal(trainer.train_indices, rows)
    assert_same_data(trainer, before)
    trained = weights_of(estimator)
    assert trained.isfinite().all()
    assert len(trained) != len(started) or not torch.equal(trained, started)


@every_trainer
def test_all_parameters_are_trained_after_an_interrupt(name):
    """A part of the network that is built anew would be left out by the optimiser."""
    trainer = with_data(name)
    interrupt(trainer, INTERRUPTED_AT)
    stepped = []
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, args, kwargs: stepped.append(
            {id(p) for group in optimizer.param_groups for p in group["params"]}
            >= {id(p) for p in trainer._neural_net.parameters()}
        )
    )
    more = {**EPOCH, "max_num_epochs": trainer.epoch + 1}
    train(trainer, **more, resume_training=True)
    assert stepped and all(stepped)


@every_trainer
def test_a_training_after_an_interrupt_can_also_start_anew(name):
    trainer = with_data(name)
    interrupt(trainer, INTERRUPTED_AT)
    theta, x, score = simulations(20)
    trainer.append_simulations(theta, x, score=score, score_check=False)
    force = {"force_first_round_loss": True} if name in ("NPE_C", "NPSE") else {}
    estimator = train(trainer, **EPOCH, **force)
    assert weights_of(estimator).isfinite().all()
    assert len(trainer.get_simulations()[0]) == 80


KILLED = """
import os, pickle, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import registry
for name in registry.DROP_INS:
    torch.manual_seed(0)
    theta, x, score = registry.simulations(60)
    trainer = registry.new_drop_in(name)
    trainer.append_simulations(theta, x, score=score, score_check=False)
    registry.train(trainer, max_num_epochs=1, training_batch_size=20)
    with open(f"{sys.argv[1]}/{name}.pkl", "wb") as file:
        pickle.dump(trainer, file)
print("trained", flush=True)
losses = trainer._get_losses
trainer._get_losses = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
registry.train(trainer, max_num_epochs=5, training_batch_size=20, resume_training=True)
print("not killed")
"""


def test_a_killed_process_is_resumed_from_a_pickled_trainer(tmp_path):
    import pickle

    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["trained"]
    for name in NAMES:
        torch.manual_seed(0)
        theta, x, score = simulations(60)
        with (tmp_path / f"{name}.pkl").open("rb") as file:
            trainer = pickle.load(file)
        found = trainer.get_simulations()
        assert torch.equal(found[0], theta) and torch.equal(found[1], x)
        assert torch.equal(trainer._score_roundwise[0], score)
        rows, epoch = trainer.train_indices, trainer.epoch
        more = {**EPOCH, "max_num_epochs": epoch + 1}
        estimator = train(trainer, **more, resume_training=True)
        assert torch.equal(trainer.train_indices, rows) and trainer.epoch > epoch
        assert weights_of(estimator).isfinite().all()


# --- No room to write ----------------------------------------------------------------


def long_cell(number):
    return {"text": "x" * 400, "square": number**2}


@pytest.fixture
def small_files():
    """As on a full disk: no file may grow beyond 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_a_table_survives_a_full_disk_and_goes_on_where_it_was(tmp_path, small_files):
    path, cells = tmp_path / "out" / "cells.csv", [{"number": k} for k in range(4)]
    with pytest.raises(OSError, match="2 cells are kept.*same command"):
        run_cells(cells, long_cell, path, show_progress_bar=False)
    assert [row["square"] for row in read_rows(path)] == [0, 1]
    small_files()
    rows = run_cells(cells, long_cell, path, show_progress_bar=False)
    assert [row["square"] for row in rows] == [0, 1, 4, 9]
    assert all(len(row["text"]) == 400 for row in rows)


def test_a_picture_survives_a_full_disk(tmp_path, request):
    path, figure = tmp_path / "picture.png", Figure()
    save_figure(figure, path, dpi=30)
    before = path.read_bytes()
    request.getfixturevalue("small_files")
    figure.subplots().plot(range(100))
    assert len(before) < 1000  # an empty figure
    with pytest.raises(OSError, match="picture.png could not be written"):
        save_figure(figure, path, dpi=300)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    calls = []
    with pytest.raises(InvalidInputError, match="out: expected a folder"):
        path = tmp_path / "file" / "cells.csv"
        run_cells([{"number": 1}], calls.append, path, show_progress_bar=False)
    assert not calls


# --- Parameters outside the prior ----------------------------------------------------


@every_trainer
def test_parameters_of_a_proposal_outside_the_prior_do_no_harm(name):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = 1.1 * prior.sample((100,))
    assert (prior.log_prob(theta) == -torch.inf).any()
    x = theta + torch.randn(100, 2)
    trainer = new_drop_in(name, prior=prior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.append_simulations(theta, x, score=x - theta)
        except ScoreaugError as error:
            assert "theta" in str(error) and not trainer._theta_roundwise
            return
    assert weights_of(train(trainer, **EPOCH)).isfinite().all()
