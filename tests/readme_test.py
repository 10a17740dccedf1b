"""The README's Python blocks run as printed, and its version table is true."""

import re
import sys
from pathlib import Path

import pytest
import torch

from sbi_scoreaug.benchmarks import NAMES
from sbi_scoreaug.benchmarks.keeping_score import PROBLEMS
from sbi_scoreaug.benchmarks.scores_everywhere_methods import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_own_simulator_runs_and_its_scores_pass_the_check(capsys):
    exec(compile(BLOCKS[1], "README.md", "exec"), {"__name__": "readme"})
    assert "passed" in capsys.readouterr().out


def test_first_example_is_short_and_its_posterior_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    assert len(BLOCKS[0].splitlines()) <= 20
    namespace = {"__name__": "readme"}
    exec(compile(BLOCKS[0], "README.md", "exec"), namespace)
    exact = namespace["simulator"].exact_posterior(namespace["x_o"])
    error = (namespace["samples"].mean(0) - exact.mean) / exact.stddev
    # With 500 draws the mean has a standard error of .05 to .1 sd.
    assert error.abs().max() < 0.4
    wrong = (namespace["samples"].mean(0) + exact.stddev - exact.mean) / exact.stddev
    assert wrong.abs().max() > 0.4


def test_class_of_two_lines_is_complete():
    (block,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    namespace = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), namespace)
    trainer = namespace["ScoreAugmentedNRE_C"](show_progress_bars=False)
    theta = torch.randn(20, 2)
    trainer.append_simulations(theta, theta, score=theta)
    assert len(trainer.get_simulations()[0]) == 20


def test_blocks_can_be_pasted_line_by_line():
    """A blank line within a definition would end it at Python's prompt."""
    for block in BLOCKS:
        assert not re.search(r"\n    [^\n]*\n\n    ", block)


def test_readme_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_version_table_agrees_with_pyproject():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    row = re.search(r"\| ([\d.]+) \| (>=\S+) \| (>=\S+) \|", README)
    version, sbi_range, python = row.groups()
    assert project["version"].startswith(version + ".")
    assert f"sbi[pyro]{sbi_range}" in project["dependencies"]
    assert python == project["requires-python"]


@pytest.mark.parametrize(
    "path", re.findall(r"\]\((?!http)([^)]+)\)", README) or ["README.md"]
)
def test_linked_files_exist(path):
    assert (ROOT / path).exists()


RESULTS = ROOT / "sbi_scoreaug" / "benchmarks" / "results"


def rows_of(text, first):
    """Cells of the table's rows whose first cell is one of `first`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return [
        [cell.strip("* ") for cell in cells] for cells in lines if cells[0] in first
    ]


def test_the_headline_table_is_that_of_the_results():
    measured = rows_of((RESULTS / "keeping_score" / "README.md").read_text(), PROBLEMS)
    shown = rows_of(README, PROBLEMS)
    assert [cells[0] for cells in shown] == list(PROBLEMS)
    for name, *values, factor in shown:
        cells = [row for row in measured if row[0] == name and len(row) > 8]

        def tv(num, *methods, cells=cells):
            found = [row[4] for row in cells if row[1] == num and row[2] in methods]
            return min(float(value.split()[0]) for value in found)

        expected = [
            tv("1000", "NRE_A"),
            tv("1000", "equipped"),
            tv("10000", "NRE_A", "equipped"),
            tv("30000", "NRE_A", "equipped"),
            tv("1000", "score"),
        ]
        assert [float(value) for value in values] == pytest.approx(expected, abs=6e-4)
        (row,) = [row for row in cells if row[1:3] == ["1000", "score"]]
        assert row[6].startswith(factor)


def factors_shown():
    """Method, task and factor of the last column, `NLE: Gaussian >10, mixture 3.3; ..`.

    Tasks without a factor of their own share the next one.
    """
    for line in README.splitlines():
        cell = line.strip("| ").split(" | ")[-1]
        if not (line.startswith("| `") and "Gaussian" in cell):
            continue
        (trainer,) = re.findall(r"^\| `(?:ScoreAugmented)?(\w+)`", line)
        trainer = {"AmortizedCostEstimator": "ACE"}.get(trainer, trainer)
        for part in cell.split("; ") if "NLE: " in cell else [cell]:
            *name, tasks = part.split(": ")
            method = name[0] if "NLE: " in cell else trainer
            waiting = []
            for item in re.split("[,;] ", tasks):
                task, *factor = item.split(" ")
                waiting.append(task)
                if factor:
                    yield from ((method, task, factor[0]) for task in waiting)
                    waiting = []


def test_what_a_score_buys_is_that_of_the_results():
    text = (RESULTS / "scores_everywhere" / "README.md").read_text()
    rows = rows_of(text, RECIPES)
    shown = list(factors_shown())
    assert {method for method, *_ in shown} == set(RECIPES)
    for method, task, factor in shown:
        found = next(row for row in rows if row[:2] == [method, task])
        assert found[4].split("**")[1] == factor, (method, task)


def test_the_commands_that_measure_a_row_again_are_taken():
    for command, option, known in (
        ("keeping_score", "--problems", PROBLEMS),
        ("scores_everywhere", "--methods", RECIPES),
    ):
        (name,) = re.findall(rf"benchmarks {command} {option} (\w+)", README)
        assert name in known and command in NAMES
    (others,) = re.findall(r"--methods NRE`, or (.*?)\)", README)
    assert {"NRE", *re.findall(r"`(\w+)`", others)} == set(RECIPES)
