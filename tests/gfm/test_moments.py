"""Mergeable statistics: merged parts say what the whole says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfm.data.moments import Histogram, Moments
from gfm.errors import DataError

VALUES = st.lists(st.floats(-1e5, 1e5), max_size=30)


@given(st.lists(VALUES, max_size=5))
def test_merged_parts_equal_the_whole(parts: list[list[float]]) -> None:
    merged = Moments()
    for part in parts:
        merged = merged.merge(Moments.of(np.array(part)))
    whole = np.array([value for part in parts for value in part])
    assert merged.count == len(whole)
    if len(whole):
        assert merged.mean == pytest.approx(whole.mean(), abs=1e-9 * (1 + np.abs(whole).max()))
        assert merged.std == pytest.approx(whole.std(), abs=1e-6 * (1 + np.abs(whole).max()))
        assert (merged.minimum, merged.maximum) == (whole.min(), whole.max())


def test_large_offsets_do_not_swallow_the_spread() -> None:
    values = -5e4 + np.random.default_rng(0).normal(scale=1e-3, size=10_000)
    merged = Moments()
    for part in np.array_split(values, 37):
        merged = merged.merge(Moments.of(part))
    assert merged.std == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("moments", [Moments(), Moments.of(np.array([[1.0, 2.5], [0.1, -4.0]]))])
def test_moments_survive_json(moments: Moments) -> None:
    assert Moments.from_json(json.loads(json.dumps(moments.to_json(), allow_nan=False))) == moments


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 values"):
        Moments.of(np.array([1.0, np.nan]))


def test_histogram_counts_every_value_once() -> None:
    histogram = Histogram.of(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 2.5]), (0.0, 1.0, 2.0))
    assert (histogram.below, histogram.counts, histogram.above) == (1, (2, 1), 2)
    twice = histogram.merge(Histogram.from_json(json.loads(json.dumps(histogram.to_json()))))
    assert (twice.below, twice.counts, twice.above) == (2, (4, 2), 4)
    with pytest.raises(DataError, match="edges"):
        histogram.merge(Histogram.of(np.array([]), (0.0, 1.0)))
