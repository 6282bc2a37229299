"""Global batches: the epoch order, and how a batch is dealt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.batches import GlobalBatches, deal, shuffled


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_and_may_be_entered_anywhere(size: int, seed: int, epoch: int) -> None:
    whole = shuffled(np.arange(size), size, seed, epoch)
    assert (np.sort(whole) == np.arange(size)).all()
    middle = np.arange(size // 3, size // 2)
    assert (shuffled(middle, size, seed, epoch) == whole[middle]).all()


def test_a_huge_set_is_shuffled_without_a_list_of_it() -> None:
    some = shuffled(np.arange(10**12, 10**12 + 1000), 154 * 10**12, 0, 0)
    assert len(np.unique(some)) == 1000
    assert 0 <= some.min() < some.max() < 154 * 10**12
    assert abs(some.mean() / 154e12 - 0.5) < 0.05


def test_orders_differ_by_epoch_and_by_seed() -> None:
    orders = [tuple(shuffled(np.arange(50), 50, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("size", [3, 7, 40])
def test_every_structure_comes_first_equally_often(size: int) -> None:
    draws = 4000
    first = [int(shuffled(np.array([0]), size, 0, epoch)[0]) for epoch in range(draws)]
    counts = np.bincount(first, minlength=size)
    chi_square = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1))


def test_neighbours_in_an_epoch_are_independent() -> None:
    order = np.concatenate([shuffled(np.arange(1000), 1000, 3, epoch) for epoch in range(20)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


@given(
    costs=st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(np.array),
    ranks=st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_counts_differ_by_one_at_most_and_the_load_is_bounded(costs: np.ndarray, ranks: int) -> None:
    owners = deal(costs, ranks)
    counts = np.bincount(owners, minlength=ranks)
    assert counts.max() - counts.min() <= 1
    loads = np.bincount(owners, weights=costs, minlength=ranks)
    # Longest first under equal counts: two ranks never differ by more than the largest structure.
    if len(costs) % ranks == 0:
        assert loads.max() - loads.min() <= costs.max() * (1 + 1e-9) + 1e-6


def test_a_mixture_of_molecules_and_crystals_is_balanced_by_dealing_only() -> None:
    rng = np.random.default_rng(0)
    atoms = np.where(rng.random(8 * 16) < 0.5, rng.integers(5, 21, 128), rng.integers(20, 201, 128))
    costs = 30.0 * atoms
    dealt = np.bincount(deal(costs, 8), weights=costs)
    plain = costs.reshape(16, 8).sum(axis=0)
    assert dealt.mean() / dealt.max() > 0.99 > 0.9 > plain.mean() / plain.max()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("balance", [True, False])
def test_ranks_share_the_same_global_batches(ranks: int, balance: bool) -> None:
    ids = np.arange(100, 147)
    costs = np.random.default_rng(1).random(47) * 100
    alone = GlobalBatches(ids, costs, 12, 1, seed=5, balance=balance)
    many = GlobalBatches(ids, costs, 12, ranks, seed=5, balance=balance)
    expected = [set(share.ids) for share in alone.shares(3, 0)]
    assert [len(batch) for batch in expected] == [12, 12, 12, 11]
    assert len(alone) == len(expected)
    by_rank = [list(many.shares(3, rank)) for rank in range(ranks)]
    for step, batch in enumerate(expected):
        parts = [shares[step].ids for shares in by_rank if not shares[step].idle]
        assert sorted(np.concatenate(parts)) == sorted(batch)
        assert {shares[step].size for shares in by_rank} == {len(batch)}


def test_a_batch_smaller_than_the_ranks_leaves_some_idle_and_nobody_out() -> None:
    batches = GlobalBatches(np.arange(9), np.ones(9), 8, 4, seed=0)
    last = [list(batches.shares(0, rank))[-1] for rank in range(4)]
    assert sorted(share.idle for share in last) == [False, True, True, True]
    assert all(len(share.ids) == 1 for share in last)


def test_an_epoch_goes_on_from_any_position() -> None:
    batches = GlobalBatches(np.arange(40), np.ones(40), 8, 2, seed=0)
    whole = [share.ids.tolist() for share in batches.shares(2, 1)]
    rest = [share.ids.tolist() for share in batches.shares(2, 1, start=16)]
    assert rest == whole[2:]
    assert [share.stop for share in batches.shares(2, 0)] == [8, 16, 24, 32, 40]
