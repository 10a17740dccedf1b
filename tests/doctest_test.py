"""The examples in docstrings run, in every module of the package."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import sbi_scoreaug
from sbi_scoreaug import plots, simulators

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


def public():
    """Everything in an `__all__`, and the pictures, by full name."""
    found = [getattr(sbi_scoreaug, name) for name in sbi_scoreaug.__all__]
    for name in ("amortized_cost", "score_augmented", "score_npe", "scores"):
        package = importlib.import_module(f"sbi_scoreaug.{name}")
        found += [getattr(package, name) for name in package.__all__]
    found += [getattr(simulators, name) for name in simulators.__all__]
    found += [
        thing for thing in vars(plots).values() if inspect.getmodule(thing) is plots
    ]
    return {
        f"{thing.__module__}.{thing.__name__}": thing
        for thing in found
        if callable(thing) and not thing.__name__.startswith("_")
    }


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented_with_an_example(name):
    thing = PUBLIC[name]
    assert thing.__doc__
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        assert doctest.DocTestParser().get_examples(thing.__doc__)


def test_the_map_of_the_package_names_its_trainers():
    assert len(PUBLIC) > 60
    for name in ("ScoreAugmentedNRE", "ScoreNPE", "AmortizedCostEstimator", "citation"):
        assert f"`{name}" in sbi_scoreaug.__doc__
