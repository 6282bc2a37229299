"""What all readers have in common: registry, parts, options, units, the check of one record."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm.data.fields import OPTIONAL
from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from gfm.errors import MissingDataError
from ingest.readers import READERS
from ingest.readers.base import BLOCK_STRUCTURES, Block, Part, Reject, find_files, hash_id
from ingest.readers.records import BlockBuilder, Refused, check_structure, hill_formula

ALL = ["ani1x", "ase_db", "extxyz", "hdf5", "mptrj", "oc20", "oc22", "qm7x"]


def _water(**changes: Any) -> Structure:
    values: dict[str, Any] = {
        "numbers": np.array([8, 1, 1]),
        "positions": np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [0.0, 0.96, 0.0]]),
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, dtype=bool),
        "energy": -76.4,
        "forces": np.zeros((3, 3)),
    }
    return Structure(**(values | changes))


def test_all_readers_are_known() -> None:
    assert READERS.names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_reader_says_what_it_delivers(name: str) -> None:
    reader = READERS.get(name)()
    about = reader.about()
    assert name == reader.NAME
    assert reader.UNITS
    assert set(reader.FIELDS) <= set(OPTIONAL)
    assert about.theory
    assert about.licence
    assert about.energy_kind.startswith("total")
    if name not in ("ase_db", "extxyz", "hdf5"):
        assert about.doi.startswith("10.")


@pytest.mark.parametrize("name", ALL)
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="no_such_option"):
        READERS.get(name).model_validate({"no_such_option": 1})


@pytest.mark.parametrize("name", ALL)
def test_a_missing_path_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="nowhere"):
        READERS.get(name)().plan(str(tmp_path / "nowhere"), 1000)
    with pytest.raises(MissingDataError, match="in this folder"):
        READERS.get(name)().plan(str(tmp_path), 1000)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ani1x", "synthetic-ani1x"), ("qm7x", "synthetic-qm7x"), ("oc20", "synthetic-oc20/lmdb_pyg1"),
        ("oc22", "synthetic-oc22"), ("mptrj", "synthetic-mptrj"), ("extxyz", "botnet-3bpa-acac"),
        ("ase_db", "derived-aselmdb"),
    ],
)  # fmt: skip
def test_the_cut_into_parts_changes_nothing(
    name: str, path: str, shared_data: Path, read_all: Callable[..., Any]
) -> None:
    whole = read_all(name, shared_data / path)
    cut = read_all(name, shared_data / path, part_bytes=90_000)
    assert len(cut.parts) > len(whole.parts)
    assert list(cut.structures) == list(whole.structures)
    assert [structure.key for structure in cut.structures.values()] == [
        structure.key for structure in whole.structures.values()
    ]
    assert len({structure.key for structure in whole.structures.values()}) == len(whole.structures)
    assert sum(part.nbytes for part in cut.parts) == pytest.approx(
        sum(part.nbytes for part in whole.parts), rel=0.01
    )


@pytest.mark.data
def test_parts_travel_as_json_and_pickle(shared_data: Path) -> None:
    for part in READERS.get("qm7x")().plan(str(shared_data / "synthetic-qm7x"), 100_000):
        assert Part(**json.loads(json.dumps(vars(part)))) == part
        assert pickle.loads(pickle.dumps(part)) == part


def test_files_come_in_natural_order_and_from_below_only_if_there_are_none_above(tmp_path: Path) -> None:
    for name in ("10.h5", "9.h5", "below/1.h5", "other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in find_files(str(tmp_path), (".h5",), "files")] == ["9.h5", "10.h5"]
    (tmp_path / "9.h5").unlink()
    (tmp_path / "10.h5").unlink()
    assert [file.name for file in find_files(str(tmp_path), (".h5",), "files")] == ["1.h5"]
    assert [file.name for file in find_files(f"{tmp_path}/*/*.h5", (".h5",), "files")] == ["1.h5"]


def test_ids_never_change() -> None:
    assert hash_id("") == 0x2D06800538D394C2  # the published value of XXH3
    assert hash_id("mp:mp-1") == 1236779702186313978


@pytest.mark.parametrize(
    ("numbers", "formula"), [([1, 8, 1], "H2O"), ([6, 1, 8, 1, 7], "CH2NO"), ([26, 8, 26, 8, 8], "Fe2O3")]
)
def test_formulas_follow_hill(numbers: list[int], formula: str) -> None:
    assert hill_formula(np.array(numbers)) == formula


UNSOUND: list[tuple[str, dict[str, Any]]] = [
    ("no-atoms", {"numbers": np.array([])}),
    ("missing-energy", {"energy": None}),
    ("missing-forces", {"forces": None}),
    ("nan-energy", {"energy": float("nan")}),
    ("infinite-energy", {"energy": float("-inf")}),
    ("bad-energy", {"energy": [1.0, 2.0]}),
    ("bad-energy", {"energy": "much"}),
    ("nan-forces", {"forces": np.full((3, 3), np.nan)}),
    ("infinite-forces", {"forces": np.full((3, 3), 1e39)}),
    ("nan-positions", {"positions": np.full((3, 3), np.nan)}),
    ("nan-stress", {"stress": np.full((3, 3), np.nan)}),
    ("bad-shape", {"forces": np.zeros((2, 3))}),
    ("bad-shape", {"positions": np.zeros(9)}),
    ("bad-atomic-number", {"numbers": np.array([0, 1, 1])}),
    ("bad-atomic-number", {"numbers": np.array([119, 1, 1])}),
    ("bad-atomic-number", {"numbers": np.array([8.5, 1, 1])}),
    ("bad-charge", {"charge": 300}),
    ("flat-cell", {"pbc": np.ones(3, dtype=bool)}),
    ("flat-cell", {"pbc": np.array([True, True, False]), "cell": np.diag([3.0, 0.0, 3.0])}),
]


@pytest.mark.parametrize(("reason", "changes"), UNSOUND)
def test_what_cannot_be_a_structure_is_refused(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        check_structure(_water(**changes))
    assert caught.value.reason == reason


def _one_by_one(records: list[Structure]) -> tuple[list[Structure], list[Reject]]:
    """Return what checking singly accepts and refuses; the source of a record is its place."""
    kept, rejects = [], []
    for place, record in enumerate(records):
        try:
            kept.append(check_structure(record))
        except Refused as refused:
            rejects.append(Reject(str(place), refused.reason, refused.value))
    return kept, rejects


def _together(records: list[Structure]) -> Block:
    """Return the block that the same records are made into at once."""
    builder = BlockBuilder()
    for place, record in enumerate(records):
        builder.offer(record, str(place))
    return builder.take()


def _assert_equal(block: Block, kept: list[Structure], rejects: list[Reject]) -> None:
    assert block.rejects == rejects
    assert {reject.source for reject in rejects}.isdisjoint(block.sources)
    expected = RaggedBatch.from_structures(kept)
    assert block.batch.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        assert block.batch.columns[name].tobytes() == column.tobytes(), name
    assert block.batch.offsets.tolist() == expected.offsets.tolist()
    assert block.batch.present.tolist() == expected.present.tolist()


@pytest.mark.parametrize(("reason", "changes"), UNSOUND)
@pytest.mark.parametrize("place", [0, 7, 20])
def test_one_bad_record_among_many_is_refused_as_it_is_alone(
    place: int, reason: str, changes: dict[str, Any]
) -> None:
    def records() -> list[Structure]:
        return [_water(**{"energy": -float(row)} | (changes if row == place else {})) for row in range(21)]

    kept, rejects = _one_by_one(records())
    block = _together(records())
    assert [(reject.source, reject.reason) for reject in block.rejects] == [(str(place), reason)]
    assert block.sources == [str(row) for row in range(21) if row != place]
    _assert_equal(block, kept, rejects)


_ODD: list[dict[str, Any]] = [
    {}, {"energy": 3}, {"energy": np.float32(1.5)}, {"energy": "-1.5"}, {"energy": 10**400},
    {"stress": np.eye(3)}, {"charge": -1, "spin": 2}, {"spin": -129}, {"fixed": np.array([True, False, False])},
    {"numbers": np.array([8.0, 1.0, 1.0], np.float32)}, {"numbers": np.array([8, np.nan, 1])},
    {"numbers": np.array([True, True, True])}, {"numbers": np.array([[8, 1, 1]])},
    {"numbers": np.array([264, 1, 1])}, {"positions": np.arange(9).reshape(3, 3)},
    {"positions": np.arange(9.0, dtype=">f8").reshape(3, 3)}, {"positions": np.full((3, 3), 1e300)},
    {"forces": [[0.0, 0.0, 0.5]] * 3}, {"forces": np.zeros((3, 3), np.float16)},
    {"forces": np.full((3, 3), 1j)}, {"cell": np.full((3, 3), np.inf)}, {"pbc": np.ones(2, bool)},
    {"cell": np.eye(3) * 1e200, "pbc": np.ones(3, bool)},
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*_ODD, *(changes for _, changes in UNSOUND)]) | st.just({}), max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_a_block_is_checked_as_its_records_are_one_by_one(changes: list[dict[str, Any]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [{"energy": rng.normal(), "forces": rng.normal(size=(3, 3)), **change} for change in changes]
    _assert_equal(_together([_water(**one) for one in values]), *_one_by_one([_water(**one) for one in values]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-9, 1e-6, 9e-4, 1e-3, 1.0, 4.0, 1e3, 1e8, -2.5]), min_size=9, max_size=9),
    st.sampled_from([1.0, 1e-4, 1e4]), st.lists(st.booleans(), min_size=3, max_size=3),
    st.floats(-1, 1), st.floats(-1, 1),
)  # fmt: skip
def test_a_cell_is_as_flat_in_a_block_as_alone(
    entries: list[float], scale: float, pbc: list[bool], a: float, b: float
) -> None:
    cell = np.reshape(entries, (3, 3)) * scale
    nearly = cell.copy()
    nearly[2] = a * cell[0] + b * cell[1] + np.array([0.0, 0.0, 1e-7])
    for one in (cell, nearly):
        values = {"cell": one, "pbc": np.array(pbc)}
        _assert_equal(_together([_water(), _water(**values)]), *_one_by_one([_water(), _water(**values)]))


def test_rejects_keep_the_order_of_their_records() -> None:
    builder = BlockBuilder()
    builder.offer(_water(energy=None), "a")
    builder.reject("b", "reason")
    builder.offer(_water(), "c")
    builder.add_batch(RaggedBatch.from_structures([_water()]), ["d"])
    builder.offer(_water(forces=None), "e", forces=False)
    builder.offer(_water(forces=None), "f")
    builder.refuse("g", Refused("reason"))
    builder.offer(_water(energy=None), "h", energy=False)
    block = builder.take()
    assert [(reject.source, reject.reason) for reject in block.rejects] == [
        ("a", "missing-energy"), ("b", "reason"), ("f", "missing-forces"), ("g", "reason"),
    ]  # fmt: skip
    assert block.sources == ["c", "d", "e", "h"]
    assert block.batch.has("forces").tolist() == [True, True, False, True]
    assert block.batch.has("energy").tolist() == [True, True, True, False]


def test_labels_may_be_waived() -> None:
    structure = check_structure(_water(energy=None, forces=None), energy=False, forces=False)
    assert structure.energy is None
    assert structure.forces is None


def test_blocks_are_bounded_and_keep_the_order() -> None:
    builder = BlockBuilder()
    assert not builder
    builder.add(_water(energy=-1.0), "a")
    builder.add_batch(type(builder.take().batch).from_structures([_water(energy=-2.0)]), ["b"])
    builder.add(_water(energy=-3.0), "c")
    builder.reject("d", "reason", "value")
    block = builder.take()
    assert block.sources == ["b", "c"]
    assert block.batch.columns["energy"].tolist() == [-2.0, -3.0]
    assert [vars(reject) for reject in block.rejects] == [{"source": "d", "reason": "reason", "value": "value"}]
    assert not builder
    for index in range(BLOCK_STRUCTURES):
        assert not builder.full
        builder.add(_water(), str(index))
    assert builder.full
