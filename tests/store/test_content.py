"""The content hash sees every change of content and nothing else."""

import numpy as np
import pytest

from gfm.data.fields import FIELDS
from gfm.data.ragged import RaggedBatch
from store.content import combine, content_hash

NAMES = ["a", "b"]


@pytest.fixture
def batch(structures):
    return RaggedBatch.from_structures(structures(25))


def test_order_and_division_do_not_matter(batch):
    shuffled = batch.take(np.random.default_rng(0).permutation(25))
    parts = [content_hash(shuffled[:9], NAMES), content_hash(shuffled[9:], NAMES)]
    assert combine(parts) == content_hash(batch, NAMES)


def test_the_order_of_datasets_does_not_matter_but_their_names_do(batch):
    swapped = batch.take(np.arange(25))
    swapped.columns["dataset"] = 1 - swapped.columns["dataset"]
    assert content_hash(swapped, NAMES[::-1]) == content_hash(batch, NAMES)
    assert content_hash(swapped, NAMES) != content_hash(batch, NAMES)


def test_columns_that_no_structure_uses_do_not_matter(batch):
    bare = batch.select(["energy"])
    assert content_hash(bare.select(["energy", "stress", "spin"]), NAMES) == content_hash(bare, NAMES)


def test_hashing_leaves_the_batch_as_it_was(batch):
    for one in (batch, batch.select(["energy"])):
        one.columns["dataset"] = np.ones(25, dtype=np.uint8)
        before = {name: column.tobytes() for name, column in one.columns.items()}
        assert content_hash(one, NAMES) == content_hash(one.take(np.arange(25)), NAMES)
        assert {name: column.tobytes() for name, column in one.columns.items()} == before


def test_a_repeated_structure_counts_twice(batch):
    assert content_hash(batch.take([0, 0]), NAMES) != content_hash(batch.take([0]), NAMES)


@pytest.mark.parametrize("name", FIELDS)
def test_a_change_of_one_bit_in_any_field_is_seen(batch, name):
    changed = batch.select([*batch.schema, "spin"])
    changed = changed.take(np.arange(25))
    if name == "spin":
        changed.present[1] |= np.uint32(1 << 4)
    row = int(batch.offsets[5]) if FIELDS[name].per == "atom" else 5
    changed.columns[name][row:].view(np.uint8).reshape(-1)[0] ^= 1
    assert content_hash(changed, NAMES) != content_hash(batch, NAMES)


def test_absent_is_not_zero(batch):
    filled = batch.take(np.arange(25))
    absent = ~filled.has("charge")
    filled.columns["charge"][absent] = 0
    assert content_hash(filled, NAMES) == content_hash(batch, NAMES)
    filled.present[absent] |= np.uint32(1 << 3)
    assert filled.has("charge").all()
    assert content_hash(filled, NAMES) != content_hash(batch, NAMES)


def test_the_hash_of_a_known_structure_stays(batch):
    """Golden value: a change of it orphans every hash that was ever published."""
    from gfm.data.structure import Structure

    water = Structure(
        numbers=np.array([8, 1, 1], dtype=np.uint8),
        positions=np.array([[0, 0, 0], [0, 0.75, 0.5], [0, -0.75, 0.5]], dtype=np.float32),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        energy=-2081.5,
        group=7,
        key=11,
    )
    assert content_hash(RaggedBatch.from_structures([water]), ["water"]) == "01fa877c23c8ba0de239dd6faa0f6996"
