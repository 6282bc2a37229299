"""ASE databases: genuine files against independent readings, labels by key, containers, damage as rejects."""

import json
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import lmdb
import numpy as np
import orjson
import pydantic
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane
from ase.io.jsonio import encode

from gfm.data.units import HARTREE
from gfm.errors import CorruptDataError, DataError
from ingest.readers.ase_db import AseDb
from ingest.readers.base import hash_id

VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


def _record(**changes: Any) -> dict[str, Any]:
    """Return a row as ASE's JSON has it, water in a box; ``None`` takes a key out."""
    row: dict[str, Any] = {
        "numbers": np.array([8, 1, 1]),
        "positions": np.array([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 0.9, 0.0]]),
        "cell": 5.0 * np.eye(3),
        "pbc": np.array([True, True, False]),
        "energy": -2.0,
        "forces": np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.25]]),
        "stress": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "unique_id": "a",
    }
    return {key: value for key, value in (row | changes).items() if value is not None}


def _array(shape: Any, dtype: Any, content: Any) -> dict[str, Any]:
    return {"__ndarray__": [shape, dtype, content]}


def _write_lmdb(path: Path, values: dict[str, bytes]) -> Path:
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def _pack(row: Any) -> bytes:
    return zlib.compress(encode(row).encode())


def _rows(*records: bytes, **more: bytes) -> dict[str, bytes]:
    """Return keys and values of an LMDB of these records."""
    values = {str(index): record for index, record in enumerate(records, 1)}
    return values | {"nextid": _pack(len(records) + 1)} | more


