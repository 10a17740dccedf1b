"""The diagnosis of a network and of an observation, on costs known exactly."""

import pytest
import torch
from amortized_cost_temperature_test import ExactCost
from sbi.utils import BoxUniform
from torch.distributions import MultivariateNormal

from sbi_scoreaug import AmortizedCostEstimator
from sbi_scoreaug.amortized_cost import (
    CostBasedPotential,
    CostNetBuilder,
    resolve_distance,
)
from sbi_scoreaug.amortized_cost.diagnosis import (
    diagnose,
    p_values,
    predictive_costs,
)
from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.simulators import GaussianMixtureTrials, LinearGaussianCost, TwoMoons

PROBLEM = LinearGaussianCost(2, noise_variance=0.25)


class WavyCost(ExactCost):
    """The exact cost plus an error that neighbours share, `amplitude` sin(theta_0)."""

    amplitude = 1.5

    def cost(self, encoded, embedded):
        wave = self.amplitude * encoded[0][:, :1].sin()
        return super().cost(encoded, embedded) + wave


class NoisyCost(ExactCost):
    """The exact cost plus an error that neighbours do not share."""

    def cost(self, encoded, embedded):
        wave = 1.5 * (1e4 * encoded[0][:, :1]).sin()
        return super().cost(encoded, embedded) + wave


def findings(cost, num_simulations=1000, x_o=None, beta=4.0):
    theta = PROBLEM.prior.sample((num_simulations,))
    potential = CostBasedPotential(cost(PROBLEM), PROBLEM.prior, beta=beta)
    x_o = PROBLEM(theta[:1]) if x_o is None else x_o
    distance = resolve_distance("mse")
    return diagnose(potential, distance, theta, PROBLEM(theta), x_o)


def test_largest_beta_is_one_over_the_error():
    # E sin(theta)^2 = (1 - exp(-2)) / 2 under N(0, 1)
    rms = WavyCost.amplitude * (0.5 * (1 - torch.tensor(-2.0).exp())).sqrt()
    wavy, exact = findings(WavyCost), findings(ExactCost)
    # over 10 seeds .92 to 1.05 times that; exact 2.9 to 5.3 times
    assert 0.8 / rms < wavy.largest_beta < 1.2 / rms
    assert exact.largest_beta > 2 / rms  # control: only the resolution is left
    assert "trustworthy up to about" in str(wavy)


def test_the_ceiling_is_a_lower_bound_of_what_can_be_reached():
    exact, wavy, noisy = map(findings, (ExactCost, WavyCost, NoisyCost))
    # exactly: 1 - E Var(d | theta, x_t) / Var d
    theta, x_t = PROBLEM.prior.sample((2, 20_000))
    x_t = PROBLEM(x_t)
    draws = torch.stack([PROBLEM.distance(PROBLEM(theta), x_t) for _ in range(8)])
    reachable = 1 - float(draws.var(0).mean() / draws.var())
    # over 10 seeds all within .04 of it, R^2 of the others at most .69
    assert exact.r_squared == pytest.approx(reachable, abs=0.05)
    assert exact.r_squared_ceiling == pytest.approx(reachable, abs=0.05)
    assert wavy.r_squared < reachable - 0.08
    assert wavy.r_squared_ceiling == pytest.approx(reachable, abs=0.06)
    assert noisy.r_squared_ceiling < reachable - 0.08  # its error looks like noise


def test_right_observations_are_seldom_flagged_and_wrong_ones_are():
    potential = CostBasedPotential(ExactCost(PROBLEM), PROBLEM.prior, beta=4.0)
    x = PROBLEM(PROBLEM.prior.sample((600,)))
    costs = predictive_costs(potential, x)
    p = p_values(costs[200:], costs[:200])
    # over 10 seeds .005 to .052, on average .024; p .45 to .56; wrong ones all
    assert (p < 0.02).float().mean() < 0.08
    assert p.mean().item() == pytest.approx(0.5, abs=0.1)
    wrong = PROBLEM.observations(50, misspecified=True)
    flagged = p_values(predictive_costs(potential, wrong), costs[:200]) < 0.02
    assert flagged.float().mean() > 0.8


def test_one_observation_at_a_time():
    good = findings(ExactCost)
    assert good.can_tell and not good.model_is_suspicious and good.familiar
    assert len(good.simulated_costs) == 200
    bad = findings(ExactCost, x_o=torch.tensor([[9.0, -9.0]]))
    assert bad.model_is_suspicious and bad.p_value == pytest.approx(1 / 201)
    assert "probably wrong" in str(bad) and "probably wrong" not in str(good)
    _, axes = bad.plot()
    assert axes.get_title().startswith("p = 0.005")


def test_few_simulations_cannot_tell_and_say_so():
    few = findings(ExactCost, num_simulations=30, x_o=torch.tensor([[9.0, -9.0]]))
    assert not few.can_tell and not few.model_is_suspicious
    assert "too few to tell" in str(few)
    assert findings(ExactCost, num_simulations=50).can_tell  # control
    with pytest.raises(InvalidInputError, match="at least 10 held-out"):
        findings(ExactCost, num_simulations=9)


def test_sets_of_more_and_fewer_trials():
    problem = GaussianMixtureTrials()
    theta = problem.prior.sample((12,))
    x = problem(theta)
    distance = resolve_distance("mmd").fit(x)
    net = CostNetBuilder("particles")(theta, x, distance)
    potential = CostBasedPotential(net, problem.prior, beta=1.0)
    for x_o in (x[:1], x[:1, :3], torch.cat([x[:1], x[:1] + 0.1], dim=1)):
        found = diagnose(potential, distance, theta, x, x_o)
        assert found.simulated_costs.isfinite().all() and found.predictive_cost > -2


def test_trainer_diagnoses_with_fresh_simulations_and_another_prior():
    problem = TwoMoons()
    theta = problem.prior.sample((200,))
    trainer = AmortizedCostEstimator(problem.prior, show_progress_bars=False)
    trainer.append_simulations(theta, problem(theta))
    trainer.train(max_num_epochs=1)
    fresh = problem.prior.sample((60,))
    x_o = problem(fresh[:1])
    assert not trainer.diagnose(x_o, 2.0).can_tell  # 20 validation rows
    found = trainer.diagnose(x_o, 2.0, theta=fresh, x=problem(fresh))
    assert found.can_tell and len(found.simulated_costs) == 60
    half = BoxUniform(torch.zeros(2), torch.ones(2))
    other = trainer.diagnose(x_o, 2.0, theta=fresh, x=problem(fresh), prior=half)
    assert other.predictive_cost != found.predictive_cost
    for bad in ({"theta": fresh}, {"x": problem(fresh)}):
        with pytest.raises(InvalidInputError, match="both or neither"):
            trainer.diagnose(x_o, 2.0, **bad)
        with pytest.raises(InvalidInputError, match="both or neither"):
            trainer.calibrate_beta(**bad)
    with pytest.raises(InvalidInputError, match="NaN"):
        trainer.calibrate_beta(theta=fresh, x=problem(fresh) * torch.nan)
    with pytest.raises(InvalidInputError, match="x_o"):
        trainer.diagnose(x_o[:, :1])
    with pytest.raises(InvalidInputError, match="one observation"):
        trainer.diagnose(x_o.repeat(2, 1), 2.0)
    unknown = AmortizedCostEstimator(show_progress_bars=False)
    unknown.append_simulations(theta, problem(theta)).train(max_num_epochs=1)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert unknown.diagnose(x_o, 2.0, prior=prior).beta == 2.0
