"""Rows, rounds, masks and scores stay together, whatever the data (hypothesis).

Every score tells its simulation, score = theta + 1/4, so that any row out of place
shows.
"""

import functools
import warnings

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry import new_drop_in

from sbi_scoreaug.score_npe import ScoreNPE
from sbi_scoreaug.score_npe.network import MISSING
from sbi_scoreaug.score_npe.sets import as_sets
from sbi_scoreaug.scores.loaders import CollateHostColumns, RepeatSampler
from sbi_scoreaug.scores.workers import batch_seeds

quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FATES = ("good", "NaN in x", "inf in x", "NaN in score", "no score")
fates = st.lists(st.sampled_from(FATES), min_size=1, max_size=12).filter(
    lambda rows: any(fate in ("good", "NaN in score") for fate in rows)
)


def rows_of(fates, start=0):
    """Return theta, x and scores of rows that are known by their numbers."""
    number = start + torch.arange(float(len(fates)))
    theta = torch.stack([number, number + 0.5], 1)
    x, score = theta.clone(), theta + 0.25
    for row, fate in enumerate(fates):
        if fate == "NaN in x":
            x[row, 0] = torch.nan
        elif fate == "inf in x":
            x[row, 1] = torch.inf
        elif fate == "NaN in score":
            score[row, 0] = torch.nan
        elif fate == "no score":
            score[row] = torch.nan
    return theta, x, score


