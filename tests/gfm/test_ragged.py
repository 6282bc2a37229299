"""RaggedBatch: columns, records, and what happens at the edges (no structures, no atoms, absent labels)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm.data.fields import FIELDS, OPTIONAL, schema_of
from gfm.data.ragged import RaggedBatch, record_layout
from gfm.data.structure import Structure
from gfm.errors import DataError


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    num_atoms = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = draw(st.sets(st.sampled_from(OPTIONAL)))
    values = {
        "energy": float(rng.normal(scale=1e4)),
        "forces": rng.normal(size=(num_atoms, 3)).astype(np.float32),
        "stress": rng.normal(size=(3, 3)).astype(np.float32),
        "charge": int(rng.integers(-3, 4)),
        "spin": int(rng.integers(1, 5)),
        "fixed": rng.random(num_atoms) < 0.5,
    }
    return Structure(
        numbers=rng.integers(1, 119, num_atoms).astype(np.uint8),
        positions=rng.normal(size=(num_atoms, 3)).astype(np.float32),
        cell=rng.normal(size=(3, 3)),
        pbc=rng.random(3) < 0.5,
        dataset=draw(st.integers(0, 255)),
        group=draw(st.integers(0, 2**64 - 1)),
        key=draw(st.integers(0, 2**64 - 1)),
        **{name: value for name, value in values.items() if name in labels},
    )


def assert_same(a: Structure, b: Structure) -> None:
    for name, field in FIELDS.items():
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(np.asarray(left, dtype=field.dtype), right, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(structures(), max_size=8), st.randoms(use_true_random=False))
def test_columns_and_records_hold_what_went_in(items: list[Structure], random: object) -> None:
    batch = RaggedBatch.from_structures(items)
    assert len(batch) == len(items)
    for item, got in zip(items, batch, strict=True):
        assert_same(item, got)

    records, starts = batch.pack()
    assert not starts[:-1].size or (starts % 8 == 0).all()
    back = RaggedBatch.unpack(records, starts, batch.schema)
    order = list(range(len(items))) * 2
    random.shuffle(order)  # type: ignore[attr-defined]
    picked = RaggedBatch.unpack(records, starts[:-1][order], batch.schema) if items else back
    for item, got in zip([items[i] for i in order], picked, strict=True):
        assert_same(item, got)
    for row, got in zip(order, batch.take(order), strict=True):
        assert_same(items[row], got)


@settings(max_examples=30, deadline=None)
@given(st.lists(structures(), max_size=6), st.lists(structures(), max_size=6))
def test_concatenation_joins_different_schemas(first: list[Structure], second: list[Structure]) -> None:
    joined = RaggedBatch.concatenate([RaggedBatch.from_structures(first), RaggedBatch.from_structures(second)])
    for item, got in zip(first + second, joined, strict=True):
        assert_same(item, got)
    half = len(joined) // 2
    parts = RaggedBatch.concatenate([joined[:half], joined[half:]])
    for item, got in zip(first + second, parts, strict=True):
        assert_same(item, got)


def water(**labels: object) -> Structure:
    return Structure(
        np.array([8, 1, 1], np.uint8),
        np.zeros((3, 3), np.float32),
        np.zeros((3, 3)),
        np.zeros(3, bool),
        **labels,  # type: ignore[arg-type]
    )


def test_an_absent_label_stays_absent_beside_a_present_one() -> None:
    batch = RaggedBatch.from_structures([water(energy=0.0), water()])
    assert batch[0].energy == 0.0
    assert batch[1].energy is None
    assert batch.has("energy").tolist() == [True, False]
    assert not batch.has("forces").any()


def test_select_never_makes_a_label_up() -> None:
    batch = RaggedBatch.from_structures([water(energy=1.0)]).select([*schema_of([]), "forces"])
    assert batch[0].energy is None
    assert batch[0].forces is None
    assert np.isnan(batch.columns["forces"]).all()


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(DataError, match=r"forces has shape \(2, 3\), expected \(3, 3\) for 3 atoms"):
        RaggedBatch.from_structures([water(forces=np.zeros((2, 3)))])
    for name, value in (
        ("stress", np.zeros(9)), ("pbc", np.ones(2, bool)), ("cell", np.zeros((2, 3))),
        ("fixed", np.zeros((3, 1))), ("positions", np.zeros((3, 2))), ("forces", [[0.0], [0.0, 0.0], []]),
    ):  # fmt: skip
        bad = water()
        setattr(bad, name, value)
        with pytest.raises(
            (DataError, ValueError), match=name if isinstance(value, np.ndarray) else "inhomogen"
        ):
            RaggedBatch.from_structures([water(), bad, water()])
    good = RaggedBatch.from_structures([water()])
    with pytest.raises(DataError, match="column positions is float64"):
        RaggedBatch({**good.columns, "positions": np.zeros((3, 3))}, good.offsets)
    with pytest.raises(DataError, match="the column cell is missing"):
        RaggedBatch({name: c for name, c in good.columns.items() if name != "cell"}, good.offsets)


def test_wrong_lengths_that_add_up_are_seen() -> None:
    few, many = water(forces=np.zeros((2, 3))), water(forces=np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"forces has shape \(2, 3\)"):
        RaggedBatch.from_structures([few, many])
    flat, tall = water(), water()
    flat.cell, tall.cell = np.zeros((2, 3)), np.zeros((4, 3))
    with pytest.raises(DataError, match=r"cell has shape \(2, 3\)"):
        RaggedBatch.from_structures([flat, tall])


def test_records_outside_of_the_bytes_are_refused() -> None:
    records, starts = RaggedBatch.from_structures([water(), water()]).pack()
    schema = schema_of([])
    with pytest.raises(DataError, match="begins outside"):
        RaggedBatch.unpack(records, starts[:2] + len(records), schema)
    with pytest.raises(DataError, match="ends outside"):
        RaggedBatch.unpack(records[:-8], starts[:2], schema)


def test_every_field_of_a_record_is_aligned() -> None:
    for schema in (schema_of([]), schema_of(FIELDS)):
        layout = record_layout(schema)
        assert layout.header.itemsize % 8 == 0
        for name in layout.header.names:
            dtype, offset = layout.header.fields[name][:2]
            assert offset % dtype.base.itemsize == 0, name
        widths = [np.dtype(FIELDS[name].dtype).itemsize for name in layout.atom_fields]
        assert widths == sorted(widths, reverse=True)


def test_atoms_there_and_back() -> None:
    batch = RaggedBatch.from_structures(
        [water(energy=-3.5, forces=np.ones((3, 3)), fixed=np.array([True, False, False]))]
    )
    atoms = batch[0].to_atoms()
    # ASE zeroes the forces of fixed atoms unless told otherwise; the labels themselves are untouched.
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), np.ones((3, 3)))
    again = Structure.from_atoms(atoms)
    assert again.energy == -3.5
    np.testing.assert_array_equal(again.forces, np.ones((3, 3)))
