"""Distances, pairs, networks, potential and target range, one by one."""

import copy
import math
import pickle

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_scoreaug.amortized_cost import (
    DISTANCES,
    CallableDistance,
    CostBasedPotential,
    CostNetBuilder,
    MMDDistance,
    TargetRange,
    resolve_distance,
)
from sbi_scoreaug.amortized_cost.distance_checks import check_distance, is_valid
from sbi_scoreaug.amortized_cost.pairs import TargetPool
from sbi_scoreaug.amortized_cost.penalized_cost import PenalizedCost
from sbi_scoreaug.errors import InvalidInputError, InvalidTypeError
from sbi_scoreaug.simulators import GaussianMixtureTrials, TwoMoons

every_distance = pytest.mark.parametrize("name", DISTANCES)


def l1(x, x_t):
    """A user's distance."""
    return (x - x_t).flatten(1).abs().sum(1)


def simulations(distance, num=40):
    shape = (num, 4, 3) if distance.on_sets else (num, 3)
    scale = torch.tensor([0.5, 1.0, 3.0])
    return scale * torch.randn(shape)


# distances


@every_distance
def test_distance_keeps_its_promises(name):
    distance = resolve_distance(name)
    x = simulations(distance)
    assert distance.fit(x) is distance
    x_t = x.flip(0).requires_grad_()
    value = distance(x, x_t)
    assert value.shape == (40,)
    assert (value >= distance.lower_bound).all()
    torch.testing.assert_close(distance(x_t, x), value)  # symmetric
    value.sum().backward()
    assert distance.differentiable and x_t.grad.abs().sum() > 0
    features = distance.features(x)
    if features is not None:
        expected = (features - distance.features(x_t)).square().mean(1)
        torch.testing.assert_close(value, expected)
    check_distance(distance, x)
    twin = pickle.loads(pickle.dumps(distance))
    assert torch.equal(twin(x, x_t), copy.deepcopy(distance)(x, x_t))


@every_distance
def test_scale_is_frozen_by_fit(name):
    distance = resolve_distance(name)
    x = simulations(distance)
    before = distance.fit(x)(x, x.flip(0))
    assert torch.equal(distance(x, x.flip(0)), before)
    distance.fit(7 * x)
    ratio = distance(7 * x, 7 * x.flip(0)) / before
    invariant = {"huber", "mahalanobis", "mmd"}
    expected = {"mse": 49.0, "mae": 7.0, "euclidean": 7.0, "energy": 7.0}
    target = 1.0 if name in invariant else expected[name]
    torch.testing.assert_close(ratio, torch.full_like(ratio, target), rtol=2e-3, atol=0)


def test_closed_forms():
    x, x_t = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0, 7.0]])
    values = {"mse": 20 / 3, "mae": 2.0, "euclidean": 20**0.5}
    for name, expected in values.items():
        assert resolve_distance(name)(x, x_t).item() == pytest.approx(expected)
    problem = GaussianMixtureTrials()
    x = problem(problem.prior.sample((50,)))
    found = MMDDistance(problem.bandwidth)(x, x.flip(0))
    torch.testing.assert_close(found, problem.distance(x, x.flip(0)))


@pytest.mark.parametrize("name", ["mmd", "energy"])
def test_missing_trials_are_left_out(name):
    distance = resolve_distance(name)
    x, x_t = torch.randn(10, 4, 3), torch.randn(10, 6, 3)
    distance.fit(x)
    gap = torch.full((10, 2, 3), math.nan)
    padded = torch.cat([x, gap], dim=1)
    torch.testing.assert_close(distance(padded, x_t), distance(x, x_t))
    assert is_valid(distance, padded).all()
    assert not is_valid(distance, padded[:, 3:]).any()  # one trial is no set
    padded[0, 0, 0] = math.nan
    assert is_valid(distance, padded).tolist() == [False] + 9 * [True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, x_t: (x - x_t).abs(), "shape"),
        (lambda x, x_t: (x - x_t).abs().mean(), "shape"),
        (lambda x, x_t: (x - x_t).sum(1) * math.nan, "finite"),
        (lambda x, x_t: (x - x_t).abs().sum(1) / x.std(), "that row alone"),
        (lambda x, x_t: (x - x_t).abs().sum(1).cumsum(0), "that row alone"),
    ],
)
def test_wrong_distances_are_refused(wrong, message):
    with pytest.raises(InvalidInputError, match=message):
        check_distance(resolve_distance(wrong), torch.randn(10, 3))


def test_bad_distances_raise_typed_errors():
    with pytest.raises(InvalidInputError, match="'mse'"):
        resolve_distance("mean")
    for value in (3, None, torch.nn.MSELoss):
        with pytest.raises(InvalidTypeError, match="distance"):
            resolve_distance(value)
    with pytest.raises(InvalidInputError, match="bandwidth"):
        MMDDistance(-1.0)
    with pytest.raises(InvalidTypeError, match="floating"):
        check_distance(resolve_distance(lambda x, x_t: [1.0]), torch.randn(10, 3))
    negative = CallableDistance(lambda x, x_t: -l1(x, x_t), lower_bound=0.0)
    with pytest.raises(InvalidInputError, match="lower bound"):
        check_distance(negative, torch.randn(10, 3))
    with pytest.raises(InvalidTypeError, match="pickled"):
        pickle.dumps(resolve_distance(lambda x, x_t: l1(x, x_t)))
    assert pickle.loads(pickle.dumps(resolve_distance(l1))).function is l1


