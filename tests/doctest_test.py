"""The examples in docstrings run, in every module of the package."""

import doctest
import importlib
import pkgutil

import pytest

import sbi_scoreaug

MODULES = [
    module.name
    for module in pkgutil.walk_packages(
        sbi_scoreaug.__path__, prefix=f"{sbi_scoreaug.__name__}."
    )
    if not module.name.endswith("__main__")
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", [sbi_scoreaug.__name__, *MODULES])
@pytest.mark.filterwarnings("ignore")
def test_examples_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0


@pytest.mark.parametrize("name", sbi_scoreaug.__all__)
def test_what_is_public_is_documented(name):
    assert getattr(sbi_scoreaug, name).__doc__
