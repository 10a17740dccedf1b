"""What `pyro` needs to know of a model: its sites, and whether it runs in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from sbi_scoreaug.errors import InvalidInputError


class Site(NamedTuple):
    """A sample site of a model, as one run shows it.

    Attributes:
        name: Its name.
        shape: Of its value in one simulation, plates and event.
        event_dim: How many of these dimensions are the event.
        num_plates: How many dimensions the plates around it take.
        discrete: Whether its support is.
        support: Its support.
    """

    name: str
    shape: torch.Size
    event_dim: int
    num_plates: int
    discrete: bool
    support: Any

    @property
    def numel(self) -> int:
        """Number of values in one simulation."""
        return math.prod(self.shape)

    def on_rows(self, value: Tensor, num_plates: int) -> Tensor:
        """Shape `value (batch, numel)` for rows to the left of `num_plates` plates."""
        missing = num_plates - (len(self.shape) - self.event_dim)
        return value.reshape(len(value), *[1] * missing, *self.shape)


def model_sites(model: Callable[[], Any]) -> dict[str, Site]:
    """Return the random sites of a model by name, in order, after one run.

    Args:
        model: A Pyro model without arguments.

    Raises:
        InvalidInputError: The model has a factor or subsamples.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trace: Any = poutine.trace(model).get_trace()
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["infer"].get("_deterministic"):
            continue
        if type(node["fn"]).__name__ == "_Subsample":
            continue
        if type(node["fn"]).__name__ == "Unit":
            raise InvalidInputError(
                f"model: expected pyro.sample sites only, got the factor {name!r}. A "
                "factor changes the density but not what is simulated."
            )
        if bool(torch.as_tensor(node["scale"] != 1.0).any()):
            raise InvalidInputError(
                f"model: expected sites at full weight, got {name!r} scaled. Use "
                "neither subsampling nor poutine.scale."
            )
        fn, frames = node["fn"], node["cond_indep_stack"]
        support = fn.support
        sites[name] = Site(
            name,
            node["value"].shape,
            fn.event_dim,
            max((-frame.dim for frame in frames if frame.vectorized), default=0),
            bool(support.is_discrete),
            support,
        )
    return sites


def select_sites(
    argument: str, names: str | Sequence[str], sites: dict[str, Site]
) -> list[Site]:
    """Return the named sites; raise InvalidInputError naming those that are missing."""
    wanted = [names] if isinstance(names, str) else list(names)
    missing = [name for name in wanted if name not in sites]
    if missing or not wanted:
        raise InvalidInputError(
            f"{argument}: expected names of the model's sites {list(sites)}, got "
            f"{names!r}."
        )
    return [sites[name] for name in wanted]


def require_vectorised(
    run: Callable[[Tensor], Any],
    theta: Tensor,
    sites: dict[str, Site],
    num_plates: int,
) -> None:
    """Raise InvalidInputError unless all rows can be run at once."""
    remedy = (
        "All simulations run as rows of one plate to the left: write the model such "
        "that parameters may have more dimensions on the left (index with ... and "
        "negative dimensions, use plates or to_event for repeated values)."
    )
    try:
        trace = run(theta)
    except Exception as error:  # A model is foreign code: whatever it raises.
        raise InvalidInputError(
            f"model: expected one that broadcasts over rows of theta, got "
            f"{type(error).__name__}: {error}. {remedy}"
        ) from error
    for name, site in sites.items():
        expected = site.on_rows(torch.zeros(len(theta), site.numel), num_plates).shape
        found = trace.nodes[name]["value"].shape if name in trace.nodes else None
        if found != expected:
            raise InvalidInputError(
                f"model: expected site {name!r} of shape {tuple(expected)} for "
                f"{len(theta)} simulations, got {found and tuple(found)}. {remedy}"
            )
