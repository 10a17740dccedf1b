"""Adam in one call: the same step, and only where the host's need not be repeated."""

import pytest
import torch
from registry import DROP_INS, new_drop_in, simulations, train

from sbi_scoreaug.fused import fuse_step


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in [(4, 3), (3,), ()]]


def take_steps(optimizer, num_steps):
    for step in range(num_steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def fused(optimizer):
    return [group["fused"] for group in optimizer.param_groups]


def test_the_fused_step_is_the_step():
    left, right = parameters(), parameters()
    plain, fast = (torch.optim.Adam(p, lr=0.01) for p in (left, right))
    fuse_step(fast)
    assert fused(fast) == [True]
    for optimizer in (plain, fast):
        take_steps(optimizer, 100)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_an_optimiser_that_has_stepped_is_left_alone():
    adam = torch.optim.Adam(parameters())
    take_steps(adam, 1)
    fuse_step(adam)
    assert fused(adam) == [None]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_other_optimisers_are_left_alone(make):
    optimizer = make(parameters(), lr=0.01)
    fuse_step(optimizer)
    assert fused(optimizer) == [None]


def test_a_torch_without_the_fused_step_is_no_obstacle(monkeypatch):
    adam = torch.optim.Adam(parameters())

    def refuse(self, params, fused):
        raise RuntimeError("`fused=True` requires all the params to be on CUDA")

    monkeypatch.setattr(torch.optim.Adam, "__init__", refuse)
    fuse_step(adam)
    assert fused(adam) == [None]


@pytest.mark.parametrize("name", [n for n in DROP_INS if n != "ACE"])
def test_only_a_training_with_scores_or_averages_is_fused(name):
    theta, x, score = simulations(60)
    for scores, expected in (({}, None), ({"score": score}, True)):
        trainer = new_drop_in(name).append_simulations(theta, x, **scores)
        train(trainer, max_num_epochs=1)
        # `ScoreNPE` averages weights and is never the host bit for bit.
        assert fused(trainer.optimizer) == [True if name == "NPSE" else expected]
