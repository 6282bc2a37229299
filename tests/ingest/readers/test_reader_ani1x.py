"""ANI-1x: every conformer, converted, by arrays; what is missing is refused one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gfm.errors import CorruptDataError, DataError
from ingest.readers.ani1x import Ani1x
from ingest.readers.base import hash_id

HARTREE = 27.211386245988


@pytest.mark.data
def test_every_conformer_is_read_as_h5py_reads_it(
    shared_data: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    path = shared_data / "synthetic-ani1x" / "ani1x-synthetic-gfn2.h5"
    reading = read_all("ani1x", path)
    assert reading.rejects == []
    assert len(reading.structures) == 464
    with h5py.File(path) as h5:
        assert sum(len(group["coordinates"]) for group in h5.values()) == 464
        for name, group in h5.items():
            for row in range(len(group["coordinates"])):
                structure = reading.structures[f"{path}:/{name}[{row}]"]
                same(
                    structure,
                    numbers=group["atomic_numbers"][()],
                    positions=group["coordinates"][row],
                    energy=group["wb97x_dz.energy"][row] * HARTREE,
                    forces=group["wb97x_dz.forces"][row].astype(np.float64) * HARTREE,
                    cell=np.zeros((3, 3)),
                    pbc=np.zeros(3, dtype=bool),
                    charge=0,
                    spin=1,
                    stress=None,
                )
                assert structure.key == hash_id(f"ani1x:{name}/{row}")
    groups = {structure.group for structure in reading.structures.values()}
    assert len(groups) == 43
    assert reading.structures[f"{path}:/C1H1N1[0]"].group == hash_id("formula:CHN")


@pytest.mark.data
def test_damaged_records_are_refused_with_their_reason(shared_data: Path, read_all: Callable[..., Any]) -> None:
    reading = read_all("ani1x", shared_data / "synthetic-ani1x" / "bad" / "ani1x-bad-records.h5")
    where = {reject.reason: reject.source.partition(":/")[2] for reject in reading.rejects}
    assert where["nan-energy"] == "C1H1N1[1]"
    assert where["nan-forces"] == "C1H2[2]"
    assert where["infinite-energy"] == "C1H2O2[0]"
    assert where["no-atoms"] == "C0H0"
    assert reading.reasons == {
        "nan-energy": 1, "nan-forces": 1, "infinite-energy": 1, "missing-forces": 16, "no-atoms": 1,
    }  # fmt: skip
    assert reading.total == 56 + 1  # the empty formula has no conformer, and is mentioned all the same


@pytest.mark.data
def test_a_cut_file_is_named(shared_data: Path) -> None:
    path = shared_data / "synthetic-ani1x" / "bad" / "ani1x-truncated.h5"
    (part,) = Ani1x().plan(str(path), 1 << 20)
    assert part.nbytes == path.stat().st_size
    with pytest.raises(CorruptDataError, match=r"ani1x-truncated\.h5.*truncated file"):
        next(Ani1x().read(part))


@pytest.mark.data
def test_levels_of_theory_may_be_chosen(shared_data: Path, read_all: Callable[..., Any]) -> None:
    path = shared_data / "synthetic-ani1x" / "ani1x-synthetic-gfn2.h5"
    with h5py.File(path) as h5:
        expected = sum(int(np.isfinite(group["ccsd(t)_cbs.energy"][()]).sum()) for group in h5.values())
    reading = read_all("ani1x", path, level_of_theory="ccsd(t)_cbs", require_forces=False)
    assert 0 < len(reading.structures) == expected < 464
    assert reading.reasons == {"nan-energy": 464 - expected}
    assert all(structure.forces is None for structure in reading.structures.values())
    refused = read_all("ani1x", path, level_of_theory="ccsd(t)_cbs")
    assert refused.reasons == {"missing-forces": 464}


@pytest.mark.data
def test_an_unknown_level_names_those_that_are_there(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"wb97x_qz.*ccsd\(t\)_cbs, wb97x_dz, wb97x_tz"):
        Ani1x(level_of_theory="wb97x_qz").plan(str(shared_data / "synthetic-ani1x"), 1 << 20)


def test_units_and_variants(tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]) -> None:
    path = tmp_path / "ani1x-release.h5"
    with h5py.File(path, "w") as h5:
        group = h5.create_group("H2O1")
        group["atomic_numbers"] = np.array([[8, 1, 1], [1, 8, 1]], dtype=np.uint8)  # one row per conformer
        group["coordinates"] = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
        group["wb97x_dz.energy"] = np.array([[-1.0], [-2.0]])
        group["wb97x_dz.forces"] = np.stack([np.ones((3, 3)), np.full((3, 3), np.nan)]).astype(np.float32)
    first, second = read_all("ani1x", path, require_forces=False).structures.values()
    same(first, energy=-HARTREE, forces=np.full((3, 3), HARTREE), numbers=[8, 1, 1])
    same(
        second,
        energy=-2 * HARTREE,
        forces=None,
        numbers=[1, 8, 1],
        positions=np.arange(9, 18).reshape(3, 3) * 1.0,
    )
    assert first.group == second.group == hash_id("formula:H2O")
    assert read_all("ani1x", path).reasons == {"nan-forces": 1}


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["numbers"] = np.zeros(3)
    with pytest.raises(DataError, match=r"other\.h5.*one group per formula"):
        Ani1x().plan(str(tmp_path), 1 << 20)


def test_a_formula_without_coordinates_does_not_vanish(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "ani1x-release.h5"
    with h5py.File(path, "w") as h5:
        for name in ("H2", "H3"):
            group = h5.create_group(name)
            group["atomic_numbers"] = np.ones(int(name[1]), dtype=np.uint8)
            group["wb97x_dz.energy"] = np.zeros(2)
            group["wb97x_dz.forces"] = np.zeros((2, int(name[1]), 3), dtype=np.float32)
        h5["H2/coordinates"] = np.zeros((2, 2, 3), dtype=np.float32)
        h5["H4"] = h5py.ExternalLink("elsewhere.h5", "/H4")
    reading = read_all("ani1x", path)
    assert len(reading.structures) == 2
    assert {reject.source: reject.reason for reject in reading.rejects} == {
        f"{path}:/H3": "missing-positions",
        f"{path}:/H4": "external-link",
    }


def test_a_level_of_theory_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ani1x-release.h5"
    with h5py.File(path, "w") as h5:
        h5["H2/coordinates"] = np.zeros((2, 2, 3), dtype=np.float32)
        h5["H2/wb97x_tz.energy"] = np.zeros(2)
    with pytest.raises(DataError, match=r"no group holds 'wb97x_dz\.energy'; .*this file: wb97x_tz"):
        Ani1x().plan(str(path), 1 << 20)
