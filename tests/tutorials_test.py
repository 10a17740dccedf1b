"""The cells of every notebook run, and what is committed is tidy.

By default they run at a reduced size; `-m slow` runs them as a reader does.
"""

import inspect
import json
import re
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from sbi_scoreaug import plots

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
MAX_SIZE = 400_000  # bytes

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    notebook = json.loads(path.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def sources(path, kind):
    return ["".join(cell["source"]) for cell in cells(path, kind)]


def run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    plt.switch_backend("Agg")
    namespace = {"__name__": "notebook"}
    with warnings.catch_warnings():  # a notebook may silence some, for itself
        for source in sources(path, "code"):
            exec(compile(source, path.name, "exec"), namespace)
    plt.close("all")
    return namespace


@every_notebook
@pytest.mark.filterwarnings("ignore")  # of networks that have seen next to nothing
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOKE_TEST", "1")
    assert run(path, tmp_path, monkeypatch)["smoke_test"] is True


@every_notebook
@pytest.mark.slow
def test_notebook_runs_in_full(path, tmp_path, monkeypatch):
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    assert run(path, tmp_path, monkeypatch)["smoke_test"] is False


@every_notebook
def test_outputs_are_committed_without_errors(path):
    outputs = [out for cell in cells(path, "code") for out in cell["outputs"]]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not any(out["output_type"] == "error" for out in outputs)
    assert not any(out.get("name") == "stderr" for out in outputs)
    numbers = [cell["execution_count"] for cell in cells(path, "code")]
    assert numbers == list(range(1, len(numbers) + 1))  # one run, from top to bottom


@every_notebook
def test_notebooks_are_built_alike(path):
    prose = sources(path, "markdown")
    assert prose[0].startswith("# ") and "\n## Next steps\n" in "\n" + prose[-1]
    assert any("torch.manual_seed(0)" in source for source in sources(path, "code"))
    assert path.stat().st_size < MAX_SIZE
    assert "/tmp/" not in path.read_text() and "/work/" not in path.read_text()


def test_every_notebook_has_a_number_of_its_own():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert all(number.isdigit() for number in numbers)
    assert len(set(numbers)) == len(numbers)


LIBRARIES = {"matplotlib", "networkx", "pyro", "sbi", "sbi_scoreaug", "torch"}


@every_notebook
def test_no_code_hides_in_a_helper(path):
    code = "\n".join(sources(path, "code"))
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) <= LIBRARIES


def test_every_picture_is_in_a_tutorial():
    code = "\n".join(source for path in NOTEBOOKS for source in sources(path, "code"))
    pictures = {
        name
        for name, thing in vars(plots).items()
        if inspect.isfunction(thing)
        and inspect.getmodule(thing) is plots
        and not name.startswith("_")
    }
    assert len(pictures) >= 5
    assert pictures <= set(re.findall(r"plots\.(\w+)\(", code))


def test_the_line_for_arviz_is_in_a_tutorial():
    prose = "\n".join(
        source for path in NOTEBOOKS for source in sources(path, "markdown")
    )
    assert 'arviz.convert_to_dataset({"theta": samples[None].numpy()})' in prose
