"""Extended XYZ: genuine files against ASE, keys and units by option, packed files, damage."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
import pydantic
import pytest
from ase import Atoms

from ingest.readers.base import hash_id
from ingest.readers.extxyz import ExtXyz

HARTREE, BOHR, KCAL = 27.211386245988, 0.529177210903, 4184.0 / 6.02214076e23 / 1.602176634e-19
WATER = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-2.0 pbc="F F F"
O 0.0 0.0 0.0 1.0 0.0 0.0
H 0.9 0.0 0.0 -1.0 0.0 0.0
H 0.0 0.9 0.0 0.0 0.0 2.5e-1
"""
CELL = 'Lattice="2 0 0 0 2 0 0 0 2" '


def _hill(atoms: Atoms) -> str:
    """Return Hill's formula; ASE's puts hydrogen first where there is no carbon."""
    counts = atoms.symbols.formula.count()
    order = sorted(counts, key=lambda symbol: (symbol not in ("C", "H"), symbol) if "C" in counts else symbol)
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in order)


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "options", "count"),
    [
        ("mattersim-mptrj-alexandria/mptrj-random-1k.xyz", {"group_key": "mptrj_traj_id"}, 1000),
        ("mattersim-mptrj-alexandria/mptrj-highest-stress-1k.xyz", {}, 1000),
        ("mattersim-mptrj-alexandria/alexandria-random-1k.xyz", {"id_key": "alexandria_id"}, 1000),
        ("botnet-3bpa-acac/dataset_3BPA_train_300K.xyz", {}, 500),
        ("botnet-3bpa-acac/dataset_3BPA_train_mixedT.xyz", {}, 500),
        ("botnet-3bpa-acac/dataset_acac_train_300K.xyz", {}, 500),
        ("metatrain-fixtures/carbon_reduced_100.xyz", {}, 100),
        ("metatrain-fixtures/ethanol_reduced_100.xyz", {"energy_unit": "kcal/mol"}, 100),
        ("ocp-fixtures/toy_c3h8_relax.extxyz", {}, 101),
    ],
)
def test_every_frame_is_read_as_ase_reads_it(
    file: str, options: dict[str, Any], count: int, shared_data: Path,
    read_all: Callable[..., Any], same: Callable[..., None],
) -> None:  # fmt: skip
    reading = read_all("extxyz", shared_data / file, part_bytes=200_000, **options)
    assert reading.rejects == []
    assert len(reading.structures) == count
    unit = KCAL if options.get("energy_unit") else 1.0
    frames = ase.io.read(shared_data / file, ":", format="extxyz")
    for structure, atoms in zip(reading.structures.values(), frames, strict=True):
        results = atoms.calc.results
        forces = results.get("forces", atoms.arrays.get("force"))
        stress = results.get("stress")
        if stress is not None:
            stress = stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        elif "virial" in atoms.info:
            stress = -np.asarray(atoms.info["virial"]) / atoms.get_volume()
            np.testing.assert_allclose(structure.stress, stress, rtol=1e-6)
            stress = structure.stress
        same(
            structure,
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=results["energy"] * unit,
            forces=forces * unit,
            stress=stress,
        )
        if "group_key" in options:
            assert structure.group == hash_id(f"extxyz:{atoms.info['mptrj_traj_id']}")
        else:
            assert structure.group == hash_id(f"formula:{_hill(atoms)}")


@pytest.mark.data
@pytest.mark.parametrize("file", ["qm7x_reduced_100.xyz", "qm9_reduced_100.xyz"])
def test_files_without_the_labels_are_refused_frame_by_frame(
    file: str, shared_data: Path, read_all: Callable[..., Any]
) -> None:
    path = shared_data / "metatrain-fixtures" / file
    assert read_all("extxyz", path).reasons == {"missing-energy": 100}


@pytest.mark.data
def test_an_energy_under_another_key_and_no_forces(shared_data: Path, read_all: Callable[..., Any]) -> None:
    path = shared_data / "metatrain-fixtures" / "qm9_reduced_100.xyz"
    assert read_all("extxyz", path, energy_key="U0").reasons == {"missing-forces": 100}
    reading = read_all("extxyz", path, energy_key="U0", energy_unit="hartree", require_forces=False)
    methane = next(iter(reading.structures.values()))
    assert methane.energy == -40.47893 * HARTREE
    assert methane.forces is None
    assert len(reading.structures) == 100


