"""The score_npe benchmark: its peers, figures, bars and reports."""

import pytest
import torch

from sbi_scoreaug.benchmarks import score_npe
from sbi_scoreaug.benchmarks.cells import read_rows
from sbi_scoreaug.benchmarks.score_npe import TABLES, ExactScores, main
from sbi_scoreaug.benchmarks.score_npe_bounded import PLACES
from sbi_scoreaug.benchmarks.score_npe_cost import peak_megabytes
from sbi_scoreaug.benchmarks.score_npe_exact import (
    EXACT_METHODS,
    PROBLEMS,
    SCHEDULE,
    exact_cell,
    or_nan,
)
from sbi_scoreaug.benchmarks.score_npe_metrics import (
    Reference,
    join,
    split,
    summary,
)
from sbi_scoreaug.benchmarks.score_npe_plots import STYLES
from sbi_scoreaug.benchmarks.score_npe_report import (
    bounded_table,
    cost_table,
    exact_misses,
    excess,
    modes_table,
    trained_table,
)
from sbi_scoreaug.benchmarks.score_npe_trained import METHODS, draw


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_peers_get_the_simulators_scores(problem):
    simulator, t = PROBLEMS[problem](), 0.3
    x = torch.randn(3, simulator.dim_theta)
    theta = torch.randn(5, simulator.dim_theta)
    found = ExactScores(simulator)(theta[:, None], x, torch.tensor([t]))
    exact = simulator.diffused_score(theta, SCHEDULE.mean(t), x)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    other = ExactScores(simulator)(theta[:, None], x, torch.tensor([t + 0.05]))
    assert (other - exact).abs().max() > 1e-2


def test_figures_see_shift_width_and_lost_modes():
    exact = torch.randn(2000, 2) * 0.3 + torch.tensor([2.0, 0.0])
    exact[::2] *= -1
    reference, fresh = Reference(exact), torch.randn(1000, 2) * 0.3
    fresh[:, 0] += 2
    both = torch.where(torch.arange(1000)[:, None] % 2 == 0, fresh, -fresh)
    good, bad = reference.errors(both), reference.errors(fresh)
    assert abs(good["mmd2"]) < 0.003 < 0.1 < bad["mmd2"]
    assert abs(good["sd"] - 1) < 0.03 and good["mean"] < 0.08
    assert abs(reference.share(both) - reference.share(exact)) < 0.01
    assert abs(reference.share(fresh) - reference.share(exact)) > 0.49
    wide = reference.errors(1.5 * both)
    assert abs(wide["sd"] - 1.5) < 0.05 and wide["mmd2"] > 0.01


def test_entries_of_all_sets():
    assert split(join([0.5, -1.25])) == [0.5, -1.25]
    assert split(3) == [3.0]
    assert summary("0.9 1.0 1.3", centre=1.0) == "1.067 (1.000; 1.300)"


def test_bars_of_exact_scores():
    row = {"num_observations": 8, "mean": "0.08", "sd": "1.029", "mmd2": "0.0019"}
    floor = {"mean": "0.031"}
    assert exact_misses(row, floor) == []
    assert exact_misses({**row, "sd": "0.96"}, floor) == ["sd"]
    assert exact_misses({**row, "sd": "0.96", "num_observations": 1000}, floor) == []
    assert exact_misses({**row, "mean": "0.09"}, floor) == ["mean"]
    assert exact_misses({**row, "mmd2": "nan"}, floor) == ["mmd2"]


def trained_row(method, seed, mmd2, **other):
    row = {"problem": "flip .5", "method": method, "budget": 1000, "seed": seed}
    row |= {"num_observations": 2, "first_set": 1, "mmd2": mmd2, "modes": "0 0.2"}
    return row | other


def test_the_default_is_compared_on_shared_sets():
    ours = [trained_row("ScoreNPE", 1, "0.3 0.4 0.5"), trained_row("ScoreNPE", 2, 9)]
    peer = [trained_row("NPSE fnpe", 1, "0.1 0.1")]
    gap, error, shared = excess(ours, peer)
    assert shared == 2
    assert gap == pytest.approx(0.25) and error == pytest.approx(0.05)
    assert "NPSE fnpe by 0.2500" in trained_table(ours + peer)
    worse = [trained_row("NPSE fnpe", 1, "0.5 0.5")]
    assert "| met |" in trained_table(ours + worse)
    assert "50% of 2" in modes_table(peer)


def test_sets_on_which_a_peer_diverged_are_counted_not_averaged():
    ours = [trained_row("ScoreNPE", 1, "0.2 0.2 0.2")]
    peer = [trained_row("NPSE gauss", 1, "0.5 nan 0.1")]
    gap, _, shared = excess(ours, peer)
    assert shared == 2 and gap == pytest.approx(-0.1)
    assert "0.3000 ± 0.2000 (2 of 3)" in trained_table(ours + peer)
    lost = [trained_row("NPSE gauss", 1, "nan nan")]
    assert "diverged (0 of 2) | met |" in trained_table(ours + lost)
    failed = [trained_row("ScoreNPE", 1, "nan 0.1 0.1")]
    assert "| met |" not in trained_table(failed + peer)


