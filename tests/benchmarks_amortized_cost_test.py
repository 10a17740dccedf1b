"""The instruments of the amortized-cost benchmark, on cases with known answers."""

import math

import pytest
import torch

from sbi_scoreaug.benchmarks import amortized_cost as benchmark
from sbi_scoreaug.benchmarks.amortized_cost_figures import (
    annealed_draws,
    coverage,
    draw_cells,
    measure,
)
from sbi_scoreaug.benchmarks.amortized_cost_methods import Energy, Fit, abc
from sbi_scoreaug.benchmarks.amortized_cost_report import posterior_table, verdict
from sbi_scoreaug.benchmarks.amortized_cost_two_sample import two_sample_accuracies
from sbi_scoreaug.simulators import LinearGaussianCost, UniformPolynomial


def test_two_sample_accuracy_is_that_of_the_best_classifier():
    one, other = torch.randn(6, 800, 1), torch.randn(6, 800, 1)
    other[2:4] += 1.0
    other[4:] *= 0.5
    same, shifted, scaled = two_sample_accuracies(one, other).view(3, 2).mean(dim=1)
    assert same == pytest.approx(0.5, abs=0.03)  # seeds 0 .. 9: .484 to .508
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert shifted == pytest.approx(best, abs=0.03)  # .691: .677 to .702
    assert scaled == pytest.approx(0.661, abs=0.03)  # .649 to .673


def test_cells_are_drawn_by_their_probability():
    theta = torch.tensor([[0.5], [1.5], [2.5]])
    probs = torch.tensor([[0.2, 0.0, 0.8], [1.0, 0.0, 0.0]])
    draws = draw_cells(probs, theta, torch.ones(1))
    assert not ((draws > 1) & (draws < 2)).any() and (draws[1] < 1).all()
    assert (draws[0] < 1).float().mean().item() == pytest.approx(0.2, abs=0.05)


def test_coverage_of_a_calibrated_and_of_a_narrow_posterior():
    draws, truth = torch.randn(2000, 100, 1), torch.randn(2000, 1)
    assert coverage(draws, truth) == pytest.approx(0.9, abs=0.03)
    assert coverage(0.5 * draws, truth) < 0.7  # control


@pytest.mark.parametrize("task", [UniformPolynomial(), LinearGaussianCost(3)])
def test_figures_tell_the_exact_cost_from_a_wrong_one(task):
    truth = task.prior.sample((3,))
    x = task(truth)
    right = Fit((5.0,), Energy(task.expected_cost))
    wrong = Fit((5.0,), Energy(lambda t, x_o: 3 * task.expected_cost(t, x_o)))
    (good,), (bad,) = (measure(task, fit, x, truth, True) for fit in (right, wrong))
    assert good["error"] == pytest.approx(0, abs=1e-5)
    assert good["bound"] == pytest.approx(0.5, abs=1e-4)
    assert good["c2st"] == pytest.approx(0.5, abs=0.05)
    assert bad["bound"] > 0.55 and bad["c2st"] < bad["bound"] + 0.03
    assert bad["excess"] < good["excess"]  # it trusts the observation more


def test_annealed_draws_are_those_of_the_exact_posterior():
    task = LinearGaussianCost(4)
    x = task(task.prior.sample((2,)))
    energy = Energy(task.expected_cost)
    with torch.no_grad():
        (draws,) = annealed_draws(energy, task.prior, x, (8.0,), 1000)
    exact = torch.stack([task.exact_posterior(row, 8.0).sample((1000,)) for row in x])
    torch.testing.assert_close(draws.mean(1), exact.mean(1), rtol=0, atol=0.08)
    torch.testing.assert_close(draws.std(1), exact.std(1), rtol=0.12, atol=0)
    assert two_sample_accuracies(exact, draws, learning_rate=2e-3).mean() < 0.53


def test_rejection_abc_keeps_the_nearest():
    task = UniformPolynomial()
    theta = task.prior.sample((400,))
    fit = abc(task, theta, task(theta))
    truth = task.prior.sample((4,))
    (figures,) = measure(task, fit, task(truth), truth, False)
    everywhere = Fit((1.0,), draw=lambda x_o, n: task.prior.sample((n,)))
    (prior,) = measure(task, everywhere, task(truth), truth, False)
    assert figures["excess"] < 0.5 * prior["excess"] and math.isnan(figures["c2st"])


def test_cells_are_distinct_and_their_report_names_a_miss():
    cells = benchmark.cells_of(False, list(benchmark.PROBLEMS), [1, 2, 3])
    settings = [tuple(cell.values()) for cell in cells]
    assert len(set(settings)) == len(settings) and cells[0]["method"] == "ace"
    names = ("error", "c2st", "bound")
    columns = [f"{n}_{k}_{j}" for n in names for k in benchmark.KINDS for j in range(3)]
    row = {"problem": "moons", "method": "ace", "num_simulations": 10000, "seed": 1}
    good, bad = ({**row, **dict.fromkeys(columns, value)} for value in (0.501, 0.6))
    assert verdict([good], "moons", 10000, 0, "well") == "met, also by the bound"
    assert verdict([bad], "moons", 10000, 0, "well") == "missed"
    assert posterior_table([bad]).count("missed") == 3