@pytest.mark.parametrize(
    ("options", "energy", "force"),
    [
        ({}, 1.0, 1.0),
        ({"energy_unit": "kcal/mol"}, KCAL, KCAL),
        ({"energy_unit": "kJ/mol"}, KCAL / 4.184, KCAL / 4.184),
        ({"energy_unit": "hartree"}, HARTREE, HARTREE),
        ({"energy_unit": "hartree", "forces_unit": "hartree/bohr"}, HARTREE, HARTREE / BOHR),
        ({"energy_unit": "hartree", "length_unit": "bohr"}, HARTREE, HARTREE / BOHR),
        ({"energy_unit": "meV", "forces_unit": "eV/angstrom"}, 1e-3, 1.0),
    ],
)
def test_units(
    options: dict[str, str], energy: float, force: float, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "a.xyz").write_text(WATER)
    (water,) = read_all("extxyz", tmp_path, **options).structures.values()
    length = BOHR if options.get("length_unit") == "bohr" else 1.0
    assert water.energy == pytest.approx(-2.0 * energy, rel=1e-9)
    assert water.forces[0, 0] == pytest.approx(force, rel=1e-6)
    assert water.forces[2, 2] == pytest.approx(0.25 * force, rel=1e-6)
    assert water.positions[1, 0] == pytest.approx(0.9 * length, rel=1e-6)
    # ASE's constants are CODATA 2014: the same to eight digits
    assert pytest.approx(ase.units.kcal / ase.units.mol, rel=1e-7) == KCAL
    assert pytest.approx(ase.units.Hartree, rel=1e-7) == HARTREE


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ('stress="1 6 5 6 2 4 5 4 3"', {}, [[1, 6, 5], [6, 2, 4], [5, 4, 3]]),
        ('stress="1 2 3 4 5 6"', {}, [[1, 6, 5], [6, 2, 4], [5, 4, 3]]),
        ("stress=[[1,6,5],[6,2,4],[5,4,3]]", {}, [[1, 6, 5], [6, 2, 4], [5, 4, 3]]),
        ('stress="16.02176634 0 0 0 0 0"', {"stress_unit": "GPa"}, np.diag([0.1, 0, 0])),
        (
            'stress="160.2176634 0 0 0 0 0"',
            {"stress_unit": "kbar", "stress_sign": "compression"},
            np.diag([-0.1, 0, 0]),
        ),
        ('virial="8 0 0 0 16 0 0 0 24"', {}, np.diag([-1, -2, -3])),
        ('virial="8 0 0 0 16 0 0 0 24"', {"virial_key": None}, None),
        ('stress="1 2 3 4 5 6"', {"stress_key": None}, None),
        ('dft_stress="1 1 1 0 0 0"', {"stress_key": "dft_stress"}, np.eye(3)),
    ],
)
def test_stress_and_virial(
    header: str, options: dict[str, Any], expected: Any, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "a.xyz").write_text(WATER.replace("Properties", f"{CELL}{header} Properties"))
    (water,) = read_all("extxyz", tmp_path, **options).structures.values()
    if expected is None:
        assert water.stress is None
    else:
        np.testing.assert_allclose(water.stress, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", [False] * 3),
        (CELL, [True] * 3),
        (CELL + 'pbc="T T F"', [True, True, False]),
        (CELL + 'pbc="1 0 1"', [True, False, True]),
        (CELL + "pbc=[True,False,False]", [True, False, False]),
        (CELL + "pbc='F F F'", [False] * 3),
    ],
)
def test_periodicity(header: str, expected: list[bool], tmp_path: Path, read_all: Callable[..., Any]) -> None:
    text = WATER.replace(' pbc="F F F"', "").replace("Properties", f"{header} Properties")
    (tmp_path / "a.xyz").write_text(text)
    (water,) = read_all("extxyz", tmp_path).structures.values()
    assert water.pbc.tolist() == expected


