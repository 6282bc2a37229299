"""OC20 and OC22: text with sidecars, and LMDB of pickles by two generations of torch_geometric."""

import io
import lzma
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import lmdb
import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError
from ingest.readers.base import hash_id
from ingest.readers.oc20 import Oc20
from ingest.readers.oc22 import Oc22


class _Record:
    """Any torch_geometric class: keeps its state. These samples are trusted, so they are unpickled."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Record if module.startswith("torch_geometric") else super().find_class(module, name)


def _with_torch(path: Path) -> list[dict[str, Any]]:
    """Read all records of an LMDB with pickle and torch."""
    records = []
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as txn,
    ):
        for key, value in txn.cursor():
            if key == b"length":
                continue
            values = _Unpickler(io.BytesIO(value)).load().__dict__
            values = values["_store"].__dict__["_mapping"] if "_store" in values else values
            records.append({"index": int(key), **values})
    return records


def _copy(source: Path, folder: Path) -> Path:
    """Copy an LMDB: a path that the readers opened in this process cannot be opened a second time."""
    return Path(shutil.copy(source, folder / f"{source.parent.name}-{source.name}"))


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [
        ("oc20", "synthetic-oc20/lmdb_pyg1", 200),
        ("oc20", "synthetic-oc20/lmdb_pyg2", 60),
        ("oc22", "synthetic-oc22", 112),
    ],
)
def test_every_record_is_read_as_torch_reads_it(
    name: str, folder: str, count: int, shared_data: Path, tmp_path: Path,
    read_all: Callable[..., Any], same: Callable[..., None],
) -> None:  # fmt: skip
    reading = read_all(name, shared_data / folder)
    assert reading.rejects == []
    assert len(reading.structures) == count
    for file in sorted((shared_data / folder).glob("*.lmdb")):
        for record in _with_torch(_copy(file, tmp_path)):
            structure = reading.structures.pop(f"{file}[{record['index']}]")
            energy = record.get("energy", record.get("y"))
            forces = record.get("forces", record.get("force"))
            same(
                structure,
                numbers=record["atomic_numbers"].numpy(),
                positions=record["pos"].numpy(),
                cell=record["cell"].numpy().reshape(3, 3),
                pbc=np.ones(3, dtype=bool),
                energy=float(energy),
                forces=forces.numpy(),
                fixed=record["fixed"].numpy().astype(bool),
                stress=None,
                charge=None,
            )
            sid, fid = int(record["sid"]), int(record["fid"])
            assert structure.group == hash_id(f"{name}:{sid}")
            assert structure.key == hash_id(f"{name}:{sid}/{fid}")
    assert not reading.structures


@pytest.mark.data
@pytest.mark.parametrize("energy", ["total", "adsorption"])
def test_every_text_frame_is_read_as_ase_reads_it(
    energy: str, shared_data: Path, tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    folder = shared_data / "synthetic-oc20" / "s2ef_train_synthetic" / "s2ef_train_synthetic"
    reading = read_all("oc20", folder.parent, energy=energy)
    assert reading.rejects == []
    assert len(reading.structures) == 200
    assert any(structure.fixed.any() for structure in reading.structures.values())
    for shard in (0, 1):
        text = lzma.decompress((folder / f"{shard}.extxyz.xz").read_bytes()).decode()
        lines = lzma.decompress((folder / f"{shard}.txt.xz").read_bytes()).decode().split()
        frames = ase.io.read(io.StringIO(text), ":", format="extxyz")
        assert len(frames) == len(lines) == 100
        for index, (atoms, line) in enumerate(zip(frames, lines, strict=True)):
            structure = reading.structures[f"{folder}/{shard}.extxyz.xz[{index}]"]
            system, frame, reference = line.split(",")
            total = atoms.calc.results["energy"]
            fixed = np.zeros(len(atoms), dtype=bool)
            for constraint in atoms.constraints:
                fixed[constraint.index] = True
            same(
                structure,
                numbers=atoms.numbers,
                positions=atoms.positions,
                cell=atoms.cell.array,
                pbc=atoms.pbc,
                energy=total if energy == "total" else total - float(reference),
                forces=atoms.calc.results["forces"],
                fixed=fixed,
            )
            sid, fid = system.removeprefix("random"), frame.removeprefix("frame")
            assert structure.group == hash_id(f"oc20:{sid}")
            assert structure.key == hash_id(f"oc20:{sid}/{fid}")
    assert Oc20(energy=energy).about().energy_kind == energy


@pytest.mark.data
def test_forces_of_fixed_atoms_are_kept(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("oc20", shared_data / "synthetic-oc20" / "s2ef_train_synthetic")
    assert max(np.abs(one.forces[one.fixed]).max(initial=0.0) for one in reading.structures.values()) > 0.1


@pytest.mark.data
def test_the_two_forms_of_a_frame_are_one_record(shared_data: Path, read_all: Callable[..., Any]) -> None:
    text = read_all("oc20", shared_data / "synthetic-oc20" / "s2ef_train_synthetic").structures.values()
    lmdbs = read_all("oc20", shared_data / "synthetic-oc20" / "lmdb_pyg1").structures.values()
    assert {one.key for one in text} == {one.key for one in lmdbs}
    energies = {one.key: one.energy for one in lmdbs}
    assert all(abs(one.energy - energies[one.key]) < 1e-6 for one in text)


@pytest.mark.data
def test_unlabelled_records_are_refused(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("oc20", shared_data / "synthetic-oc20" / "lmdb_test_nolabels")
    assert reading.reasons == {"missing-energy": 20}
    assert not reading.structures


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "kept", "reasons"),
    [
        ("0.extxyz.xz", 9, {"missing-sidecar": 1}),
        ("1.extxyz.xz", 7, {"truncated-file": 1}),
        ("2.extxyz.xz", 4, {"truncated-file": 1}),
        ("3.extxyz.xz", 9, {"nan-energy": 1}),
        ("4.extxyz.xz", 0, {"missing-sidecar": 10}),
        ("lmdb_bad_records.lmdb", 2, {"nan-energy": 1, "missing-forces": 1, "bad-shape": 1}),
        ("lmdb_hostile_pickle.lmdb", 1, {"hostile-pickle": 1}),
        ("lmdb_no_length.lmdb", 5, {}),
    ],
)
def test_damage_costs_what_is_damaged(
    file: str, kept: int, reasons: dict[str, int], shared_data: Path, read_all: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reading = read_all("oc20", shared_data / "synthetic-oc20" / "bad" / file)
    assert (len(reading.structures), reading.reasons) == (kept, reasons)
    assert all(file in reject.source for reject in reading.rejects)
    assert capsys.readouterr().out == ""  # the hostile pickle asks to print


@pytest.mark.data
def test_frames_keep_their_sidecar_line_behind_a_damaged_one(
    shared_data: Path, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    folder = shared_data / "synthetic-oc20" / "s2ef_train_synthetic" / "s2ef_train_synthetic"
    whole = read_all("oc20", folder / "0.extxyz.xz").structures
    lines = lzma.decompress((folder / "0.extxyz.xz").read_bytes()).decode().splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.strip().isdigit()]
    lines[starts[90]] = "rubbish\n"
    lines[starts[70]] = str(int(lines[starts[70]]) + 3) + "\n"
    lines[starts[50]] = str(int(lines[starts[50]]) - 3) + "\n"
    del lines[starts[30] + 5]
    lines[starts[10] + 4] = lines[starts[10] + 4].replace(".", "?", 1)
    (tmp_path / "0.extxyz").write_text("".join(lines))
    (tmp_path / "0.txt").write_bytes(
        lzma.decompress((folder / "0.txt.xz").read_bytes()) + b"random1,frame1,0.0\n"
    )
    reading = read_all("oc20", tmp_path)
    assert reading.reasons == {"bad-frame": 4, "bad-pos": 1, "missing-frames": 1}
    found = {source.partition("[")[2]: one for source, one in reading.structures.items()}
    expected = {source.partition("[")[2]: one for source, one in whole.items()}
    lost = {f"{index}]" for index in (10, 30, 50, 70, 90)}
    assert found.keys() == expected.keys() - lost
    assert all(
        one.key == expected[index].key and one.energy == expected[index].energy for index, one in found.items()
    )


@pytest.mark.data
def test_a_bad_sidecar_line_costs_its_frame(
    shared_data: Path, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    folder = shared_data / "synthetic-oc20" / "s2ef_train_synthetic" / "s2ef_train_synthetic"
    shutil.copy(folder / "0.extxyz.xz", tmp_path)
    lines = lzma.decompress((folder / "0.txt.xz").read_bytes()).splitlines(keepends=True)
    (tmp_path / "0.txt").write_bytes(b"")  # of another shard form: not what 0.extxyz.xz belongs to
    packed = lzma.compress(b"".join([lines[0], b"nonsense\n", *lines[2:]]))
    (tmp_path / "0.txt.xz").write_bytes(packed)
    assert read_all("oc20", tmp_path).reasons == {"bad-sidecar": 1}
    (tmp_path / "0.txt.xz").write_bytes(packed[: len(packed) // 2])
    reading = read_all("oc20", tmp_path)
    assert reading.total == 100
    assert all("breaks off" in reject.value for reject in reading.rejects if reject.reason == "missing-sidecar")


@pytest.mark.data
def test_a_cut_lmdb_is_refused_before_it_is_opened(shared_data: Path, tmp_path: Path) -> None:
    whole = (shared_data / "synthetic-oc22" / "data.0000.lmdb").read_bytes()
    for size in (0, 100, 4096, 8192, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"cut-{size}.lmdb"
        path.write_bytes(whole[:size])
        (part,) = Oc22().plan(str(path), 1 << 20)
        with pytest.raises(CorruptDataError, match=f"cut-{size}"):
            next(Oc22().read(part))


def _write_lmdb(path: Path, records: dict[bytes, bytes]) -> None:
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 22) as environment,
        environment.begin(write=True) as txn,
    ):
        for key, value in records.items():
            txn.put(key, value)


def test_missing_and_mad_keys(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    _write_lmdb(tmp_path / "gap.lmdb", {b"0": b"\x80\x04N.", b"3": b"\x80\x04N.", b"length": pickle.dumps(6)})
    assert read_all("oc22", tmp_path / "gap.lmdb").reasons == {"bad-pickle": 2, "missing-record": 4}
    _write_lmdb(tmp_path / "mad.lmdb", {b"99999999999": b""})
    with pytest.raises(DataError, match=r"mad\.lmdb.*99999999999"):
        Oc22().plan(str(tmp_path / "mad.lmdb"), 1000)
    _write_lmdb(tmp_path / "empty.lmdb", {})
    with pytest.raises(DataError, match=r"empty\.lmdb.*no record"):
        Oc22().plan(str(tmp_path / "empty.lmdb"), 1000)


@pytest.mark.data
def test_a_replaced_file_is_opened_anew(
    shared_data: Path, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    for source, count in (("data.0000.lmdb", 56), ("data.0001.lmdb", 56)):
        (tmp_path / "data.lmdb").unlink(missing_ok=True)
        shutil.copy(shared_data / "synthetic-oc22" / source, tmp_path / "data.lmdb")
        found = read_all("oc22", tmp_path / "data.lmdb").structures
        expected = read_all("oc22", shared_data / "synthetic-oc22" / source).structures
        assert [one.key for one in found.values()] == [one.key for one in expected.values()]
        assert len(found) == count


def _count(path: str) -> int:
    return sum(len(block.batch) for part in Oc22().plan(path, 1 << 20) for block in Oc22().read(part))


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_the_file_for_itself(shared_data: Path) -> None:
    path = str(shared_data / "synthetic-oc22" / "data.0000.lmdb")
    assert _count(path) == 56
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_count, (path,)) == 56
    assert _count(path) == 56


def test_oc22_is_read_from_text_too_in_a_name_space_of_its_own(
    tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "0.extxyz").write_text(
        'Lattice="9 0 0 0 9 0 0 0 9"'.join(("1\n", " Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5"))
        + ' pbc="T T T"\nH 0 0 0 0 0 0\n'
    )
    (tmp_path / "0.txt").write_text("random5,frame7,none\n")
    (one,) = read_all("oc22", tmp_path).structures.values()
    assert (one.energy, one.key, one.group) == (-3.5, hash_id("oc22:5/7"), hash_id("oc22:5"))
    assert one.pbc.all()
