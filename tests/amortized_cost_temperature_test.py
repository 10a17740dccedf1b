"""Inverse temperatures against exact answers, on exact and on trained costs."""

import math
import warnings

import pytest
import torch
from torch import nn

from sbi_scoreaug import AmortizedCostEstimator
from sbi_scoreaug.amortized_cost import ModelWarning, calibrate_beta
from sbi_scoreaug.amortized_cost.annealing import AnnealedPosteriors
from sbi_scoreaug.amortized_cost.temperature_rules import condition_of, solve
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators import LinearGaussianCost


class ExactCost(nn.Module):
    """The closed-form cost in the shape of a network."""

    needs_pairs, on_sets = False, False

    def __init__(self, problem, factor=1.0):
        super().__init__()
        self.problem, self.factor = problem, factor
        x = problem(problem.prior.sample((2000,)))
        values = factor * problem.distance(x, x.flip(0))
        self.cost_scale, self.cost_mean = values.std(), values.mean()

    def encode(self, theta):
        return (theta,)

    def embed(self, x_t):
        return x_t

    def forward(self, theta, x_t):
        return self.cost(self.encode(theta), self.embed(x_t).unsqueeze(1)).squeeze(1)

    def cost(self, encoded, embedded):
        residual = encoded[0].unsqueeze(1) + self.problem.shift.float() - embedded
        noise = self.problem.noise_variance
        return self.factor * (residual.square().mean(dim=2) + noise)


ISOTROPIC = LinearGaussianCost(2, noise_variance=0.25, shift=torch.zeros(2))
EXACT = {"isotropic": (ISOTROPIC, 4.0), "linear": (LinearGaussianCost(), 50.0)}


def calibrate(name, method, seed=0, factor=1.0, **options):
    problem, _ = EXACT[name]
    torch.manual_seed(seed)
    theta = problem.prior.sample((300,))
    x = problem(theta)
    options = {"num_observations": 200, "num_particles": 60, **options}
    cost = ExactCost(problem, factor)
    return calibrate_beta(cost, problem.prior, theta, x, method, **options)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", ["ml", "coverage"])
def test_rules_find_the_exact_answer(name, method):
    answer = EXACT[name][1]
    found = calibrate(name, method)
    assert found.beta == pytest.approx(answer, rel=0.15)
    assert found.beta != pytest.approx(1.6 * answer, rel=0.15)  # control
    assert found.acceptance.min() > 0.1 and not found.warnings


@pytest.mark.parametrize("method", ["ml", "coverage", "ess", "predictive"])
def test_rules_do_not_know_the_unit_of_the_distance(method):
    one, seven = (calibrate("isotropic", method, factor=f) for f in (1.0, 7.0))
    assert 7 * seven.beta == pytest.approx(one.beta, rel=0.02)
    assert seven.scale_free == pytest.approx(one.scale_free, rel=0.02)
    assert seven.beta != pytest.approx(one.beta, rel=0.5)


def test_particles_follow_the_exact_posterior():
    problem = LinearGaussianCost()
    x_o = problem(problem.prior.sample((3,)))
    particles = AnnealedPosteriors(ExactCost(problem), problem.prior, x_o, 400)
    with torch.no_grad():
        for k in range(24):
            particles.anneal_to(0.02 * 2 ** (k / 2))
    assert particles.beta == pytest.approx(57.9, rel=0.01)
    for theta, row in zip(particles.theta, x_o, strict=True):
        exact = problem.exact_posterior(row, particles.beta)
        z = (theta.mean(0) - exact.mean) / exact.stddev
        assert z.abs().max() < 0.35
        torch.testing.assert_close(theta.std(0), exact.stddev, rtol=0.3, atol=0)
        wrong = problem.exact_posterior(row, 4 * particles.beta)  # control
        assert (theta.std(0) / wrong.stddev).mean() > 1.6


def test_effective_fraction_is_that_of_prior_draws():
    found = calibrate("isotropic", "ess", ess_fraction=0.05)
    problem = ISOTROPIC
    theta = problem.prior.sample((20_000,))
    fractions = []
    for x_o in problem.observations(200):
        log_weights = -found.beta * problem.expected_cost(theta, x_o[None])
        weights = log_weights.softmax(dim=0)
        fractions.append(1 / weights.square().sum() / len(theta))
    assert torch.stack(fractions).median().item() == pytest.approx(0.05, rel=0.3)


@pytest.mark.parametrize("name", EXACT)
def test_predictive_rule_finds_the_closed_form(name):
    problem = EXACT[name][0]
    found = calibrate(name, "predictive", tolerance=0.1)

    def excess(beta):
        a, v = 2 * beta / problem.dim_theta, problem.noise_variance
        return (1 / (1 + a) + (1 + v) / (1 + a) ** 2) / (2 + v)

    # over 10 seeds .093 to .099 in two dimensions, .095 to .098 in ten
    assert excess(found.beta) == pytest.approx(0.1, rel=0.1)
    assert excess(1.5 * found.beta) != pytest.approx(0.1, rel=0.1)  # control


