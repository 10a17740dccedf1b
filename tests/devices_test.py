"""Every tensor follows the trainer's device: the life cycle on CUDA, if there is one.

The data may live elsewhere (`data_device`). Without CUDA the same cycle runs on the
CPU, where a tensor left behind on another device cannot show.
"""

import copy
import pickle
import warnings

import pytest
import torch
from drop_in_test import EPOCH
from registry import DROP_INS, new_drop_in, simulations, train
from sbi.utils import BoxUniform

QUIET = {"show_progress_bars": False}


def life_cycle(name, device, data_device):
    """Append, train, resume, sample, evaluate, copy, pickle, move.

    Returns:
        The potential after and before the move to the CPU.
    """
    theta, x, score = simulations(60)
    prior = BoxUniform(-5 * torch.ones(2), 5 * torch.ones(2), device=device)
    trainer = new_drop_in(name, prior=prior, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(
            theta, x, data_device=data_device, score=score, score_check=False
        )
        estimator = train(trainer, **EPOCH)
        more = {**EPOCH, "max_num_epochs": trainer.epoch + 1}
        train(trainer, **more, resume_training=True)
        devices = {t.device.type for t in estimator.state_dict().values()}
        assert devices == {torch.device(device).type}
        stored = (trainer._theta_roundwise[0], trainer._score_roundwise[0])
        assert {t.device.type for t in stored} == {torch.device(data_device).type}
        own = {"beta": 1.0} if name == "ACE" else {}
        if name not in ("NPE_C", "NPSE"):
            own["mcmc_parameters"] = {"num_chains": 2, "warmup_steps": 2, "thin": 1}
        posterior = trainer.build_posterior(**own)
        x_o = x[:1].to(device)
        samples = posterior.sample((4,), x=x_o, **QUIET)
        assert samples.device.type == torch.device(device).type
        potential = posterior.potential(samples, x=x_o)
        loaded = pickle.loads(pickle.dumps(posterior))
        for other in (copy.deepcopy(posterior), loaded):
            assert torch.allclose(other.potential(samples, x=x_o), potential)
        posterior.to("cpu")
        moved = posterior.potential(samples.cpu(), x=x[:1])
    return moved, potential.cpu()


@pytest.mark.parametrize("name", ["NRE_A", "NPE_C", "NPSE", "ACE"])
def test_the_life_cycle_on_the_cpu(name):
    moved, stayed = life_cycle(name, "cpu", "cpu")
    assert torch.allclose(moved, stayed, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("data_device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", DROP_INS)
def test_the_life_cycle_on_cuda(name, data_device):
    moved, stayed = life_cycle(name, "cuda", data_device)
    # An adaptive ODE solver takes other steps elsewhere.
    assert torch.allclose(moved, stayed, atol=1e-2)
