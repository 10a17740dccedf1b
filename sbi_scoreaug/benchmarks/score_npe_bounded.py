r"""Table 3 of score_npe: a box prior, and sets of 8 from its centre, edge and corner.

The likelihood is linear Gaussian, the box [-1, 1]^2, and every network is trained on N
single simulations, as in table 2. *Inside* is the share of samples in the box.
"""

from __future__ import annotations

import time
import warnings

import torch

from sbi_scoreaug.benchmarks.cells import Row
from sbi_scoreaug.benchmarks.score_npe_metrics import Reference, join
from sbi_scoreaug.benchmarks.score_npe_trained import (
    BOUNDED,
    OWN,
    draw,
    network_of,
    simulator_of,
    trained,
)

PLACES = {"centre": (0.0, 0.0), "edge": (1.0, 0.0), "corner": (1.0, 1.0)}


def bounded_cell(place: str, method: str, budget: int, seed: int, sets: int) -> Row:
    """Return the share inside the box, errors and CPU seconds of 8 observations."""
    simulator = simulator_of(BOUNDED)
    posterior, *_ = trained(BOUNDED, network_of(method), budget, 1, seed)
    theta, found = torch.tensor(PLACES[place]).double().expand(8, -1), []
    for k in range(sets):
        torch.manual_seed(k + 1)
        x = simulator(theta)
        reference = Reference(simulator.reference_samples(2000, x))
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = draw(method, posterior, x, 1000)
        seconds = time.process_time() - start
        inside = float((drawn.abs() <= 1).all(1).double().mean())
        found.append({"inside": inside, **reference.errors(drawn), "cpu": seconds})
    return {key: join([one[key] for one in found]) for key in found[0]}


def bounded_cells(quick: bool) -> list[Row]:
    """Return the settings of table 3."""
    budget = 1000 if quick else 10_000
    sets = {"ScoreNPE": 2} if quick else {"ScoreNPE": 10, "NPSE auto_gauss": 1}
    seeds = (1,) if quick else (1, 2, 3)
    return [
        {"place": p, "method": m, "budget": budget, "seed": seed, "sets": k}
        for m, k in sets.items()
        for seed in (seeds if m in OWN else seeds[:1])
        for p in PLACES
    ]
