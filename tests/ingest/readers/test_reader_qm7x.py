"""QM7-X: every frame, pairs of energy and forces, duplicates left out."""

import errno
import io
import logging
import lzma
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gfm.data.structure import Structure
from gfm.errors import ConfigError, CorruptDataError, DataError, MissingDataError, ResourceError
from ingest.readers.base import hash_id
from ingest.readers.qm7x import Qm7x


@pytest.mark.data
@pytest.mark.parametrize(
    ("level", "energy_key", "forces_key"),
    [("PBE0+MBD", "ePBE0+MBD", "totFOR"), ("PBE0", "ePBE0", "pbe0FOR")],
)
def test_every_frame_is_read_as_h5py_reads_it(
    level: str, energy_key: str, forces_key: str,
    shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None],
) -> None:  # fmt: skip
    folder = shared_data / "synthetic-qm7x"
    reading = read_all("qm7x", folder, level_of_theory=level)
    assert len(reading.structures) == 384 - 6
    for name in ("1000.hdf5", "8000.hdf5"):
        with h5py.File(folder / name) as h5:
            for molecule, frames in h5.items():
                for frame, values in frames.items():
                    if molecule == "3":  # DupMols.dat: Geom-m3-i1-c1-opt
                        continue
                    structure = reading.structures.pop(f"{folder / name}:/{molecule}/{frame}")
                    same(
                        structure,
                        numbers=values["atNUM"][()],
                        positions=values["atXYZ"][()],
                        energy=values[energy_key][0],
                        forces=values[forces_key][()],
                        charge=0,
                        spin=1,
                        pbc=np.zeros(3, dtype=bool),
                    )
                    assert structure.group == hash_id(f"qm7x:{molecule}")
                    assert structure.key == hash_id(f"qm7x:{frame}")
    assert not reading.structures
    assert reading.reasons == {"duplicate": 6}
    assert {reject.source.split("/")[-2] for reject in reading.rejects} == {"3"}


