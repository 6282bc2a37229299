"""QM7-X: every frame, pairs of energy and forces, duplicates left out."""

import logging
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError, MissingDataError
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


def test_a_packed_file_says_how_to_unpack_it(tmp_path: Path) -> None:
    (tmp_path / "1000.xz").write_bytes(lzma.compress(b"\x89HDF"))
    with pytest.raises(DataError, match=r"xz -dk 1000\.xz"):
        Qm7x(duplicates=None).plan(str(tmp_path), 1 << 20)


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
