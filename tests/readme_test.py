"""The README's Python blocks run as printed, and its version table is true."""

import re
import sys
from pathlib import Path

import pytest
import torch

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
