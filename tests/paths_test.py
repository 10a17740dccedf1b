"""Scores of complete paths against finite differences and closed forms."""

import pytest
import torch

from sbi_scoreaug.errors import InvalidInputError
from sbi_scoreaug.scores.check import check_score
from sbi_scoreaug.scores.paths import (
    diffusion_path_log_prob,
    diffusion_path_score,
    jump_path_log_prob,
    jump_path_score,
)
from sbi_scoreaug.simulators.jump_process import path_log_prob, path_score

POPULATION, DURATION, MAX_EVENTS = 12, 1.5, 60


def sis_rates(theta, infected):
    """Infection and recovery in a population of 12."""
    contacts = infected * (POPULATION - infected) / POPULATION
    infection = theta[..., 0].exp() * contacts
    return torch.stack([infection, theta[..., 1].exp() * infected], dim=-1)


def sis_path(theta, infected=4):
    """One path by Gillespie's algorithm: states, events, durations, padded."""
    states = torch.full((MAX_EVENTS + 1,), float(infected)).double()
    events = torch.full((MAX_EVENTS,), -1)
    durations = torch.zeros(MAX_EVENTS + 1).double()
    clock, state = 0.0, torch.tensor(float(infected)).double()
    for j in range(MAX_EVENTS):
        rates = sis_rates(theta, state)
        waiting = float(torch.empty(1).exponential_() / rates.sum())
        durations[j] = min(waiting, DURATION - clock)
        clock += waiting
        if clock >= DURATION:
            break
        events[j] = int(torch.rand(1) * rates.sum() >= rates[0])
        state = state + 1 - 2 * events[j]
        states[j + 1 :] = state
    assert clock >= DURATION
    return states, events, durations


def sis_paths(num_paths=40):
    torch.manual_seed(1)
    theta = torch.tensor([[0.4, -0.3]]).double() + 0.3 * torch.randn(num_paths, 2)
    paths = [torch.stack(part) for part in zip(*map(sis_path, theta), strict=True)]
    return theta.double(), *paths


def finite_differences(log_prob, theta, step=1e-5):
    columns = []
    for k in range(theta.shape[1]):
        shift = torch.zeros_like(theta[0])
        shift[k] = step
        columns.append((log_prob(theta + shift) - log_prob(theta - shift)) / (2 * step))
    return torch.stack(columns, 1)


def test_the_jump_score_is_the_gradient_of_the_paths_density():
    theta, *path = sis_paths()
    score = jump_path_score(theta, sis_rates, *path)
    numeric = finite_differences(
        lambda t: jump_path_log_prob(t, sis_rates, *path), theta
    )
    assert torch.allclose(score, numeric, rtol=1e-5, atol=1e-6)


def test_it_agrees_with_the_closed_form_of_the_epidemic():
    theta, states, events, durations = sis_paths()
    contacts = states * (POPULATION - states) / POPULATION
    statistics = torch.stack(
        [
            (events == 0).sum(1),
            (events == 1).sum(1),
            (durations * contacts).sum(1),
            (durations * states).sum(1),
        ],
        1,
    ).double()
    found = jump_path_score(theta, sis_rates, states, events, durations)
    assert torch.allclose(found, path_score(theta, statistics))
    density = jump_path_log_prob(theta, sis_rates, states, events, durations)
    constant = density - path_log_prob(theta, statistics)  # of the path alone
    other = jump_path_log_prob(theta + 0.7, sis_rates, states, events, durations)
    assert torch.allclose(constant, other - path_log_prob(theta + 0.7, statistics))


def test_an_extinct_epidemic_keeps_its_score_finite():
    theta = torch.zeros(1, 2).double()
    path = (
        torch.tensor([[1.0, 0.0, 0.0]]).double(),
        torch.tensor([[1, -1]]),
        torch.tensor([[0.3, 0.7, 0.0]]).double(),
    )
    score = jump_path_score(theta, sis_rates, *path)
    contacts = 11 / 12
    assert score[0].tolist() == pytest.approx([-0.3 * contacts, 1 - 0.3])


