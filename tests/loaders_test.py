"""Loaders: further columns stay beside their rows, whatever fetches the batch."""

import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from sbi_scoreaug.scores.loaders import (
    BatchDataset,
    CollateHostColumns,
    RepeatSampler,
    rebuild_loader,
)


def host_loader(rows=range(30), num_rows=40, **kwargs):
    theta = torch.arange(float(num_rows)).unsqueeze(1)
    dataset = TensorDataset(theta, theta.repeat(1, 3), torch.ones(num_rows))
    kwargs = {"batch_size": 8, "drop_last": True, **kwargs}
    return DataLoader(dataset, sampler=SubsetRandomSampler(list(rows)), **kwargs)


def own_columns(num_rows=40):
    """A score that encodes its row, and a mask."""
    score = torch.arange(float(num_rows)).unsqueeze(1) + 0.5
    return score, torch.ones(num_rows, 1).bool()


def three_columns(rows):
    theta, x, mask = zip(*rows, strict=True)
    return torch.stack(theta), torch.stack(x), torch.stack(mask)


KWARGS = {
    "default": {},
    "workers": {"num_workers": 0, "pin_memory": False},
    "two workers": {"num_workers": 2},
    "collate_fn": {"collate_fn": three_columns},
    "batch size": {"batch_size": 5},
    "keep last": {"drop_last": False},
    "no shuffle": {"shuffle": False},
    "sampler": {"sampler": list(range(10, 26))},
}


@pytest.mark.parametrize("kwargs", KWARGS.values(), ids=KWARGS)
def test_every_batch_has_five_aligned_columns_of_the_loaders_own_rows(kwargs):
    loader = rebuild_loader(host_loader(**_host(kwargs)), own_columns(), kwargs)
    allowed = set(kwargs.get("sampler", range(30)))
    seen = []
    for theta, x, prior_mask, score, mask in loader:
        assert len(theta) == len(x) == len(prior_mask) == len(score) == len(mask)
        assert torch.equal(theta + 0.5, score)
        assert torch.equal(theta.expand_as(x), x)
        assert mask.all()
        seen += theta.flatten().int().tolist()
    assert set(seen) <= allowed
    assert len(seen) == len(set(seen)) >= len(allowed) - 8


def _host(kwargs):
    """What the host passes to its own loaders of these arguments."""
    return {k: v for k, v in kwargs.items() if k not in ("sampler",)}


def test_a_loader_that_is_rebuilt_twice_keeps_all_columns():
    once = rebuild_loader(host_loader(), own_columns())
    twice = rebuild_loader(once, (), sampler=[3, 1, 2], batch_size=3)
    (batch,) = twice
    assert len(batch) == 5
    assert batch[3].flatten().tolist() == [3.5, 1.5, 2.5]


def test_the_hosts_sampler_is_kept_at_one_seed():
    host = host_loader()
    ours = rebuild_loader(host, own_columns())
    orders = []
    for loader in (host, ours):
        torch.manual_seed(2)
        orders.append(torch.cat([batch[0] for batch in loader]))
    assert torch.equal(*orders)


def test_batches_are_fetched_by_one_indexing():
    calls = []

    class Counting(BatchDataset):
        def __getitems__(self, indices):
            calls.append(len(indices))
            return super().__getitems__(indices)

    dataset = Counting(torch.arange(10.0))
    list(DataLoader(dataset, batch_size=5, collate_fn=lambda batch: batch))
    assert calls == [5, 5]


def test_a_batch_is_a_copy_that_cannot_change_the_data():
    theta = torch.zeros(4, 2)
    BatchDataset(theta).__getitems__([0, 1])[0].add_(1.0)
    assert (theta == 0).all()


def test_repeated_passes_show_every_row_equally_often_in_a_new_order():
    sampler = RepeatSampler(torch.tensor([4, 7, 9, 11]), num_passes=6)
    rows = list(sampler)
    assert len(sampler) == len(rows) == 24
    assert Counter(rows) == {4: 6, 7: 6, 9: 6, 11: 6}
    assert len({tuple(rows[i : i + 4]) for i in range(0, 24, 4)}) > 1


def test_the_collate_function_can_be_pickled():
    collate = pickle.loads(pickle.dumps(CollateHostColumns(three_columns)))
    theta, score = torch.randn(3, 2), torch.randn(3, 2)
    rows = [(t, t, torch.ones(()), s) for t, s in zip(theta, score, strict=True)]
    assert torch.equal(collate(rows)[3], score)
