"""The trainers that `overhead` times, each beside the class of sbi that it extends.

Both train the same network wherever the host has it: the cost is then that of what is
added. Two exceptions, marked: `ScoreNPE` also with its own network against sbi's
default, and the cost network against NLE's flow, which learns something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sbi.inference import BNRE, NLE_A, NPE_C, NPSE, NRE_A, NRE_B, NRE_C
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_nn,
    posterior_score_nn,
)
from torch import nn

from sbi_scoreaug import (
    AmortizedCostEstimator,
    CostNetBuilder,
    ScoreAugmentedNLE,
    ScoreAugmentedNPE,
    ScoreAugmentedNRE,
    ScoreAugmentedRatioTerm,
    ScoreNPE,
    smooth_classifier_nn,
)
from sbi_scoreaug.benchmarks.training import NoTracker


class ScoreAugmentedNRE_B(ScoreAugmentedRatioTerm, NRE_B):
    """NRE-B with exact scores."""


class ScoreAugmentedNRE_C(ScoreAugmentedRatioTerm, NRE_C):
    """NRE-C with exact scores."""


class ScoreAugmentedBNRE(ScoreAugmentedRatioTerm, BNRE):
    """Balanced NRE with exact scores."""


def _classifier(build: Callable[..., Any]) -> Callable[[nn.Module | None], Any]:
    return lambda net: {"classifier": build("mlp", **_embedded("_x", net))}


def _embedded(suffix: str, net: nn.Module | None) -> dict[str, Any]:
    # The fields are scaled by their embedding net.
    embedded = {f"embedding_net{suffix}": net, "z_score_x": "none"}
    return embedded if net is not None else {}


def _score_net(net: nn.Module | None) -> dict[str, Any]:
    options = _embedded("", net)
    return {"vf_estimator": posterior_score_nn("mlp", sde_type="vp", **options)}


def _density(build: Callable[..., Any]) -> Callable[[nn.Module | None], Any]:
    return lambda net: {"density_estimator": build("maf", **_embedded("", net))}


def _own_network(net: nn.Module | None) -> dict[str, Any]:
    return {"embedding_net": net}


def _cost_net(net: nn.Module | None) -> dict[str, Any]:
    kind, options = ("auto", {}) if net is None else ("net", {"embedding_net": net})
    return {"cost_net": CostNetBuilder(kind, **options)}


@dataclass(frozen=True)
class Pair:
    """A trainer of sbi and ours, with functions from an embedding net to arguments."""

    host: type
    ours: type
    host_network: Callable[[nn.Module | None], dict[str, Any]]
    our_network: Callable[[nn.Module | None], dict[str, Any]]
    embeds: bool = True

    def build(self, ours: bool, prior: Any, net: nn.Module | None) -> Any:
        """Return a quiet trainer without simulations."""
        options = (self.our_network if ours else self.host_network)(net)
        cls = self.ours if ours else self.host
        return cls(prior, tracker=NoTracker(), show_progress_bars=False, **options)


_RATIO = (_classifier(classifier_nn), _classifier(smooth_classifier_nn))
PAIRS = {
    "NRE_A": Pair(NRE_A, ScoreAugmentedNRE, *_RATIO),
    "NRE_B": Pair(NRE_B, ScoreAugmentedNRE_B, *_RATIO),
    "NRE_C": Pair(NRE_C, ScoreAugmentedNRE_C, *_RATIO),
    "BNRE": Pair(BNRE, ScoreAugmentedBNRE, *_RATIO),
    "NLE_A": Pair(
        NLE_A,
        ScoreAugmentedNLE,
        _density(likelihood_nn),
        _density(likelihood_nn),
        embeds=False,  # sbi's NLE takes no images
    ),
    "NPE_C": Pair(
        NPE_C, ScoreAugmentedNPE, _density(posterior_nn), _density(posterior_nn)
    ),
    "NPSE": Pair(NPSE, ScoreNPE, _score_net, _score_net),
    "NPSE (own network)": Pair(NPSE, ScoreNPE, _score_net, _own_network),
    "ACE (beside NLE_A)": Pair(
        NLE_A, AmortizedCostEstimator, _density(likelihood_nn), _cost_net, embeds=False
    ),
}