@pytest.mark.data
def test_an_aselmdb_agrees_with_the_frames_it_was_made_from(
    shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    reading = read_all("ase_db", shared_data / "derived-aselmdb", part_bytes=40_000, id_key="data.sid")
    assert reading.rejects == []
    assert len(reading.structures) == 200
    assert len(reading.parts) > 2
    frames = {}
    for atoms in ase.io.iread(shared_data / "mattersim-mptrj-alexandria" / "alexandria-random-1k.xyz"):
        frames[hash_id(f"asedb:{atoms.info['alexandria_id']}")] = atoms
    for structure in reading.structures.values():
        atoms = frames[structure.key]
        same(
            structure,
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.calc.results["energy"],
            forces=atoms.calc.results["forces"],
            stress=atoms.calc.results["stress"][VOIGT],
            charge=None,
            fixed=None,
        )


@pytest.mark.data
def test_a_sqlite_file_agrees_with_ase(
    shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = shared_data / "ocp-fixtures" / "oxides.db"
    reading = read_all("ase_db", path, part_bytes=30_000)
    assert reading.rejects == []
    assert len(reading.parts) > 10
    with ase.db.connect(path) as database:
        rows = [(row.id, row.toatoms()) for row in database.select(sort="id")]
    assert list(reading.structures) == [f"{path}[{row_id}]" for row_id, _ in rows]
    for structure, (_, atoms) in zip(reading.structures.values(), rows, strict=True):
        same(
            structure,
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.calc.results["energy"],
            forces=atoms.calc.results["forces"],
            stress=None,
            charge=None,
        )


@pytest.mark.data
@pytest.mark.parametrize("key", ["energy_U0", "data.energy_U0"])
def test_labels_in_the_data_of_schnetpack(
    key: str, shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = shared_data / "schnetpack-qm9-asedb" / "test_qm9.db"
    assert read_all("ase_db", path).reasons == {"missing-energy": 20}
    options = {"energy_key": key, "energy_unit": "hartree", "require_forces": False}
    reading = read_all("ase_db", path, **options)
    assert reading.rejects == []
    with ase.db.connect(path) as database:
        rows = list(database.select(sort="id"))
    for structure, row in zip(reading.structures.values(), rows, strict=True):
        energy = row.data["energy_U0"].item() * HARTREE
        same(structure, numbers=row.numbers, positions=row.positions, energy=energy, forces=None)
        assert not structure.pbc.any()


@pytest.mark.data
def test_units_that_the_metadata_contradicts_are_refused(shared_data: Path) -> None:
    path = shared_data / "schnetpack-qm9-asedb"
    with pytest.raises(DataError, match="energy_U0 is in Ha, the options say eV; set energy_unit: hartree"):
        AseDb(energy_key="energy_U0").plan(str(path), 1 << 20)
    with pytest.raises(DataError, match="set length_unit: angstrom"):
        AseDb(energy_key="data.energy_U0", energy_unit="hartree", length_unit="bohr").plan(str(path), 1 << 20)


@pytest.mark.data
@pytest.mark.parametrize("name", ["atoms_models.json", "atoms_preprocessing.json"])
def test_a_json_database_agrees_with_ase(
    name: str, shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = shared_data / "ocp-fixtures" / name
    (structure,) = read_all("ase_db", path).structures.values()
    with ase.db.connect(path) as database:
        (row,) = database.select()
    fixed = np.zeros(row.natoms, dtype=bool)
    fixed[row.constraints[0].index] = True
    same(
        structure,
        numbers=row.numbers,
        positions=row.positions,
        cell=np.asarray(row.cell),
        pbc=row.pbc,
        energy=row.energy,
        forces=row.forces,
        fixed=fixed,
    )
    assert fixed.sum() == 24


def _labelled(index: int, **results: Any) -> Atoms:
    atoms = Atoms("CuHO", [[0, 0, 0], [1.5, 0, 0], [0, 1.5, 0.1 * index]], cell=[4, 5, 6], pbc=[1, 1, 0])
    atoms.calc = SinglePointCalculator(
        atoms, **({"energy": -1.0 - index, "forces": np.arange(9.0).reshape(3, 3)} | results)
    )
    return atoms


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_what_ase_writes_is_read(
    suffix: str, tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = tmp_path / f"with space #1.{suffix}"
    with ase.db.connect(path) as database:
        for index in range(6):
            atoms = _labelled(index, stress=np.arange(6.0))
            atoms.set_constraint([FixedPlane(1, (0, 0, 1)), FixAtoms([0]), FixAtoms([-1])] if index else [])
            extra = {"charge": 2, "nested": {"list": [1, 2]}, "array": np.eye(3), "text": "ü"}
            database.write(atoms, traj=f"t{index % 2}", spin=3, data=extra)
        database.delete([2])
    before = path.read_bytes()
    reading = read_all("ase_db", path, part_bytes=1500, group_key="traj", group_prefix="mp")
    assert reading.rejects == []
    assert list(reading.structures) == [f"{path}[{index}]" for index in (1, 3, 4, 5, 6)]
    for index, structure in zip((0, 2, 3, 4, 5), reading.structures.values(), strict=True):
        same(
            structure,
            positions=_labelled(index).positions,
            cell=np.diag([4.0, 5.0, 6.0]),
            pbc=np.array([True, True, False]),
            energy=-1.0 - index,
            # the calculator's own, also where an atom is fixed
            forces=np.arange(9.0).reshape(3, 3),
            stress=np.arange(6.0)[VOIGT],
            fixed=np.array([True, False, True]) if index else None,
        )
        assert (structure.charge, structure.spin) == (2, 3)
        assert structure.group == hash_id(f"mp:t{index % 2}")
    assert len({structure.key for structure in reading.structures.values()}) == 5
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_charge_that_ase_sums_up_is_no_label(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(_labelled(0))
    (structure,) = read_all("ase_db", tmp_path).structures.values()
    assert structure.charge is None
    assert structure.spin is None


@pytest.mark.parametrize(
    ("options", "energy", "force", "length", "stress"),
    [
        ({}, 1.0, 1.0, 1.0, 1.0),
        ({"energy_unit": "hartree"}, HARTREE, HARTREE, 1.0, 1.0),
        (
            {"energy_unit": "hartree", "length_unit": "bohr"},
            HARTREE, HARTREE / 0.529177210903, 0.529177210903, 1.0,
        ),
        ({"energy_unit": "meV", "forces_unit": "eV/angstrom"}, 1e-3, 1.0, 1.0, 1.0),
        ({"stress_unit": "GPa"}, 1.0, 1.0, 1.0, 1 / 160.2176634),
        ({"stress_sign": "compression"}, 1.0, 1.0, 1.0, -1.0),
    ],
)  # fmt: skip
def test_units(
    options: dict[str, Any], energy: float, force: float, length: float, stress: float,
    tmp_path: Path, read_all: Callable[..., Any],
) -> None:  # fmt: skip
    _write_lmdb(tmp_path / "a.aselmdb", _rows(_pack(_record())))
    (water,) = read_all("ase_db", tmp_path, **options).structures.values()
    assert water.energy == pytest.approx(-2.0 * energy, rel=1e-9)
    assert water.forces[2, 2] == pytest.approx(0.25 * force, rel=1e-6)
    assert water.positions[1, 0] == pytest.approx(0.9 * length, rel=1e-6)
    assert water.cell[1, 1] == pytest.approx(5.0 * length, rel=1e-9)
    np.testing.assert_allclose(water.stress, stress * np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]), rtol=1e-6)


def test_a_wrong_unit_names_the_known_ones() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"kcal/mol/angstrom"):
        AseDb(forces_unit="newton")


def test_nested_lists_are_arrays_too(
    tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    """As fairchem's writer has it: orjson, which knows numpy."""
    row = _record(data={"forces": np.full((3, 3), 7.0)}, constraints=[FixAtoms([1]).todict()])
    text = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
    path = _write_lmdb(tmp_path / "a.aselmdb", _rows(zlib.compress(text), zlib.compress(text)))
    first, _ = read_all("ase_db", path).structures.values()
    record = _record()
    same(first, **{name: record[name] for name in ("numbers", "positions", "cell", "pbc", "energy", "forces")})
    assert first.fixed.tolist() == [False, True, False]
    first, _ = read_all("ase_db", path, forces_key="data.forces").structures.values()
    same(first, forces=np.full((3, 3), 7.0))


def test_deleted_rows_are_no_damage_and_missing_ones_are(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    record = _pack(_record())
    values = {"1": record, "4": record, "6": record, "nextid": _pack(7), "deleted_ids": _pack([2, 3])}
    reading = read_all("ase_db", _write_lmdb(tmp_path / "a.aselmdb", values), part_bytes=1)
    assert list(reading.structures) == [f"{tmp_path}/a.aselmdb[{index}]" for index in (1, 4, 6)]
    assert reading.reasons == {"missing-record": 1}
    values = _rows(record) | {"999999999": record}
    with pytest.raises(DataError, match="a key of 999999999"):
        AseDb().plan(str(_write_lmdb(tmp_path / "b.aselmdb", values)), 1 << 20)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (_pack(_record())[:-20], "bad-zlib"),
        (b"", "bad-zlib"),
        (b"rubbish", "bad-zlib"),
        (_pack(_record())[:50] + b"\x00" * 30 + _pack(_record())[80:], "bad-zlib"),
        (zlib.compress(encode(_record()).encode()[:-30]), "bad-json"),
        (zlib.compress(b"[" * 100_000), "bad-json"),
        (zlib.compress(b"\xff\xfe"), "bad-json"),
        (_pack([1, 2]), "bad-record"),
        (_pack({}), "missing-numbers"),
        (_pack(_record(positions=None)), "missing-positions"),
        (_pack(_record(energy=None)), "missing-energy"),
        (_pack(_record(forces=None)), "missing-forces"),
        (_pack(_record(energy=float("nan"))), "nan-energy"),
        (_pack(_record(energy="-2.0")), "bad-energy"),
        (_pack(_record(energy=True)), "bad-energy"),
        (_pack(_record(energy=[1.0, 2.0])), "bad-energy"),
        (_pack(_record(energy=10**400)), "bad-energy"),
        (_pack(_record(forces=np.full((3, 3), np.inf))), "infinite-forces"),
        (_pack(_record(forces=np.zeros((2, 3)))), "bad-shape"),
        (_pack(_record(forces=[[1, 2, 3], [4, 5]])), "bad-forces"),
        (_pack(_record(forces=[[1, 2, None]] * 3)), "bad-forces"),
        (_pack(_record(forces=_array([1_000_000_000, 3], "float64", [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([10**30, 0, 3], "float64", [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([-3, -3], "float64", [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([1] * 99, "float64", [0.0]))), "bad-forces"),
        (_pack(_record(forces=_array("33", "float64", [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([3, 3], "object", [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([3, 3], ["float64"], [0.0] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([3, 3], "float64", ["0.0"] * 9))), "bad-forces"),
        (_pack(_record(forces=_array([3, 3], "float64", 8))), "bad-forces"),
        (_pack(_record(forces={"__ndarray__": 3})), "bad-forces"),
        (_pack(_record(forces={"__complex__": [1, 2]})), "bad-forces"),
        (_pack(_record(numbers=np.zeros(0))), "no-atoms"),
        (_pack(_record(numbers=np.array([8, 1, 300]))), "bad-atomic-number"),
        (_pack(_record(numbers=np.array([[8, 1, 1]]))), "bad-shape"),
        (_pack(_record(numbers="H2O")), "bad-numbers"),
        (_pack(_record(cell=np.eye(2))), "bad-shape"),
        (_pack(_record(cell=np.zeros((3, 3)))), "flat-cell"),
        (_pack(_record(pbc="TTF")), "bad-pbc"),
        (_pack(_record(pbc=np.array([0.5, 1.0, 1.0]))), "bad-pbc"),
        (_pack(_record(stress=np.zeros(5))), "bad-stress"),
        (_pack(_record(data={"charge": 0.5})), "bad-charge"),
        (_pack(_record(data={"spin": float("nan")})), "bad-spin"),
        (_pack(_record(data={"charge": 300})), "bad-charge"),
        (_pack(_record(data=[1])), "bad-data"),
        (_pack(_record(key_value_pairs="{")), "bad-json"),
        (_pack(_record(constraints={})), "bad-constraints"),
        (_pack(_record(constraints=["FixAtoms"])), "bad-constraints"),
        (_pack(_record(constraints=[{"name": "FixAtoms", "kwargs": {"indices": [3]}}])), "bad-constraints"),
        (_pack(_record(constraints=[{"name": "FixAtoms", "kwargs": {"indices": [0.5]}}])), "bad-constraints"),
        (_pack(_record(constraints=[{"name": "FixAtoms", "kwargs": {}}])), "bad-constraints"),
    ],
)
def test_a_damaged_record_costs_that_record(
    record: bytes, reason: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    good = _pack(_record())
    path = _write_lmdb(tmp_path / "a.aselmdb", _rows(good, record, good))
    reading = read_all("ase_db", path)
    assert reading.reasons == {reason: 1}
    assert list(reading.structures) == [f"{path}[1]", f"{path}[3]"]
    assert reading.rejects[0].source == f"{path}[2]"


def test_a_bomb_is_not_unpacked(
    tmp_path: Path, read_all: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.readers.ase_rows._LARGEST", 1 << 16)
    path = _write_lmdb(tmp_path / "a.aselmdb", _rows(_pack(_record()), zlib.compress(b" " * (1 << 20))))
    assert read_all("ase_db", path).reasons == {"bad-zlib": 1}


def test_constraints_in_their_old_form(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    old = [{"__name__": "ase.constraints.FixAtoms", "indices": [2]}]
    path = _write_lmdb(tmp_path / "a.aselmdb", _rows(_pack(_record(constraints=old))))
    (water,) = read_all("ase_db", path).structures.values()
    assert water.fixed.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE systems SET positions = zeroblob(7) WHERE id = 2", "bad-positions"),
        ("UPDATE systems SET numbers = 'text' WHERE id = 2", "bad-numbers"),
        ("UPDATE systems SET numbers = NULL WHERE id = 2", "missing-numbers"),
        ("UPDATE systems SET forces = zeroblob(24) WHERE id = 2", "bad-shape"),
        ("UPDATE systems SET energy = 'much' WHERE id = 2", "bad-energy"),
        ("UPDATE systems SET pbc = 99 WHERE id = 2", "bad-pbc"),
        ("UPDATE systems SET constraints = '[' WHERE id = 2", "bad-json"),
        ("UPDATE systems SET key_value_pairs = CAST(x'ff' AS TEXT) WHERE id = 2", "bad-json"),
        ("UPDATE systems SET data = x'00' WHERE id = 2", "bad-data"),
        ("UPDATE systems SET data = zeroblob(16) WHERE id = 2", "bad-data"),
        # a pickle that would run code: no JSON, so refused
        ("UPDATE systems SET data = x'8004637379730a657869740a4b00852e' WHERE id = 2", "bad-data"),
    ],
)
def test_a_damaged_row_of_sqlite_costs_that_row(
    statement: str, reason: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        for index in range(3):
            database.write(_labelled(index))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()
    reading = read_all("ase_db", path)
    assert reading.reasons == {reason: 1}
    assert len(reading.structures) == 2


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        ({"__ndarray__": [[1_000_000_000, 3], "float64", 8]}, "bad-forces"),
        ({"__ndarray__": [[3, 3], "float64", -8]}, "bad-forces"),
        ({"__ndarray__": [[3, 3], "float64", 1 << 70]}, "bad-forces"),
        ({"__ndarray__": [[3, 3], "float64", 100]}, "bad-forces"),
        ({"__ndarray__": [[3, 3], "object", 8]}, "bad-forces"),
    ],
)
def test_binary_arrays_that_point_elsewhere(
    array: Any, reason: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.write(_labelled(0), data={"dft": np.full((3, 3), 2.0)})
    (structure,) = read_all("ase_db", path, forces_key="dft").structures.values()
    assert (structure.forces == 2.0).all()
    blob = (80).to_bytes(8, "little") + bytes(72) + json.dumps({"dft": array}).encode()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE systems SET data = ?", (blob,))
    connection.close()
    assert read_all("ase_db", path, forces_key="dft").reasons == {reason: 1}


def test_damaged_pages_of_sqlite_cost_their_rows(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        for index in range(60):
            database.write(_labelled(index))
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    rows = [match.start() for match in re.finditer(re.escape(np.arange(9.0).tobytes()), content)]
    where = rows[len(rows) // 2] // page * page
    content[where : where + page] = b"\xff" * page
    path.write_bytes(content)
    reading = read_all("ase_db", path)
    assert reading.total == 60
    assert "unreadable" in reading.reasons
    assert len(reading.structures) > 40


@pytest.mark.parametrize("name", ["a.db", "a.aselmdb", "a.json"])
def test_a_file_that_cannot_be_opened_is_unreadable_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((b"SQLite format 3\0" if name == "a.db" else b"") + b"rubbish" * 100)
    (part,) = AseDb().plan(str(path), 1 << 20)
    with pytest.raises(CorruptDataError, match=rf"{name}: not "):
        list(AseDb().read(part))


@pytest.mark.parametrize("size", [0.3, 0.6, 0.9])
def test_a_cut_json_database_keeps_the_rows_before(
    size: float, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / "a.json"
    with ase.db.connect(path) as database:
        for index in range(20):
            database.write(_labelled(index))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * size)])
    reading = read_all("ase_db", path, part_bytes=999)
    assert reading.reasons == {"bad-json": 1}
    assert abs(len(reading.structures) - 20 * size) < 2


def test_json_in_another_layout_is_read_whole(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "a.json"
    rows = {"1": _record(), "7": _record(energy=None), "8": [], "ids": [1, 7, 8], "nextid": 9}
    path.write_text(encode(rows))
    reading = read_all("ase_db", path, part_bytes=10)
    assert list(reading.structures) == [f"{path}[1]"]
    assert reading.reasons == {"missing-energy": 1, "bad-record": 1}
    path.write_text('{"materials": 3}')
    (part,) = AseDb().plan(str(path), 1 << 20)
    with pytest.raises(DataError, match="no ASE database"):
        list(AseDb().read(part))


def test_databases_of_another_kind_are_named(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    with connection:
        connection.execute("CREATE TABLE studies (id INTEGER)")
    connection.close()
    with pytest.raises(DataError, match="no table called systems"):
        AseDb().plan(str(tmp_path), 1 << 20)
    with ase.db.connect(tmp_path / "other.db") as database:
        database.write(_labelled(0))
    shutil.copy(tmp_path / "other.db", tmp_path / "a.db")
    connection = sqlite3.connect(tmp_path / "other.db")
    with connection:
        connection.execute("UPDATE information SET value = '99' WHERE name = 'version'")
    connection.close()
    with pytest.raises(DataError, match="version 99 of ASE's"):
        AseDb().plan(str(tmp_path / "other.db"), 1 << 20)


def test_a_missing_group_or_id_is_refused(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = _write_lmdb(tmp_path / "a.aselmdb", _rows(_pack(_record(data={"list": [1]}))))
    assert read_all("ase_db", path, group_key="traj").reasons == {"missing-group": 1}
    assert read_all("ase_db", path, id_key="sid").reasons == {"missing-id": 1}
    assert read_all("ase_db", path, id_key="list").reasons == {"bad-id": 1}
    (water,) = read_all("ase_db", path, id_key="unique_id").structures.values()
    assert water.key == hash_id("asedb:a")


def test_rows_that_no_query_finds_any_more_are_not_passed_over_in_silence(
    tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        for index in range(100):
            database.write(Atoms("CO", [[0, 0, 0], [0, 0, 1.1 + index / 1000]]))
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name='systems'").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    count = (root - 1) * page + 3  # of the cells of the tree's topmost page; each leads to a page of rows
    assert content[count - 3] == 5
    assert content[count + 1] > 1
    content[count + 1] -= 1
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as connection:
        assert 0 < len(connection.execute("SELECT positions FROM systems ORDER BY id").fetchall()) < 100
    with pytest.raises(CorruptDataError, match=r"a\.db: the pages of this SQLite file contradict each other"):
        read_all("ase_db", path, require_forces=False)
