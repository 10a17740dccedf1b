"""The benchmark of all methods: references, factors, and a negative control."""

import math

import pytest
import torch
from torch.distributions import Normal

from sbi_scoreaug.benchmarks import scores_everywhere
from sbi_scoreaug.benchmarks.cells import read_rows
from sbi_scoreaug.benchmarks.metrics import kl_and_tv
from sbi_scoreaug.benchmarks.scores_everywhere_methods import errors, fit
from sbi_scoreaug.benchmarks.scores_everywhere_report import (
    bars,
    data_factor,
    number,
    table,
)
from sbi_scoreaug.benchmarks.scores_everywhere_tasks import SIGMA, TASKS, task_of


def test_points_of_the_gaussian_give_the_total_variation_in_closed_form():
    task = task_of("Gaussian")
    x_o = task.simulate(1, 5).x[0]
    points = task.points(x_o)
    exact = task.simulator.exact_posterior(x_o)
    shift = 0.3 * exact.variance.sqrt()  # of every coordinate, all independent
    log_q = exact.log_prob(points.theta.double() - shift)
    kl, tv = kl_and_tv(points.log_p - points.log_g, log_q - points.log_g)
    size = 0.3 * math.sqrt(10)
    expected = 2 * Normal(0.0, 1.0).cdf(torch.tensor(size / 2)).item() - 1
    assert abs(tv - expected) < 0.03 and abs(kl - size**2 / 2) < 0.06
    assert kl_and_tv(points.log_p, points.log_p)[1] == 0


def test_the_posterior_of_the_schools_integrates_their_latents():
    task = task_of("schools")
    x = task.simulate(1, 7).x
    theta = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.5, -1.0]])
    torch.manual_seed(0)
    z = theta[:, :1, None] + theta[:, 1:, None].exp() * torch.randn(3, 8, 200_000)
    density = Normal(z, SIGMA[:, None]).log_prob(x[0, :, None]).exp().mean(2)
    found = task.log_likelihood(theta, x)
    assert torch.allclose(found.float(), density.log().sum(1), atol=0.03)


def test_scores_of_the_schools_are_noisy_and_right_on_average():
    task = task_of("schools")
    data = task.simulate(40_000, 3)
    theta = data.theta.double().requires_grad_()
    log_p = task.log_likelihood(theta, data.x).sum()
    noise = data.score - torch.autograd.grad(log_p, theta)[0]
    assert (noise.std(0) > 0.3 * data.score.std(0)).all()
    for phi in (torch.ones(40_000, 1), data.x[:, :1], data.x.square().mean(1)[:, None]):
        product = noise * phi
        z = product.mean(0) / (product.std(0) / 200)
        assert (z.abs() < 4).all()
    wrong = (noise + 0.2 * data.score) * data.x.mean(1, keepdim=True)
    assert (wrong.mean(0) / (wrong.std(0) / 200)).abs().max() > 4


@pytest.mark.parametrize("name", TASKS)
def test_the_expected_cost_is_the_mean_distance(name):
    task = task_of(name)
    data = task.simulate(2, 11)
    theta, x_o = data.theta[:1], data.x[1]
    torch.manual_seed(0)
    many = theta.expand(4000, -1)
    simulator = task.simulator
    x = simulator(many)[0] if name == "schools" else simulator(many)
    distances = (x - x_o).square().flatten(1).mean(1)
    error = abs(distances.mean() - task.expected_cost(theta, x_o)[0])
    assert error < 4 * distances.std() / math.sqrt(4000)


def test_cost_points_are_weighted_by_the_cost():
    for name in ("Gaussian", "schools"):
        task = task_of(name)
        x_o = task.simulate(1, 2).x[0]
        theta, log_p, log_g = task.cost_points(x_o)
        log_q = task.prior.log_prob(theta) - task.beta * task.expected_cost(theta, x_o)
        assert kl_and_tv(log_p - log_g, log_q - log_g)[1] < 1e-3
        assert kl_and_tv(log_p - log_g, task.prior.log_prob(theta) - log_g)[1] > 0.1


def _row(arm, n, error, seed=1, steps=10, method="NRE", **more):
    row = {"task": "Gaussian", "method": method, "arm": arm, "num_simulations": n}
    row |= {"seed": seed, "steps": steps, "error": error, "other": error}
    return row | {"steps_taken": 10, "cpu_train": 1.0, **more}


PLAIN = [_row("plain", 300, 0.4), _row("plain", 3000, 0.2), _row("plain", 10000, 0.1)]


@pytest.mark.parametrize(
    ("n", "error", "expected", "shown"),
    [
        (1000, 0.2, 3.0, "3.0"),
        (1000, 0.05, 10.0, ">10"),
        (300, 0.8, 0.25, "0.2"),  # worse than plain: 75 would do, by N^-1/2
        (10000, 0.2, 0.3, "0.3"),
    ],
)
def test_the_factor_on_known_curves(n, error, expected, shown):
    scored = [_row("score", n, error)]
    factor = data_factor([*PLAIN, *scored], scored)
    assert factor[0] == pytest.approx(expected)
    assert number(factor) == shown


def test_a_better_baseline_lowers_the_factor_and_a_bar_can_be_missed():
    scored = [_row("score", 1000, 0.05)]
    better = [_row("own", 1000, 0.04, steps=0), _row("plain", 10000, 0.01, steps=30)]
    assert data_factor([*PLAIN, *scored, *better], scored)[0] < 1
    assert "missed" not in bars([*PLAIN, *scored])
    assert bars([*PLAIN, *scored, *better]).count("missed") == 3  # 10, and 0.9 twice
    assert "**>10**" in table([*PLAIN, *scored])


def test_scores_help_and_scores_of_the_wrong_sign_do_not():
    task = task_of("Gaussian")
    data = task.simulate(1000, 100)
    found = {}
    for name, sign in (("score", 1), ("plain", 0), ("flipped", -1)):
        torch.manual_seed(0)
        given = data._replace(score=sign * data.score)
        arm = "plain" if name == "plain" else "score"
        fitted = fit("NRE", arm, task, given, 200, 2e-3)
        found[name] = errors("NRE", task, fitted, 5, 999)[0]
    assert found["score"] < 0.6 * found["plain"]
    assert found["flipped"] > found["plain"]


def test_cells_are_written_as_they_come_and_kept(tmp_path, capsys):
    command = ["--quick", "--methods", "ACE", "--out", str(tmp_path)]
    scores_everywhere.main(command)
    rows = read_rows(tmp_path / "quick.csv")
    assert len(rows) == len(scores_everywhere.QUICK)
    (tmp_path / "quick.csv").write_text(
        (tmp_path / "quick.csv").read_text().replace(f"{rows[0]['cpu_train']}", "9.75")
    )
    scores_everywhere.main([*command, "--report"])
    scores_everywhere.main(command)
    assert read_rows(tmp_path / "quick.csv")[0]["cpu_train"] == 9.75
    assert (tmp_path / "quick.png").stat().st_size > 10_000
    assert "| ACE | Gaussian | cost error |" in capsys.readouterr().out


def test_what_makes_no_sense_is_left_out_and_first_comes_the_most_telling():
    cells = scores_everywhere.cells_of(
        False, ["NLE", "NPE"], ["Gaussian", "field"], [1, 2]
    )
    pairs = {(cell["method"], cell["task"]) for cell in cells}
    assert ("NLE", "field") not in pairs and ("NPE", "field") in pairs
    assert {cell["num_simulations"] for cell in cells[:9]} == {1000, 10000}
    assert len({tuple(cell.values()) for cell in cells}) == len(cells)