def test_charge_spin_and_move_mask(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    text = WATER.replace("forces:R:3", "forces:R:3:move_mask:L:1").replace("energy", "charge=-1 spin=2 energy")
    lines = text.splitlines()
    (tmp_path / "a.xyz").write_text(
        "\n".join([*lines[:2], *(f"{row} {mask}" for row, mask in zip(lines[2:], "TFT", strict=True))]) + "\n"
    )
    (water,) = read_all("extxyz", tmp_path).structures.values()
    assert (water.charge, water.spin, water.fixed.tolist()) == (-1, 2, [False, True, False])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("energy=-2.0", "energy=nan", "nan-energy"),
        ("energy=-2.0", "energy=much", "bad-energy"),
        ("energy=-2.0", "other=-2.0", "missing-energy"),
        (":forces:R:3", ":velocities:R:3", "missing-forces"),
        ("O 0.0", "Qq 0.0", "bad-atomic-number"),
        ("-1.0 0.0 0.0", "-1.0 inf 0.0", "infinite-forces"),
        ("-1.0 0.0 0.0", "-1.0 x 0.0", "bad-forces"),
        ("-1.0 0.0 0.0", "-1.0 0.0", "bad-frame"),
        ("-1.0 0.0 0.0", "-1.0 0.0 0.0 0.0", "bad-frame"),
        ("pos:R:3", "pos:R:x", "bad-header"),
        ("energy", 'Lattice="1 2 3" energy', "bad-cell"),
        ('pbc="F F F"', 'pbc="F F"', "bad-pbc"),
        ('pbc="F F F"', 'pbc="T T T"', "flat-cell"),
        ("energy", "energy_unit=hartree energy", "other-unit"),
        ("energy", "forces_unit=kcal/mol/A energy", "other-unit"),
        ("energy", "charge=0.5 energy", "bad-charge"),
        ("energy", "\udcff energy", "bad-header"),
    ],
)
def test_a_bad_frame_costs_that_frame(
    old: str, new: str, reason: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    text = WATER + WATER.replace(old, new, 1) + WATER
    (tmp_path / "a.xyz").write_text(text, errors="surrogateescape")
    reading = read_all("extxyz", tmp_path)
    assert reading.reasons == {reason: 1}
    assert len(reading.structures) == 2
    (reject,) = reading.rejects
    assert reject.source == f"{tmp_path / 'a.xyz'}@{len(WATER)}"


@pytest.mark.parametrize(
    ("text", "kept", "reasons"),
    [
        (WATER + WATER[:-30], 1, {"truncated-file": 1}),
        (WATER + WATER[:-1], 1, {"truncated-file": 1}),  # cut behind or inside the last number: who knows
        (WATER + "rubbish\n" + WATER, 2, {"bad-frame": 1}),
        (WATER.replace("3\n", "2\n", 1) + WATER, 1, {"bad-frame": 1}),
        (WATER.replace("3\n", "4\n", 1) + WATER, 1, {"bad-frame": 1}),
        (WATER + "\n\n" + WATER + "\n", 2, {}),
        ("0\nProperties=species:S:1:pos:R:3 energy=0\n" + WATER, 1, {"missing-numbers": 0}),
        ("x" * (3 << 20), 0, {"corrupt-file": 1}),
        ("", 0, {}),
    ],
)
def test_damage_between_frames(
    text: str, kept: int, reasons: dict[str, int], tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    (tmp_path / "a.xyz").write_text(text)
    reading = read_all("extxyz", tmp_path)
    assert len(reading.structures) == kept
    if reasons != {"missing-numbers": 0}:
        assert reading.reasons == reasons
    else:
        assert reading.reasons == {"no-atoms": 1}


def test_packed_files(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    data = (WATER * 5).encode()
    (tmp_path / "a.xyz").write_bytes(data)
    (tmp_path / "b.xyz.xz").write_bytes(lzma.compress(data))
    (tmp_path / "c.extxyz.gz").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "d.xyz.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.xyz", data)
        archive.writestr("two.xyz", data)
    (tmp_path / "e.xyz.bz2").write_bytes(bz2.compress(data))  # not one of the packings that are read
    reading = read_all("extxyz", tmp_path, part_bytes=len(WATER) * 2)
    assert len(reading.parts) == 3 + 1 + 1 + 2
    assert reading.rejects == []
    assert len(reading.structures) == 25
    assert len({structure.key for structure in reading.structures.values()}) == 25


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_a_cut_packed_file_keeps_what_came_before(
    pack: Callable[[bytes], bytes], tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(0)
    text = "".join(WATER.replace("0.9", f"{value:.15f}") for value in rng.random(400))
    packed = pack(text.encode())
    (tmp_path / "a.xyz.xz").write_bytes(packed[: len(packed) * 2 // 3])
    reading = read_all("extxyz", tmp_path)
    assert reading.reasons == {"truncated-file": 1}
    assert 100 < len(reading.structures) < 400


@pytest.mark.parametrize("unit", ["kcal/mol", "eV/furlong", "newton"])
def test_an_unknown_unit_names_the_known_ones(unit: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"kcal/mol/angstrom"):
        ExtXyz(forces_unit=unit)


def test_a_group_that_is_not_there_is_refused(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    (tmp_path / "a.xyz").write_text(WATER)
    assert read_all("extxyz", tmp_path, group_key="traj").reasons == {"missing-group": 1}
    assert read_all("extxyz", tmp_path, id_key="id").reasons == {"missing-id": 1}


def test_what_ase_writes_is_read(
    tmp_path: Path, read_all: Callable[..., Any], same: Callable[..., None]
) -> None:
    from ase.build import bulk, molecule
    from ase.calculators.emt import EMT

    copper, water = bulk("Cu").repeat((2, 1, 1)), molecule("CH4")
    copper.rattle(0.05, seed=1)
    for atoms in (copper, water):
        atoms.calc = EMT()
        atoms.get_forces()
    copper.get_stress()
    text = io.StringIO()
    ase.io.write(text, [copper, water], format="extxyz")
    (tmp_path / "a.xyz").write_text(text.getvalue())
    first, second = read_all("extxyz", tmp_path).structures.values()
    same(first, numbers=copper.numbers, energy=copper.get_potential_energy(), pbc=copper.pbc)
    np.testing.assert_allclose(first.stress, copper.get_stress(voigt=False), atol=1e-6)
    same(second, numbers=water.numbers, pbc=water.pbc, stress=None)