def append(trainer, theta, x, score, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = {} if score is None else {"score": score, "score_check": False}
        trainer.append_simulations(theta, x, **own, **kwargs)


def assert_aligned(trainer, starting_round=0):
    """Scores are beside their simulations, and masked exactly where they are NaN."""
    theta, _, _ = trainer.get_simulations(starting_round)
    found = trainer._scores(starting_round)
    if found is None:
        return theta, None
    score, mask = found
    assert score.shape == mask.shape == theta.shape
    assert torch.equal(score[mask], (theta + 0.25)[mask])
    assert not score[~mask].any()
    return theta, mask


@quick
@given(fates, st.sampled_from(["NRE_A", "NLE_A", "NPE_C", "ACE"]))
def test_rows_that_are_dropped_take_their_scores_with_them(rows, name):
    trainer = new_drop_in(name, prior=new_drop_in("NRE_A")._prior)
    theta, x, score = rows_of(rows)
    append(trainer, theta, x, score, exclude_invalid_x=True)
    kept = x.isfinite().all(1)
    stored = trainer._score_roundwise[0]
    assert torch.equal(trainer.get_simulations()[0], theta[kept])
    assert torch.equal(stored.isnan(), score[kept].isnan())
    known = ~stored.isnan()
    assert torch.equal(stored[known], score[kept][known])


rounds = st.lists(
    st.tuples(fates, st.booleans(), st.integers(0, 1)), min_size=1, max_size=5
)


@quick
@given(rounds)
def test_rounds_are_selected_with_their_scores(rounds):
    trainer, start, expected, number = new_drop_in("NRE_A", prior=None), 0, [], 0
    for rows, with_score, advance in rounds:
        number += advance if expected else 0
        theta, x, score = rows_of(rows, start)
        start += len(rows)
        given_score = score if with_score and not score.isnan().all() else None
        append(
            trainer, theta, x, given_score, exclude_invalid_x=True, from_round=number
        )
        kept = x.isfinite().all(1)
        unknown = torch.full_like(score, torch.nan)
        used = unknown if given_score is None else score
        expected.append((number, theta[kept], ~used[kept].isnan()))
    lengths = {len(trainer._score_roundwise), len(trainer._theta_roundwise)}
    assert lengths == {len(rounds)}
    for starting in range(number + 1):
        theta, mask = assert_aligned(trainer, starting)
        chosen = [(t, m) for index, t, m in expected if index >= starting]
        assert torch.equal(theta, torch.cat([t for t, _ in chosen]))
        known = torch.cat([m for _, m in chosen])
        assert (mask is None and not known.any()) or torch.equal(mask, known)


@quick
@given(st.integers(20, 60), st.integers(1, 30), st.booleans())
def test_batches_hold_scores_beside_their_simulations(num_rows, batch_size, collate):
    trainer = new_drop_in("NRE_A", prior=None)
    append(trainer, *rows_of(["good", "NaN in score"] * (num_rows // 2)))
    trainer._weighting = None
    user = {"collate_fn": stack_rows} if collate else {}
    loaders = trainer.get_dataloaders(0, batch_size, 0.2, dataloader_kwargs=user)
    seen = []
    for loader in loaders:
        for theta, x, _, score, mask in loader:
            assert torch.equal(theta, x)
            assert torch.equal(score[mask], (theta + 0.25)[mask])
            assert torch.equal(~mask[:, 0], theta[:, 0] % 2 == 1) and mask[:, 1].all()
        seen.append(theta[:, 0])
    split = trainer.train_indices, trainer.val_indices
    for rows, indices in zip(seen, split, strict=True):
        assert set(rows.long().tolist()) <= set(indices.tolist())


def stack_rows(rows):
    return tuple(map(torch.stack, zip(*rows, strict=True)))


@quick
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 30))
def test_a_pass_over_the_data_holds_no_row_twice(num_rows, passes, batch_size):
    sampler = RepeatSampler(range(num_rows), passes, batch_size)
    rows, length = list(sampler), num_rows // batch_size * batch_size
    assert len(rows) == len(sampler) == passes * length
    for start in range(0, len(rows), max(length, 1)):
        assert len(set(rows[start : start + length])) == length


@quick
@given(st.permutations(range(6)))
def test_columns_that_a_collate_function_does_not_know_keep_their_order(order):
    column = torch.arange(6.0)
    rows = [(column[k], column[k], column[k], column[k] + 0.25) for k in order]
    *host, score = CollateHostColumns(stack_rows)(rows)
    assert all(torch.equal(score, part + 0.25) for part in host)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@quick
@given(sizes, st.integers(0, 10**6))
def test_masks_of_sets_pick_what_they_mark(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    places = max(sizes)
    x = torch.arange(float(len(sizes) * places * 2)).reshape(len(sizes), places, 2)
    order = torch.rand(len(sizes), places, generator=generator).argsort(1)
    mask = order < torch.tensor(sizes)[:, None]
    hidden = x.masked_fill(~mask[..., None], torch.nan)
    sets = as_sets(hidden, mask, torch.Size([2]))
    assert [len(s) for s in sets] == sizes
    assert all(torch.equal(s, row[m]) for s, row, m in zip(sets, x, mask, strict=True))


@functools.cache
def set_estimator(m):
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = ScoreNPE(
        prior, max_set_size=m, num_hidden=8, num_blocks=1, show_progress_bars=False
    )
    return trainer._build_neural_net(torch.randn(20, 2), torch.randn(20, m, 2)).eval()


@quick
@given(st.integers(2, 4), st.integers(1, 11), st.integers(0, 10**6))
def test_groups_of_a_set_hold_each_observation_once_in_any_order(m, n, seed):
    estimator = set_estimator(m)
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    groups = estimator.group(x)
    present = (groups < MISSING).all(-1)
    assert groups.shape == (-(-n // m), m, 2)
    assert torch.equal(groups[present], x)
    assert present[:-1].all() and present[-1].any()
    with torch.no_grad():
        order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
        shuffled = estimator.embed(groups[:, order])
        assert torch.allclose(estimator.embed(groups), shuffled, atol=1e-4)


@quick
@given(st.integers(1, 3000), st.integers(0, 10**6))
def test_no_two_batches_share_a_seed(num_batches, seed):
    torch.manual_seed(seed)
    seeds = batch_seeds(num_batches)
    assert len(set(seeds)) == num_batches and 0 <= min(seeds) <= max(seeds) < 2**32
