"""Adam in one call: the same step, and only where the host's need not be repeated."""

import pytest
import torch
from registry import DROP_INS, new_drop_in, simulations, train

from sbi_scoreaug.fused import clipped_steps, fuse_step


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


@pytest.mark.parametrize("max_norm", [0.5, 1e3, None])
def test_clipping_is_that_of_the_host(max_norm):
    left, right = parameters(), parameters()
    plain, ours = (torch.optim.SGD(p, lr=1.0) for p in (left, right))
    for step in range(3):
        for optimizer, own in ((plain, left), (ours, right)):
            torch.manual_seed(step)
            for parameter in own:
                parameter.grad = torch.randn_like(parameter)
            if optimizer is plain:
                if max_norm is not None:
                    torch.nn.utils.clip_grad_norm_(own, max_norm=max_norm)
                plain.step()
                continue
            with clipped_steps(ours, max_norm):
                ours.step()
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)
    assert not ours._optimizer_step_pre_hooks  # gone after each


@pytest.mark.parametrize("name", ["NRE_A", "NPE_C"])
def test_a_training_with_scores_clips_as_it_is_told(name):
    theta, x, score = simulations(60)
    norms = []
    trainer = new_drop_in(name).append_simulations(theta, x, score=score)
    original = trainer._train_epoch

    def train_epoch(*args, **kwargs):
        def note(*_):
            grads = [p.grad.norm() for p in trainer._neural_net.parameters()]
            norms.append(float(torch.stack(grads).norm()))

        handle = trainer.optimizer.register_step_post_hook(note)
        try:
            return original(*args, **kwargs)
        finally:
            handle.remove()

    trainer._train_epoch = train_epoch
    train(trainer, max_num_epochs=1, clip_max_norm=0.01)
    assert norms and max(norms) < 0.0101
    train(trainer, max_num_epochs=2, resume_training=True, clip_max_norm=None)
    assert max(norms) > 0.02