def drift(theta, z):
    """Mean reversion towards a level, with an interaction of the two coordinates."""
    pull = theta[..., 0:1].exp() * (theta[..., 1:2] - z)
    return pull + theta[..., 2:3] * z.flip(-1).tanh()


def diffusion(z):
    return 0.3 + 0.1 * z.square()


def diffusion_paths(theta, steps):
    z = torch.zeros(len(theta), 2).to(theta)
    path = [z]
    for h in steps:
        a = drift(theta.unsqueeze(1), z.unsqueeze(1)).squeeze(1)
        z = z + a * h + diffusion(z) * h.sqrt() * torch.randn_like(z)
        path.append(z)
    return torch.stack(path, 1)


def test_the_diffusion_score_is_the_gradient_of_the_paths_density():
    theta, steps = torch.randn(10, 3).double(), 0.05 + 0.1 * torch.rand(30).double()
    path = diffusion_paths(theta, steps)
    score = diffusion_path_score(theta, drift, diffusion, path, steps)
    numeric = finite_differences(
        lambda t: diffusion_path_log_prob(t, drift, diffusion, path, steps), theta
    )
    assert torch.allclose(score, numeric, rtol=1e-5, atol=1e-6)


def test_the_diffusion_density_is_the_product_of_its_gaussian_steps():
    theta, steps = torch.randn(4, 3).double(), torch.full((9,), 0.1).double()
    path = diffusion_paths(theta, steps)
    before, after = path[:, :-1], path[:, 1:]

    def gaussian(theta):
        mean = before + drift(theta.unsqueeze(1), before) * 0.1
        step = torch.distributions.Normal(mean, diffusion(before) * 0.1**0.5)
        return step.log_prob(after).sum((1, 2))

    other = theta + torch.randn_like(theta)
    found = [
        diffusion_path_log_prob(t, drift, diffusion, path, 0.1) for t in (theta, other)
    ]
    expected = gaussian(theta) - gaussian(other)
    assert torch.allclose(found[0] - found[1], expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_path_scores_are_joint_scores_of_what_is_seen_of_the_path(sign):
    """x is the end of the path plus noise: the check passes, and fails when flipped."""
    prior = torch.distributions.MultivariateNormal(torch.zeros(3), 0.25 * torch.eye(3))
    theta, steps = prior.sample((2000,)), torch.full((20,), 0.1)
    path = diffusion_paths(theta, steps)
    x = path[:, -1] + 0.1 * torch.randn(2000, 2)
    score = diffusion_path_score(theta, drift, diffusion, path, steps)
    assert check_score(theta, x, sign * score, prior).passed == (sign == 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"events": torch.zeros(1, 3).long()}, "events and durations"),
        ({"durations": torch.ones(1, 2)}, "events and durations"),
        ({"events": torch.tensor([[0, 2]])}, "kinds below 2"),
        ({"rates": lambda t, z: t[..., 0].exp() * z}, "rates: expected"),
    ],
)
def test_jump_paths_that_do_not_fit_are_named(change, word):
    path = {
        "rates": sis_rates,
        "states": torch.ones(1, 3),
        "events": torch.zeros(1, 2).long(),
        "durations": torch.ones(1, 3),
    }
    with pytest.raises(InvalidInputError, match=word):
        jump_path_score(torch.zeros(1, 2), **{**path, **change})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"diffusion": 0.0}, "positive"),
        ({"steps": torch.tensor([0.1, -0.1])}, "positive"),
        ({"steps": torch.full((3,), 0.1)}, "drift and steps"),
        ({"drift": lambda t, z: t[..., 0]}, "drift and steps"),
    ],
)
def test_diffusion_paths_that_do_not_fit_are_named(change, word):
    path = {
        "drift": drift,
        "diffusion": 1.0,
        "path": torch.zeros(1, 3, 2),
        "steps": 0.1,
    }
    with pytest.raises(InvalidInputError, match=word):
        diffusion_path_score(torch.zeros(1, 3), **{**path, **change})
