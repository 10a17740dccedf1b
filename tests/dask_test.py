"""Simulations with scores on Dask workers: the result of one worker."""

import joblib
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_scoreaug import simulate_with_score
from sbi_scoreaug.simulators import SISPopulation

distributed = pytest.importorskip("distributed")
PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["one process", "two processes"],
)
def client(request):
    """A scheduler and two workers on this machine, in this process or in two others.

    Two processes have to import torch and sbi first: half a minute of computing.
    """
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=request.param,
        dashboard_address=None,
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


class NoisyPair:
    """x = theta + noise from torch, and the process that simulated it."""

    def __call__(self, theta):
        noise = torch.randn_like(theta)
        return theta + noise, noise


@pytest.mark.parametrize("simulator", [NoisyPair(), SISPopulation(observe="path")])
def test_two_dask_workers_give_the_result_of_one_worker(client, simulator):
    prior = getattr(simulator, "prior", PRIOR)
    options = {
        "num_simulations": 12,
        "simulation_batch_size": 3,
        "seed": 5,
        "show_progress_bar": False,
    }
    alone = simulate_with_score(simulator, prior, num_workers=1, **options)
    with joblib.parallel_config(backend="dask"):
        together = simulate_with_score(simulator, prior, num_workers=2, **options)
    assert len(client.scheduler_info()["workers"]) == 2
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one, two)
    assert together[0].shape == together[2].shape == (12, 2)