@pytest.mark.data
def test_duplicates_may_be_kept(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("qm7x", shared_data / "synthetic-qm7x", duplicates=None)
    assert (len(reading.structures), reading.rejects) == (384, [])


@pytest.mark.data
def test_a_list_of_duplicates_that_is_not_there(
    shared_data: Path, read_all: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = shared_data / "synthetic-qm7x" / "bad" / "qm7x-bad-records.hdf5"
    with caplog.at_level(logging.WARNING):
        read_all("qm7x", path)
    assert "duplicates" in caplog.text
    with pytest.raises(MissingDataError, match=r"mine\.dat"):
        read_all("qm7x", path, duplicates="mine.dat")


@pytest.mark.data
def test_damaged_records_are_refused_with_their_reason(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("qm7x", shared_data / "synthetic-qm7x" / "bad" / "qm7x-bad-records.hdf5")
    where = {reject.source.partition(":/")[2]: reject.reason for reject in reading.rejects}
    assert where == {
        "33/Geom-m33-i1-c1-d1": "nan-energy",
        "35/Geom-m35-i1-c1-d1": "missing-forces",
        "36/Geom-m36-i1-c1-d1": "missing-positions",
        "37/Geom-m37-i1-c1-d1": "bad-atomic-number",
    }
    assert reading.total == 30


@pytest.mark.data
def test_a_cut_file_is_named(shared_data: Path) -> None:
    (part,) = Qm7x().plan(str(shared_data / "synthetic-qm7x" / "bad" / "truncated-1000.hdf5"), 1 << 20)
    with pytest.raises(CorruptDataError, match=r"truncated-1000\.hdf5.*truncated file"):
        next(Qm7x().read(part))


def test_a_large_molecule_is_cut(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    with h5py.File(tmp_path / "1000.hdf5", "w") as h5:
        for index in range(50):
            frame = h5.create_group(f"1/Geom-m1-i1-c1-d{index}")
            frame["atNUM"] = np.array([1, 1])
            frame["atXYZ"] = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7 + index / 100]])
            frame["ePBE0+MBD"] = np.array([-30.0 - index])
            frame["totFOR"] = np.full((2, 3), index / 7)
        h5.create_group("2")  # a molecule without frames
    size = (tmp_path / "1000.hdf5").stat().st_size
    reading = read_all("qm7x", tmp_path / "1000.hdf5", part_bytes=size // 5 + 5, duplicates=None)
    assert [part.stop - part.start for part in reading.parts] == [10] * 5
    assert len(reading.structures) == 50


def _write_file(path: Path, molecules: int = 3, frames: int = 4, **options: Any) -> None:
    """Write a file in the layout of QM7-X; options go to every array."""
    rng = np.random.default_rng(5)
    dtype = options.pop("dtype", None)
    with h5py.File(path, "w", libver=options.pop("libver", None)) as h5:
        for molecule in range(1, molecules + 1):
            for index in range(frames):
                frame = h5.create_group(f"{molecule}/Geom-m{molecule}-i1-c1-{index or 'opt'}")
                num_atoms = 2 + molecule
                for key, value in {
                    "atNUM": rng.choice([1, 6, 7, 8], num_atoms),
                    "atXYZ": rng.normal(size=(num_atoms, 3)),
                    "ePBE0+MBD": rng.normal(size=1),
                    "totFOR": rng.normal(size=(num_atoms, 3)),
                    "hCHG": rng.normal(size=num_atoms),
                }.items():
                    cast = None if key == "atNUM" else dtype
                    frame.create_dataset(key, data=value, dtype=cast, **options)


def _tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _content(structures: dict[str, Structure]) -> dict[str, tuple[Any, ...]]:
    """Return what each structure is, by its place in the file."""
    return {
        source.partition(":/")[2]: (
            structure.numbers.tobytes(), structure.positions.tobytes(), structure.energy,
            structure.forces.tobytes(), structure.group, structure.key,
        )
        for source, structure in structures.items()
    }  # fmt: skip


def _unpacked(reader: Qm7x, path: Path, scratch: Path) -> dict[str, Structure]:
    """Unpack what is packed at a path and read it, with a reader that travelled as Dask sends it."""
    reader = pickle.loads(pickle.dumps(reader.unpacking_to(scratch)))
    for file in reader.packed(str(path)):
        reader.unpack(file)
    structures: dict[str, Structure] = {}
    for part in reader.plan(str(path), 1 << 20):
        for block in reader.read(part):
            structures |= dict(zip(block.sources, block.batch, strict=True))
    return structures


@pytest.mark.parametrize("form", ["1000.xz", "1000.tar.xz", "1000.tar"])
def test_every_form_of_a_file_holds_the_same(form: str, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    _write_file(tmp_path / "plain.hdf5")
    expected = _content(read_all("qm7x", tmp_path / "plain.hdf5", duplicates=None).structures)
    content = (tmp_path / "plain.hdf5").read_bytes()
    folder = tmp_path / "published"
    folder.mkdir()
    packed = _tar({"README": b"read me", "./data/1000.hdf5": content}) if "tar" in form else content
    (folder / form).write_bytes(lzma.compress(packed) if form.endswith("xz") else packed)
    (folder / "DupMols.dat").write_text("Geom-m2-i1-c1-opt\n")
    structures = _unpacked(Qm7x(), folder, tmp_path / "scratch")
    assert len(expected) == 12
    assert _content(structures) == {
        place: value for place, value in expected.items() if not place.startswith("2/")
    }
    assert all(source.startswith(f"{folder / form}:/") for source in structures)
    reader = Qm7x().unpacking_to(tmp_path / "scratch")
    assert [part.label for part in reader.plan(str(folder), 1 << 20)] == [f"{form} frames 0..12"]
    (unpacked,) = (tmp_path / "scratch").iterdir()
    before = unpacked.stat().st_mtime_ns
    reader.unpack(folder / form)
    assert unpacked.stat().st_mtime_ns == before


def test_archives_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder, molecules in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        _write_file(tmp_path / "plain.hdf5", molecules)
        (tmp_path / folder / "1000.xz").write_bytes(lzma.compress((tmp_path / "plain.hdf5").read_bytes()))
    counts = [len(_unpacked(Qm7x(duplicates=None), tmp_path / folder, tmp_path / "scratch")) for folder in "ab"]
    assert counts == [4, 8]


def test_an_archive_beside_its_unpacked_file_is_not_read_again(
    tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    _write_file(tmp_path / "1000")
    (tmp_path / "1000.xz").write_bytes(lzma.compress((tmp_path / "1000").read_bytes()))
    assert Qm7x(duplicates=None).packed(str(tmp_path)) == []
    assert len(read_all("qm7x", tmp_path, duplicates=None).structures) == 12


def test_a_tar_writes_nothing_but_the_hdf5_file(tmp_path: Path) -> None:
    _write_file(tmp_path / "plain.hdf5")
    content = (tmp_path / "plain.hdf5").read_bytes()
    members = {"../../escaped.hdf5": content, "/etc/motd-of-nobody": b"x", "CON": b""}
    (tmp_path / "1000.xz").write_bytes(lzma.compress(_tar(members, {"link.hdf5": "/etc/passwd"})))
    before = set(tmp_path.rglob("*"))
    reader = Qm7x(duplicates=None).unpacking_to(tmp_path / "deep" / "scratch")
    reader.unpack(tmp_path / "1000.xz")
    (made,) = (tmp_path / "deep" / "scratch").iterdir()
    assert set(tmp_path.rglob("*")) - before == {made, made.parent, made.parent.parent}
    assert made.read_bytes() == content


@pytest.mark.parametrize(
    ("members", "text"),
    [({"a.hdf5": b"\x89HDF\r\n\x1a\n1", "b.h5": b"\x89HDF\r\n\x1a\n2"}, r"several HDF5 files \(a\.hdf5, b\."),
     ({"a.hdf5": b"plain text"}, "no HDF5 file in this tar")],
)  # fmt: skip
def test_a_tar_without_one_hdf5_file(members: dict[str, bytes], text: str, tmp_path: Path) -> None:
    (tmp_path / "1000.tar").write_bytes(_tar(members))
    with pytest.raises(DataError, match=text):
        Qm7x().unpacking_to(tmp_path / "scratch").unpack(tmp_path / "1000.tar")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("form", ["xz", "tar.xz", "tar"])
def test_a_damaged_archive_leaves_nothing(form: str, tmp_path: Path) -> None:
    _write_file(tmp_path / "plain.hdf5")
    content = (tmp_path / "plain.hdf5").read_bytes()
    packed = _tar({"1000.hdf5": content}) if "tar" in form else content
    whole = lzma.compress(packed) if form.endswith("xz") else packed
    archive = tmp_path / f"1000.{form}"
    reader = Qm7x().unpacking_to(tmp_path / "scratch")
    cuts = range(12, len(whole) - 1, len(whole) // 25) if form != "tar" else range(600, len(content), 4000)
    for size in cuts:
        archive.write_bytes(whole[:size])
        with pytest.raises(CorruptDataError, match=r"1000\..*cut short.*download it again"):
            reader.unpack(archive)
        assert list((tmp_path / "scratch").iterdir()) == []
    if form != "tar":
        for cut in (4, 30):  # the last bytes hold no data, only what tells that all is there
            archive.write_bytes(whole[:-cut])
            with pytest.raises(CorruptDataError, match="cut short"):
                reader.unpack(archive)
        middle = len(whole) // 2
        archive.write_bytes(whole[:middle] + bytes([whole[middle] ^ 8]) + whole[middle + 1 :])
        with pytest.raises(CorruptDataError, match="damaged"):
            reader.unpack(archive)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_packed_must_be_unpacked_before_planning(tmp_path: Path) -> None:
    (tmp_path / "1000.xz").write_bytes(lzma.compress(b"\x89HDF"))
    reader = Qm7x(duplicates=None).unpacking_to(tmp_path / "scratch")
    assert reader.packed(str(tmp_path)) == [tmp_path / "1000.xz"]
    with pytest.raises(DataError, match=r"still packed.*gfm ingest run.*xz -dk 1000\.xz"):
        reader.plan(str(tmp_path), 1 << 20)
    with pytest.raises(ConfigError, match="no folder"):
        Qm7x().unpack(tmp_path / "1000.xz")
    (tmp_path / "1000.xz").write_bytes(lzma.compress(b"a letter"))
    with pytest.raises(DataError, match="neither an HDF5 file nor a tar"):
        reader.unpack(tmp_path / "1000.xz")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1000.xz").write_bytes(lzma.compress(b"\x89HDF\r\n\x1a\n" + bytes(1 << 20)))

    def fill(source: io.BufferedIOBase, target: io.BufferedIOBase, size: int) -> None:
        target.write(source.read(size // 2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(ResourceError, match=r"no room to unpack .*1000\.xz \(No space left"):
        Qm7x().unpacking_to(tmp_path / "scratch").unpack(tmp_path / "1000.xz")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"libver": "latest"}, {"chunks": True, "compression": "gzip"}, {"dtype": ">f8"}, {"dtype": "f4"}],
    ids=str,
)
def test_every_form_of_an_array_is_read_as_h5py_reads_it(
    options: dict[str, Any], tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = tmp_path / "1000.hdf5"
    _write_file(path, **options)
    structures = read_all("qm7x", path, duplicates=None).structures
    assert len(structures) == 12
    with h5py.File(path) as h5:
        for source, structure in structures.items():
            values = h5[source.partition(":/")[2]]
            same(
                structure,
                numbers=values["atNUM"][()],
                positions=values["atXYZ"][()],
                energy=values["ePBE0+MBD"][0],
                forces=values["totFOR"][()],
            )


def test_links_do_not_lead_out_of_the_file(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    _write_file(tmp_path / "other.h5")
    path = tmp_path / "1000.hdf5"
    _write_file(path, 2)
    with h5py.File(path, "a") as h5:
        h5["9"] = h5py.ExternalLink("other.h5", "/3")
        h5["1/Geom-m1-i1-c1-8"] = h5py.ExternalLink("other.h5", "/3/Geom-m3-i1-c1-1")
        h5["1/Geom-m1-i1-c1-9"] = h5py.SoftLink("/2/Geom-m2-i1-c1-1")
        del h5["2/Geom-m2-i1-c1-3/atXYZ"]
        h5["2/Geom-m2-i1-c1-3/atXYZ"] = h5py.ExternalLink("other.h5", "/2/Geom-m2-i1-c1-3/atXYZ")
    reading = read_all("qm7x", path, duplicates=None)
    assert len(reading.structures) == 7
    assert {reject.source.partition(":/")[2]: reject.reason for reject in reading.rejects} == {
        "9": "link",
        "1/Geom-m1-i1-c1-8": "link",
        "1/Geom-m1-i1-c1-9": "link",
        "2/Geom-m2-i1-c1-3": "external-link",
    }
