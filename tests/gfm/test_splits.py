"""Splits: pure, torn nowhere, of the shares asked for."""

import numpy as np
import pytest

from gfm.data.splits import SPLITS, split_of
from gfm.errors import ConfigError

GROUPS = np.random.default_rng(0).integers(0, 2**64, size=40_000, dtype=np.uint64)


def test_shares_are_those_asked_for_also_for_groups_that_are_no_good_hashes() -> None:
    for groups in (GROUPS, np.arange(40_000, dtype=np.uint64)):
        counts = np.bincount(split_of(groups, (0.7, 0.2, 0.1)), minlength=3) / len(groups)
        np.testing.assert_allclose(counts, [0.7, 0.2, 0.1], atol=0.01)


def test_a_group_is_in_one_split_whatever_is_around_it() -> None:
    alone = np.concatenate([split_of(GROUPS[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(split_of(GROUPS)[:50], alone)


def test_it_is_splitmix64_of_group_and_seed() -> None:
    def mix(value: int) -> int:
        z = (value + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0
    groups = [0, 1, 2, 3, 12345678901234567890, 2**64 - 1]
    shares = [mix(group ^ mix(7)) / 2**64 for group in groups]
    splits = split_of(np.array(groups, dtype=np.uint64), (0.4, 0.3, 0.3), seed=7)
    assert splits.dtype == np.uint8
    assert splits.tolist() == [(share >= 0.4) + (share >= 0.7) for share in shares] == [2, 0, 0, 1, 2, 1]


def test_seeds_give_independent_partitions() -> None:
    same = (split_of(GROUPS, (0.5, 0.0, 0.5), 1) == split_of(GROUPS, (0.5, 0.0, 0.5), 2)).mean()
    assert abs(same - 0.5) < 0.02


@pytest.mark.parametrize("fractions", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5), (0.9, 0.1, 0)])
def test_a_split_of_no_share_stays_empty(fractions: tuple[float, float, float]) -> None:
    counts = np.bincount(split_of(GROUPS, fractions), minlength=len(SPLITS))
    assert [bool(count) for count in counts] == [bool(fraction) for fraction in fractions]


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0)])
def test_impossible_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        split_of(GROUPS, fractions)