@pytest.mark.parametrize("message", ["All samples NaN after diffusion", "other"])
def test_samples_that_the_host_refuses_are_nan_and_other_errors_are_raised(message):
    def sample(shape):
        raise RuntimeError(message)

    if message == "other":
        with pytest.raises(RuntimeError, match="other"):
            or_nan(sample, (3,))
    else:
        assert or_nan(sample, (3,)).isnan().all()


def test_bars_of_the_box_and_cost():
    row = {"method": "ScoreNPE", "inside": "1 1", "mean": 0, "sd": 1, "mmd2": "0.01"}
    rows = [{**row, "place": place, "cpu": "1 1"} for place in PLACES]
    assert bounded_table(rows).count("| met |") == 3
    rows[1] |= {"inside": "1 0.99", "cpu": "2 3"}
    assert "inside, time" in bounded_table(rows)
    row = {"num_observations": 8, "peak_mb": 9, "above_mb": 1, "weights": 5}
    costs = [
        {**row, "method": "ScoreNPE", "cpu": 2.0},
        {**row, "method": "NPSE fnpe", "cpu": ">60"},
    ]
    assert "| >30.0 |" in cost_table(costs)


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("quick", [False, True])
def test_cells_are_all_different(number, quick):
    cells = TABLES[number].cells(quick, [*EXACT_METHODS, *METHODS], 1)
    keys = {tuple(cell.items()) for cell in cells}
    assert len(keys) == len(cells) > 0


@pytest.mark.parametrize(("number", "seeds"), [(1, {301}), (2, {5, 6})])
def test_fresh_networks_and_sets_are_asked_for_by_name(
    number, seeds, tmp_path, monkeypatch
):
    done = []
    table = TABLES[number]._replace(
        cell=lambda **cell: done.append(cell) or {"mmd2": 0},
        plot=lambda *_: None,
        show=lambda _: "",
    )
    monkeypatch.setitem(TABLES, number, table)
    fresh = ["--networks", "5", "6", "--first-set", "301"]
    options = ["--quick", "--out", str(tmp_path), "--tables", str(number)]
    main([*options, "--methods", "ScoreNPE", "auto", *fresh])
    assert {cell["seed"] for cell in done} == seeds
    assert all(cell.get("first_set", 301) == 301 for cell in done)


def test_a_cell_knows_a_good_sampler_from_a_narrow_one():
    options = {"num_observations": 8, "sets": 2, "samples": 500, "seed": 100}
    good = exact_cell("Gaussian", "auto", **options)
    narrow = exact_cell("Gaussian", "composed", **options)
    assert max(split(good["mmd2"])) < 0.01 < min(split(narrow["mmd2"]))
    assert max(split(narrow["sd"])) < 0.85


def test_stop_resume_and_report(tmp_path, monkeypatch):
    options = ["--quick", "--out", str(tmp_path), "--tables", "1"]
    cells = TABLES[1].cells(True, ["perfect draws", "auto"], 1)
    cells = [cell for cell in cells if cell["problem"] == "flip .5"]
    table = TABLES[1]._replace(cells=lambda *_: cells[:2])
    monkeypatch.setitem(score_npe.TABLES, 1, table)
    main(options)
    path = tmp_path / "quick_exact.csv"
    before = path.read_text()
    assert len(read_rows(path)) == 2
    called = []
    table = table._replace(cell=lambda **cell: called.append(cell))
    monkeypatch.setitem(score_npe.TABLES, 1, table)
    main(options)
    main([*options, "--report"])
    assert not called and path.read_text() == before
    assert "perfect draws" in (tmp_path / "quick.md").read_text()
    assert (tmp_path / "quick_exact.png").stat().st_size > 5000


def test_methods_know_their_networks():
    class Posterior:
        def sample(self, shape, x, **options):
            self.seen = x.shape, options
            return torch.zeros(*shape, 2)

    posterior, x = Posterior(), torch.zeros(4, 2)
    draw("NPE on sets", posterior, x, 10)
    assert posterior.seen[0] == (1, 4, 2)
    draw("NPSE gauss", posterior, x, 10)
    assert posterior.seen[1]["iid_method"] == "gauss"
    draw("ScoreNPE", posterior, x, 10)
    assert "iid_method" not in posterior.seen[1]


@pytest.mark.parametrize("method", [*EXACT_METHODS, *METHODS])
def test_every_method_can_be_drawn(method):
    assert STYLES[method.replace("NPSE", "sbi")]


def test_memory_is_in_megabytes():
    assert 50 < peak_megabytes() < 100_000
