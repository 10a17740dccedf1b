"""The Hodgkin-Huxley benchmark selects, measures and reports what it says."""

import itertools
from functools import partialmethod

import pytest
import torch
from sbi.inference import NPE_C

from sbi_scoreaug.benchmarks.amortized_cost_hodgkin_huxley import (
    LEVELS,
    METHODS,
    _figures,
)
from sbi_scoreaug.benchmarks.hodgkin_huxley_data import KINDS, Laboratory, Recordings
from sbi_scoreaug.benchmarks.hodgkin_huxley_report import (
    distance_table,
    factor_table,
    npe_curve,
)
from sbi_scoreaug.simulators import HodgkinHuxley


@pytest.fixture
def lab(tmp_path):
    """A laboratory whose simulations were made up, so that none is run."""
    prior = HodgkinHuxley().prior
    x = 20 * torch.rand(30_000, 7)
    torch.save((prior.sample((2000,)), x[:2000]), tmp_path / "scale.pt")
    torch.save((prior.sample((30_000,)), x), tmp_path / "pool.pt")
    torch.save((prior.sample((200,)), x[:200]), tmp_path / "recordings_well_3.pt")
    return Laboratory(tmp_path)


def test_training_sets_of_networks_are_disjoint(lab):
    sets = [lab.training_set(10_000, seed) for seed in range(3)]
    for (theta, x), (other, _) in itertools.combinations(sets, 2):
        assert theta.shape == (10_000, 8) and x.shape == (10_000, 7)
        assert {*map(tuple, theta.tolist())}.isdisjoint(map(tuple, other.tolist()))
    assert torch.equal(lab.training_set(300, 1)[0], sets[1][0][:300])


def test_recordings_have_5_to_40_spikes_and_features_are_standardized(lab):
    recorded = lab.recordings("well", 10)
    counts = lab.spikes(recorded.x)
    assert len(recorded.x) == 10 and (counts >= 4.5).all() and (counts < 40.5).all()
    assert not lab.is_target(lab.standardize(torch.zeros(1, 7))).any()
    _, x = torch.load(lab.cache / "scale.pt")
    standardized = lab.standardize(x)
    assert standardized.mean(0).abs().max() < 1e-4
    assert (standardized.std(0) - 1).abs().max() < 1e-4


def test_figures_average_recordings_by_kind_and_cover_what_they_should():
    theta = torch.zeros(2, 8)
    recordings = {kind: Recordings(theta, torch.zeros(2, 7)) for kind in KINDS}
    draws = {"25": torch.linspace(-1, 1, 101).reshape(1, -1, 1).repeat(6, 1, 8)}
    draws["25"][1] += 5  # the second recording of the first kind is not covered
    distances = {"25": torch.arange(6.0).unsqueeze(1).repeat(1, 4)}
    figures = _figures("25", draws, distances, recordings)
    assert [figures[f"distance_{kind}_25"] for kind in KINDS] == [0.5, 2.5, 4.5]
    assert figures["coverage_25"] == 0.5
    missing = _figures("ml", draws, distances, recordings)
    assert all(value != value for value in missing.values())


def test_draws_of_both_npe_stay_in_the_prior(lab, monkeypatch):
    short = partialmethod(NPE_C.train, max_num_epochs=1)
    monkeypatch.setattr(NPE_C, "train", short)
    theta, x = lab.training_set(200, 0)
    low, high = lab.prior.base_dist.low, lab.prior.base_dist.high
    for name in ("npe", "npe_logit"):
        draws = METHODS[name](lab, theta, x)(x[:2], 20)[LEVELS[0]]
        assert draws.shape == (2, 20, 8)
        assert (draws >= low).all() and (draws <= high).all()


def rows():
    """Networks with made-up distances: NPE falls as 1/sqrt(N), ACE is at .1."""
    made = []
    for (number, npe), seed in itertools.product(
        {300: 0.4, 1200: 0.2, 4800: 0.1, 19200: 0.05}.items(), range(2)
    ):
        for method, value in (("npe", npe), ("npe_logit", 2 * npe), ("ace", 0.1)):
            row = {"method": method, "num_simulations": number, "seed": seed}
            row |= {"cpu_train": 1.0, "cpu_sample": 1.0, "beta_ml": 20.0}
            for kind, level in itertools.product(KINDS, LEVELS):
                row[f"distance_{kind}_{level}"] = value
                row[f"coverage_{level}"] = 0.9
            made.append(row)
    return made


def test_factors_are_read_off_the_better_npe():
    assert npe_curve(rows(), "well") == {300: 0.4, 1200: 0.2, 4800: 0.1, 19200: 0.05}
    lines = factor_table(rows()).splitlines()
    assert lines[2] == "| well | 300 | 16 | 16 | 16 |"
    assert lines[5] == "| well | 19200 | 0.25 | 0.25 | 0.25 |"
    table = distance_table(rows())
    assert table.count("| ace |") == 4 * len(LEVELS)
    assert table.count("| npe |") == table.count("| npe_logit |") == 4