# rules without a solution


class ConstantCost(ExactCost):
    """A cost that theta does not change."""

    def cost(self, encoded, embedded):
        return 0.3 + 0 * super().cost(encoded, embedded)


class ReversedCost(ExactCost):
    """A cost that is largest where it should be least."""

    def cost(self, encoded, embedded):
        return -super().cost(encoded, embedded)


def no_solution(cost, x_shift, method, **options):
    """Calibrate on simulations whose x is moved; return the reason and the result."""
    theta = ISOTROPIC.prior.sample((100,))
    x = ISOTROPIC(theta) if x_shift is None else theta + x_shift
    with pytest.warns(ModelWarning, match="no solution") as caught:
        found = calibrate_beta(
            cost, ISOTROPIC.prior, theta, x, method, num_particles=40, **options
        )
    assert not found.solved and math.isnan(found.stderr)
    assert caught[0].filename == __file__  # in the name of the caller
    return str(caught[0].message), found


@pytest.mark.parametrize(
    ("cost", "x_shift", "method", "options", "reason"),
    [
        (ExactCost, 0.0, "ml", {}, "nearly deterministic"),
        (ExactCost, 0.0, "coverage", {}, "nearly deterministic"),
        (ReversedCost, None, "ml", {}, "not below those of prior draws"),
        (ReversedCost, None, "coverage", {}, "never rises"),
        (ConstantCost, None, "ml", {}, "learned nothing"),
        (ConstantCost, None, "ess", {}, "prior draws serve every beta"),
        (ExactCost, None, "ess", {"ess_fraction": 0.9999}, "serve no beta"),
        (ConstantCost, None, "predictive", {}, "may not depend on theta"),
        (ExactCost, None, "predictive", {"tolerance": 0.9999}, "that small already"),
    ],
)
def test_rules_without_a_solution_say_why(cost, x_shift, method, options, reason):
    message, found = no_solution(cost(ISOTROPIC), x_shift, method, **options)
    assert reason in message
    at_top = method != "predictive" and ("deterministic" in reason or "every" in reason)
    top = -3 if method == "ess" else -1  # Z at twice beta is known up to there
    assert found.beta == found.betas[top if at_top else 0].item()


def test_shuffled_simulations_have_no_coverage():
    theta = ISOTROPIC.prior.sample((200,))
    x = ISOTROPIC(theta).roll(1, dims=0)
    with pytest.warns(ModelWarning, match="no solution") as caught:
        calibrate_beta(ExactCost(ISOTROPIC), ISOTROPIC.prior, theta, x, "coverage")
    assert "never rises" in str(caught[0].message)


def test_the_last_rungs_are_no_solution_of_ess():
    betas = torch.logspace(0, 1, 8, dtype=torch.float64)
    ladder = {"log_z": -betas.float().unsqueeze(1) * torch.ones(8, 3)}
    values = condition_of("ess", ladder, {"ess_fraction": 0.01})
    assert len(values) == 6  # Z at twice beta is not known on the last two
    assert solve("ess", betas, values).failure


def test_one_level_of_coverage_and_the_curves():
    found = calibrate("isotropic", "coverage", level=0.9)
    assert found.beta == pytest.approx(4.0, rel=0.5)
    assert found.coverage.max() > 0.9 > found.coverage[-1]
    assert (found.predictive_cost.diff() < 0.02).all()


def test_trained_trainer_defaults_to_ml():
    theta = ISOTROPIC.prior.sample((2000,))
    trainer = AmortizedCostEstimator(ISOTROPIC.prior, show_progress_bars=False)
    trainer.append_simulations(theta, ISOTROPIC(theta))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(max_num_epochs=4, validation_fraction=0.2)
    calibration = trainer.calibrate_beta("ml")
    assert calibration.stderr < 0.15
    assert calibration.beta == pytest.approx(4.0, rel=0.2)
    posterior = trainer.build_posterior()
    assert posterior.beta == calibration.beta
    assert f"beta={calibration.beta:.4g}" in repr(posterior)
    assert trainer.calibrate_beta("ml") is calibration


def test_hopeless_calibrations_warn_and_bad_options_raise():
    problem = ISOTROPIC
    theta = problem.prior.sample((100,))
    shuffled = problem(theta).roll(1, dims=0)
    with pytest.warns(ModelWarning, match="no solution"):
        calibrate_beta(ExactCost(problem), problem.prior, theta, shuffled + 9, "ml")
    for options in (
        {"method": "map"},
        {"level": 1.5},
        {"level": "high"},
        {"ess_fraction": 0.0},
        {"tolerance": -1.0},
        {"num_observations": 2},
        {"num_particles": 2},
    ):
        options = {"method": "ml", **options}
        few = 3 if "num_observations" in options else 100
        with pytest.raises(InvalidInputError):
            calibrate_beta(
                ExactCost(problem),
                problem.prior,
                theta[:few],
                shuffled[:few],
                **options,
            )
    assert math.isfinite(calibrate("isotropic", "ml").stderr)
