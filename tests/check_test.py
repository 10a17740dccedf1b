"""`check_score`: it sees every defect, names it, and leaves right scores alone."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Dirichlet,
    Exponential,
    Gamma,
    HalfCauchy,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    StudentT,
    Uniform,
)

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.check import check_score

BOX = BoxUniform(torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 1.0]))
NORMAL = MultivariateNormal(
    torch.tensor([3.0, 0.0, 0.0]),
    scale_tril=torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.2, 0.1, 2.0]]),
)
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [-0.4, 1.0, 0.3], [0.2, 0.0, -0.8], [1, 1, 1]])
FIELD = BoxUniform(torch.tensor([-1.0, -0.8]), torch.tensor([1.0, 0.8]))


def location_scale(num_simulations):
    """x in R^5, iid N(mu, exp(2 eta)), theta = (mu, eta)."""
    theta = BOX.sample((num_simulations,))
    noise, sigma = torch.randn(num_simulations, 5), theta[:, 1:].exp()
    score = torch.stack([(noise / sigma).sum(1), (noise**2 - 1).sum(1)], 1)
    return theta, theta[:, :1] + sigma * noise, score, BOX


def linear_gaussian(num_simulations):
    """X in R^4, N(A theta, .7^2), under a correlated normal prior."""
    theta, noise = NORMAL.sample((num_simulations,)), torch.randn(num_simulations, 4)
    return theta, theta @ MATRIX.T + 0.7 * noise, noise @ MATRIX / 0.7, NORMAL


def field(num_simulations):
    """8 x 8 images of autoregressive rows: theta = (log amplitude, coefficient)."""
    theta = FIELD.sample((num_simulations,))
    noise = torch.randn(num_simulations, 8, 8)
    columns = [noise[:, :, 0]]
    for step in range(1, 8):
        columns.append(theta[:, 1:] * columns[-1] + noise[:, :, step])
    u = torch.stack(columns, 2)
    score_amplitude = noise.square().sum((1, 2)) - 64
    score_coefficient = (noise[:, :, 1:] * u[:, :, :-1]).sum((1, 2))
    x = theta[:, 0].exp()[:, None, None] * u
    return theta, x, torch.stack([score_amplitude, score_coefficient], 1), FIELD


SIMULATORS = {f.__name__: f for f in (location_scale, linear_gaussian, field)}


def swap(score):
    return score[:, [1, 0, *range(2, score.shape[1])]]


def flip_last(score):
    return torch.cat([score[:, :-1], -score[:, -1:]], 1)


# Each with what the cause must say.
DEFECTS = {
    "sign": (lambda score: -score, "the sign is flipped"),
    "one sign": (flip_last, "the sign is flipped"),
    "half": (lambda score: score / 2, "scaled by about 0."),
    "shuffled": (lambda score: score[torch.randperm(len(score))], "not aligned"),
    "shifted": (lambda score: score.roll(1, 0), "not aligned"),
    "swapped": (swap, "columns 0 and 1 are swapped"),
}


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("name", SIMULATORS)
def test_right_and_noisy_scores_pass(name, noise):
    """No more than 1 alarm in 100 seeds at 500 simulations.

    Recorded: 0 in each case, largest |z| 3.69 under a threshold of 3.97 (location
    scale, field) or 4.07. On other seeds 21 alarms in 12,000 checks, at 100 to 2000
    simulations, where the level promises 24.
    """
    alarms = 0
    for seed in range(100):
        torch.manual_seed(seed)
        theta, x, score, prior = SIMULATORS[name](500)
        score = score + noise * score.std(0) * torch.randn_like(score)
        check = check_score(theta, x, score, prior)
        alarms += not check.passed
    assert alarms <= 1


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("name", SIMULATORS)
def test_defects_are_flagged_and_named(name, defect):
    """10 seeds at 500 simulations, thresholds 3.97 and 4.07.

    Recorded, smallest of the largest |z|: sign 17.1, one sign 13.5, half 5.6,
    shuffled 7.3, shifted 6.8, swapped 5.0. Named rightly in 179 of 180 cases.
    """
    spoil, cause = DEFECTS[defect]
    named = 0
    for seed in range(10):
        torch.manual_seed(seed)
        theta, x, score, prior = SIMULATORS[name](500)
        check = check_score(theta, x, spoil(score), prior)
        assert not check.passed and check.cause is not None
        named += cause in check.cause
    assert named >= 8


@pytest.mark.parametrize("name", ["location_scale", "field"])
def test_another_parametrisation_is_flagged_and_named(name):
    """The derivative by exp(theta_k): 10 seeds at 2000 simulations, threshold 3.94.

    Recorded, smallest of the largest |z|: 6.4 and 6.3; named rightly in 20 of 20.
    """
    column, named = (1 if name == "location_scale" else 0), 0
    for seed in range(10):
        torch.manual_seed(seed)
        theta, x, score, prior = SIMULATORS[name](2000)
        score[:, column] /= theta[:, column].exp()
        check = check_score(theta, x, score, prior)
        assert not check.passed and check.component == column
        named += f"exp(theta), not theta (component {column})" in str(check.cause)
    assert named >= 9


def test_the_score_of_the_posterior_is_flagged_and_named():
    theta, x, score, prior = linear_gaussian(2000)
    gradient = -(theta - prior.mean) @ prior.precision_matrix
    check = check_score(theta, x, score + gradient, prior)
    assert not check.passed and "log prior" in str(check.cause)


PRIORS = {
    "box": BOX,
    "uniform": Independent(Uniform(torch.zeros(2), 3 * torch.ones(2)), 1),
    "gamma": Independent(Gamma(torch.tensor([0.5, 3.0]), torch.ones(2)), 1),
    "cauchy": Independent(Cauchy(torch.zeros(2), torch.ones(2)), 1),
    "half-cauchy": Independent(HalfCauchy(torch.ones(2)), 1),
    "mixture": MixtureSameFamily(
        Categorical(torch.ones(2)),
        MultivariateNormal(torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), torch.eye(2)),
    ),
    "double": MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()),
    "independent": MultipleIndependent(
        [
            Gamma(torch.tensor([2.0]), torch.ones(1)),
            Uniform(torch.zeros(1), 3 * torch.ones(1)),
            MultivariateNormal(torch.zeros(2), torch.eye(2)),
            Beta(torch.tensor([0.5]), torch.ones(1)),
        ],
        validate_args=False,
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_of_every_support(name):
    """10 seeds each, 1000 simulations: no alarm, and all flipped signs are seen."""
    for seed in range(10):
        torch.manual_seed(seed)
        theta = PRIORS[name].sample((1000,))
        noise = torch.randn_like(theta)
        right = check_score(theta, theta + noise, noise, PRIORS[name])
        assert right.passed and not right.notes
        wrong = check_score(theta, theta + noise, -noise, PRIORS[name])
        assert not wrong.passed


@pytest.mark.parametrize("kind", ["noise", "x", "skew"])
def test_heavy_and_skew_tails_do_not_alarm(kind):
    """0 alarms in each 50: infinite variance, Cauchy x, exponential x."""
    alarms = 0
    for seed in range(50):
        torch.manual_seed(seed)
        theta = PRIORS["double"].sample((500,))
        x, score = {
            "noise": lambda t: (lambda e: (t + e, e + StudentT(1.5).sample(e.shape)))(
                torch.randn_like(t)
            ),
            "x": lambda t: (lambda e: (t + e, 2 * e / (1 + e * e)))(
                StudentT(1.0).sample(t.shape)
            ),
            "skew": lambda t: (lambda e: (e * (-t).exp(), 1 - e))(
                Exponential(1.0).sample(t.shape)
            ),
        }[kind](theta)
        alarms += not check_score(theta, x, score, PRIORS["double"]).passed
    assert alarms <= 1


def test_unknown_components_and_failed_simulations_are_left_out():
    theta, x, score, prior = location_scale(2000)
    x[x[:, 0] > 1] = torch.nan  # Selection by x is allowed.
    score[::3, 0] = torch.nan
    check = check_score(theta, x, score, prior)
    assert check.passed and not check.notes and check.num_rows < 2000
    assert not check_score(theta, x, -score, prior).passed
    score[:, 0] = torch.nan
    check = check_score(theta, x, -score, prior)
    assert check.component == 1 and "components 0" in str(check)
    assert check.z[:, 0].isnan().all() and not check.passed


class NoSupport:
    def log_prob(self, theta):
        return theta.sum(1)


class NoGradient(NoSupport):
    support = BOX.support

    def log_prob(self, theta):
        return theta.detach().sum(1)


@pytest.mark.parametrize(
    ("prior", "scale", "num_simulations", "note"),
    [
        (None, 1.0, 1000, "no prior"),
        (BOX, 1.0, 49, "49 usable simulations"),
        (BOX, 2.0, 1000, "outside the prior's support"),
        (BOX, 0.3, 1000, "not look like draws"),
        (NoSupport(), 1.0, 1000, "no use of the prior"),
        (NoGradient(), 1.0, 1000, "no gradient"),
        (Dirichlet(torch.ones(2)), 1.0, 1000, "no use of the prior"),
    ],
)
def test_what_cannot_be_tested_passes_with_a_note(prior, scale, num_simulations, note):
    theta, x, score, _ = location_scale(num_simulations)
    check = check_score(scale * theta, x, -score, prior)
    assert check.passed and check.component is None and check.cause is None
    assert note in check.notes[0] and note in str(check)
    assert check.theta_fits_prior == (scale == 1.0)


def test_constant_theta_x_and_score():
    theta, x, score, prior = location_scale(500)
    assert check_score(theta, torch.ones(500, 3), 0 * score, prior).passed
    assert not check_score(theta, x, 0 * score, prior).passed
    constant = torch.cat([theta[:, :1], torch.zeros(500, 1)], 1)
    check = check_score(constant, x, score, prior)
    assert "components 1" in check.notes[0] and check.z[:, 1].isnan().all()


def test_it_draws_no_random_numbers_and_repeats_itself():
    theta, x, score, prior = field(500)
    state = torch.get_rng_state()
    first = check_score(theta, x, score, prior)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.z, check_score(theta, x, score, prior).z)


def test_shapes_that_do_not_fit_are_refused():
    theta, x, score, prior = location_scale(100)
    for wrong in [(theta, x[1:], score), (theta, x, score[:, :1]), (theta[0], x, x)]:
        with pytest.raises(InvalidInputError, match="num_simulations"):
            check_score(*wrong, prior)


def test_it_can_be_read_and_drawn():
    theta, x, score, prior = location_scale(500)
    check = check_score(theta, x, -score, prior)
    assert "FAILED" in str(check) and "sign is flipped (components 0, 1)" in str(check)
    figure, axes = check.plot()
    assert len(axes.texts) == check.z.numel() == 2 * len(check.names)
    plt.close(figure)
    figure, _ = check_score(theta, x, score, None).plot()  # Nothing tested.
    plt.close(figure)