# pairs


def test_pairs_are_fresh_uniform_and_never_self_pairs():
    x = torch.arange(10.0).unsqueeze(1)
    pool = TargetPool(x, torch.arange(10), x[:0], 0.0, 2.0)
    index = torch.arange(10).repeat_interleave(200)
    targets = pool.draw(index, 20)[..., 0]
    assert not (targets == index.unsqueeze(1)).any()
    counts = torch.stack([(targets[index == 4] == j).sum() for j in range(10)])
    assert counts[4] == 0
    assert counts[counts > 0].min() > 330  # of 444 on average; over 10 seeds 397
    assert not torch.equal(pool.draw(index, 20)[..., 0], targets)
    held_out = TargetPool(x[:5], torch.arange(5), x[:0], 0.0, 2.0)
    assert held_out.draw(torch.tensor([7, 8]), 300).unique().tolist() == list(range(5))


def test_widened_and_appended_targets():
    x = torch.randn(1000, 2) * torch.tensor([1.0, 10.0])
    index = torch.arange(1000)
    wide = TargetPool(x, index, x[:0], 1.0, 2.0).draw(index, 10).flatten(0, 1)
    expected = x.std(0) * 5**0.5
    torch.testing.assert_close(wide.std(0), expected, rtol=0.1, atol=0)
    own = torch.full((1, 2), 99.0)
    targets = TargetPool(x, index, own, 0.0, 2.0).draw(index, 10)
    share = (targets == 99).all(-1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    sets = torch.zeros(50, 4, 2) + torch.randn(50, 1, 2)
    pool = TargetPool(sets, torch.arange(50), sets[:0], 1.0, 2.0, on_sets=True)
    moved = pool.draw(torch.arange(50), 3)
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved))
    generator = torch.Generator().manual_seed(1)
    first = pool.draw(torch.arange(50), 3, generator)
    generator.manual_seed(1)
    assert torch.equal(pool.draw(torch.arange(50), 3, generator), first)


# networks and potential

NETS = [
    ("quadratic", "mse"),
    ("quadratic", "mahalanobis"),
    ("particles", "mae"),
    ("particles", "euclidean"),
    ("particles", "mmd"),
    ("particles", "energy"),
    ("net", "huber"),
    ("net", "mmd"),
]
every_net = pytest.mark.parametrize(("cost_net", "name"), NETS)


def build(cost_net, name):
    distance = resolve_distance(name)
    x = simulations(distance)
    theta = torch.rand(len(x), 2)
    return CostNetBuilder(cost_net)(theta, x, distance.fit(x)), theta, x


@every_net
def test_network_shapes_gradients_and_units(cost_net, name):
    net, theta, x = build(cost_net, name)
    theta.requires_grad_()
    cost = net(theta, x)
    assert cost.shape == (40,)
    cost.sum().backward()
    assert theta.grad.isfinite().all()
    table = net.cost(net.encode(theta), net.embed(x[:7]).unsqueeze(0))
    assert table.shape == (40, 7)
    torch.testing.assert_close(table[:7].diagonal(), cost[:7])
    loss = net.loss(
        x[:, None],
        theta,
        x=x.flip(0),
        distances=net.distance(x.flip(0), x)[:, None]
        if hasattr(net, "distance")
        else cost.detach()[:, None],
    )
    assert loss.shape == (40,)
    assert pickle.loads(pickle.dumps(net))(theta, x).equal(cost)


@every_net
def test_potential(cost_net, name):
    net, theta, x = build(cost_net, name)
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    potential = CostBasedPotential(net, prior, x[:3], beta=2.0)
    summed = potential(theta)
    expected = sum(-2 * net(theta, x_j.expand_as(x)) for x_j in x[:3]) + prior.log_prob(
        theta
    )
    torch.testing.assert_close(summed, expected, rtol=1e-4, atol=1e-4)
    assert summed.requires_grad  # through the network; and through theta:
    inside = theta.clone().requires_grad_()
    potential(inside).sum().backward()
    assert inside.grad.abs().sum() > 0
    assert not potential(theta, track_gradients=False).requires_grad
    assert (potential(theta + 1) == -math.inf).all()
    potential.beta = 4.0
    torch.testing.assert_close(
        potential(theta) - prior.log_prob(theta), 2 * (summed - prior.log_prob(theta))
    )
    for twin in (copy.deepcopy(potential), pickle.loads(pickle.dumps(potential))):
        assert twin.beta == 4.0
        assert torch.equal(twin(theta), potential(theta))
    assert potential.to("cpu") is potential
    potential.set_x(x, x_is_iid=False)
    paired = -4 * net(theta, x) + prior.log_prob(theta)
    torch.testing.assert_close(potential(theta), paired, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="as many rows"):
        potential(theta[:5])


@pytest.mark.parametrize(("cost_net", "name"), NETS + [("net", "mse")])
def test_failure_is_as_far_as_the_farthest_simulation(cost_net, name):
    valid, theta, x = build(cost_net, name)
    distance = resolve_distance(name).fit(x)
    failed = torch.arange(len(x)) % 2 == 0
    net = PenalizedCost(valid, failed, distance, x)
    far = torch.cat([x[:3], x[:3] + 50])
    table = torch.stack([distance(x, y.expand_as(x)) for y in far])
    torch.testing.assert_close(net.penalty(far), table.max(1).values)
    torch.nn.init.zeros_(net.classifier.straight.bias)  # p = 1/2 everywhere
    expected = (valid(theta[:6], far) + net.penalty(far)) / 2
    torch.testing.assert_close(net(theta[:6], far), expected)
    assert not torch.allclose(valid(theta[:6], far), expected)  # control
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(theta[:6], far), net(theta[:6], far))
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    potential = CostBasedPotential(net, prior, far, beta=2.0)  # six iid observations
    theta.requires_grad_()
    potential(theta).sum().backward()
    assert theta.grad.isfinite().all() and theta.grad.abs().sum() > 0
    if name in ("mmd", "energy"):
        potential.set_x(torch.randn(1, 9, 3))  # more trials than in training
        assert potential(theta).shape == (40,)


def test_potential_takes_sets_of_any_number_of_trials():
    net, theta, x = build("particles", "mmd")
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    potential = CostBasedPotential(net, prior, beta=1.0)
    for x_o in (x[:1], x[0], torch.randn(1, 9, 3), torch.randn(6, 3)):
        potential.set_x(x_o)
        assert potential(theta).shape == (40,)


def test_potential_refuses_bad_input():
    net, _, x = build("quadratic", "mse")
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    for beta in (0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="beta"):
            CostBasedPotential(net, prior, beta=beta)
    with pytest.raises(InvalidTypeError, match="beta"):
        CostBasedPotential(net, prior, beta="high")
    potential = CostBasedPotential(net, prior, x[:1], beta=1.0)
    with pytest.raises(InvalidInputError, match="beta"):
        potential.beta = -2
    for x_o in (x[:, :2], x[None], x[:0]):
        with pytest.raises(InvalidInputError, match="x_o"):
            potential.set_x(x_o)
    with pytest.raises(InvalidInputError, match="finite"):
        potential.set_x(x[:1] * math.nan)
    assert torch.equal(potential.x_o, x[:1])


def test_builder_chooses_by_distance():
    points, sets = torch.randn(9, 3), torch.randn(9, 4, 3)
    chosen = {
        name: CostNetBuilder().choose(
            sets if d().on_sets else points, d().fit(sets if d().on_sets else points)
        )
        for name, d in DISTANCES.items()
    }
    assert chosen["mse"] == chosen["mahalanobis"] == "quadratic"
    assert {chosen[n] for n in ("mae", "huber", "euclidean", "mmd", "energy")} == {
        "particles"
    }
    assert CostNetBuilder().choose(points, resolve_distance(l1)) == "net"
    with pytest.raises(InvalidInputError, match="cost_net"):
        CostNetBuilder("maf")
    with pytest.raises(InvalidInputError, match="'particles' or 'net'"):
        build("quadratic", "mae")
    with pytest.raises(InvalidInputError, match="Use 'net'"):
        CostNetBuilder("particles")(torch.rand(9, 2), points, resolve_distance(l1))


# target range


@pytest.mark.parametrize("num_simulations", [200, 1000])
@pytest.mark.parametrize("problem", [TwoMoons(), GaussianMixtureTrials()])
def test_at_most_two_percent_false_alarms(problem, num_simulations):
    x = problem(problem.prior.sample((num_simulations,)))
    known = TargetRange(x, on_sets=x.ndim == 3)
    fresh = problem(problem.prior.sample((4000,)))
    # over 10 seeds at most .016; the control at least .63
    assert (~known.is_familiar(fresh)).float().mean() < 0.025
    bad = problem.observations(300, misspecified=True)
    assert (~known.is_familiar(bad)).float().mean() > 0.3


def test_unusual_features_are_named():
    x = torch.randn(500, 4)
    x[:, 3] = x[:, 2] + 0.01 * torch.randn(500)
    known = TargetRange(x)
    off = torch.tensor([[0.0, 8.0, 0.0, 0.0]])
    assert known.unusual_features(off) == [1]
    assert known.describe([1]) == "x[1]"
    correlated = torch.tensor([[0.0, 0.0, 1.5, -1.5]])  # each value is common
    assert not known.is_familiar(correlated)
    assert set(known.unusual_features(correlated)) == {2, 3}
