"""The sample files: layouts read independently, labels recomputed, the same bytes for the same seed."""

import io
import json
import lzma
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import h5py
import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from gfm.errors import ConfigError
from ingest.readers import READERS
from ingest.sample_data import SAMPLES, write_sample_data
from ingest.sample_pickles import pyg1_pickle

COUNT = 12
SEED = 7
HARTREE = 27.211386245988
KBAR = 0.1 / 160.2176634  # eV/angstrom^3


class Data:
    """Stands for torch_geometric's Data, which is not installed."""


class TorchUnpickler(pickle.Unpickler):
    """Unpickles with the real torch; only the class Data is a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch_geometric.data.data", "Data"):
            return Data
        return super().find_class(module, name)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sample_data(tmp_path_factory.mktemp("raw"), structures_per_source=COUNT, seed=SEED)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slope(energy: Callable[[float], float], step: float = 1e-3) -> float:
    """Return the derivative at 0 by central differences of fourth order."""
    return (8 * (energy(step) - energy(-step)) - (energy(2 * step) - energy(-2 * step))) / (12 * step)


def force_by_difference(atoms: Atoms, calculator: Any, atom: int, axis: int, step: float = 1e-3) -> float:
    def energy(displacement: float) -> float:
        moved = Atoms(atoms.numbers, atoms.positions.copy(), cell=atoms.cell, pbc=atoms.pbc)
        moved.positions[atom, axis] += displacement
        moved.calc = calculator
        return float(moved.get_potential_energy())

    return -slope(energy, step)


def lmdb_records(path: Path) -> list[Data]:
    with (
        tempfile.TemporaryDirectory() as temporary,  # of one path, a process may open LMDB only once
        lmdb.open(shutil.copy(path, temporary), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        length = pickle.loads(transaction.get(b"length"))
        assert transaction.stat()["entries"] == length + 1
        return [TorchUnpickler(io.BytesIO(transaction.get(b"%d" % row))).load() for row in range(length)]


def oc20_frames(folder: Path) -> list[Atoms]:
    frames = []
    for path in sorted(folder.glob("*.extxyz.xz")):
        text = io.StringIO(lzma.decompress(path.read_bytes()).decode())
        frames += ase.io.read(text, ":", format="extxyz")
    return frames


def test_every_folder_says_that_it_is_not_the_published_data(samples: dict[str, Path]) -> None:
    assert list(samples) == ["ani1x", "qm7x", "oc20", "oc22", "mptrj"] == list(SAMPLES)
    for name, path in samples.items():
        folder = next(parent for parent in (path, *path.parents) if parent.name == name)
        note = (folder / "NOTE.txt").read_text()
        assert "NOT THE PUBLISHED" in note
        assert f"{COUNT} structures" in note


def test_ani1x_layout(samples: dict[str, Path]) -> None:
    assert samples["ani1x"].name == "ani1x-release.h5"
    rows = 0
    with h5py.File(samples["ani1x"]) as file:
        assert len(file) > 1
        for formula, group in file.items():
            count, atoms = group["coordinates"].shape[:2]
            rows += count
            numbers = group["atomic_numbers"]
            assert (numbers.dtype, numbers.shape) == (np.uint8, (atoms,))
            counts = Counter(Atoms(numbers[()]).get_chemical_symbols())
            assert formula == "".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))
            for name, dtype, shape in (
                ("coordinates", np.float32, (count, atoms, 3)),
                ("wb97x_dz.energy", np.float64, (count,)),
                ("wb97x_dz.forces", np.float32, (count, atoms, 3)),
                ("wb97x_tz.energy", np.float64, (count,)),
                ("ccsd(t)_cbs.energy", np.float64, (count,)),
            ):
                assert (group[name].dtype, group[name].shape) == (dtype, shape)
            assert np.isfinite(group["wb97x_dz.energy"]).all()
            assert np.isnan(group["wb97x_tz.energy"][1::2]).all()
            assert np.isfinite(group["wb97x_tz.energy"][::2]).all()
    assert rows == COUNT


def test_ani1x_labels_are_gfn2_in_hartree(samples: dict[str, Path]) -> None:
    from tblite.ase import TBLite

    with h5py.File(samples["ani1x"]) as file:
        group = next(iter(file.values()))
        atoms = Atoms(group["atomic_numbers"][()], group["coordinates"][0].astype(float))
        energy, forces = group["wb97x_dz.energy"][0], group["wb97x_dz.forces"][0]
    calculator = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
    atoms.calc = calculator
    assert energy == pytest.approx(atoms.get_potential_energy() / HARTREE, abs=1e-6)
    for axis in range(3):
        expected = force_by_difference(atoms, calculator, 1, axis, step=5e-3) / HARTREE
        assert forces[1, axis] == pytest.approx(expected, abs=2e-4)


def test_qm7x_layout(samples: dict[str, Path]) -> None:
    duplicate = (samples["qm7x"] / "DupMols.dat").read_text().split()
    assert len(duplicate) == 1
    names = []
    for file_name, displaced in (("1000", r"\d"), ("8000", r"d\d")):
        with h5py.File(samples["qm7x"] / f"{file_name}.hdf5") as file:
            for idmol, molecule in file.items():
                for name, frame in molecule.items():
                    names.append(name)
                    assert re.fullmatch(rf"Geom-m{idmol}-i1-c[12]-(opt|{displaced})", name)
                    atoms = len(frame["atNUM"])
                    assert frame["atXYZ"].shape == frame["totFOR"].shape == frame["pbe0FOR"].shape == (atoms, 3)
                    assert frame["ePBE0+MBD"].shape == frame["ePBE0"].shape == frame["eAT"].shape == (1,)
                    assert frame["eAT"][0] < 0  # bound
                    if name.endswith("-opt"):
                        assert np.abs(frame["totFOR"]).max() < 0.02
    prefix = duplicate[0].removesuffix("opt")
    assert duplicate[0] in names
    assert sum(not name.startswith(prefix) for name in names) == COUNT


def test_qm7x_has_two_pairs_of_energy_and_forces(samples: dict[str, Path]) -> None:
    from tblite.ase import TBLite

    with h5py.File(samples["qm7x"] / "1000.hdf5") as file:
        molecule = next(iter(file.values()))
        frame = next(group for name, group in molecule.items() if not name.endswith("opt"))
        atoms = Atoms(frame["atNUM"][()], frame["atXYZ"][()])
        labels = {key: frame[key][()] for key in ("ePBE0+MBD", "totFOR", "ePBE0", "pbe0FOR")}
    for method, energy, forces in (("GFN2-xTB", "ePBE0+MBD", "totFOR"), ("GFN1-xTB", "ePBE0", "pbe0FOR")):
        calculator = TBLite(method=method, accuracy=0.01, verbosity=0)
        atoms.calc = calculator
        assert labels[energy][0] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        expected = force_by_difference(atoms, calculator, 0, 2, step=5e-3)
        assert labels[forces][0, 2] == pytest.approx(expected, abs=5e-3)
    assert np.abs(labels["totFOR"] - labels["pbe0FOR"]).max() > 0.05


def test_oc20_layout(samples: dict[str, Path]) -> None:
    folder = samples["oc20"]
    assert folder.parts[-2:] == ("s2ef_train_200K", "s2ef_train_200K")
    frames = sidecar = 0
    for index in (0, 1):
        text = lzma.decompress((folder / f"{index}.extxyz.xz").read_bytes()).decode().splitlines()
        lines = lzma.decompress((folder / f"{index}.txt.xz").read_bytes()).decode().splitlines()
        place = here = 0
        while place < len(text):
            atoms = int(text[place])
            header = text[place + 1]
            assert "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=" in header
            assert header.endswith('pbc="T T T"')
            for row in text[place + 2 : place + 2 + atoms]:
                columns = row.split()
                assert len(columns) == 9
                assert (columns[4], columns[5]) in {("F", "0"), ("T", "1"), ("T", "2")}
            place += atoms + 2
            here += 1
        assert len(lines) == here
        for line in lines:
            sid, fid, reference = line.split(",")
            assert sid.removeprefix("random").isdigit()
            assert fid.removeprefix("frame").isdigit()
            assert np.isfinite(float(reference))
        frames, sidecar = frames + here, sidecar + len(lines)
    assert frames == sidecar == COUNT


def test_oc20_labels_are_emt_also_of_fixed_atoms(samples: dict[str, Path]) -> None:
    atoms = oc20_frames(samples["oc20"])[0]
    written = atoms.calc.results
    fixed = int(np.flatnonzero(atoms.arrays["tags"] == 0)[0])
    free = int(np.flatnonzero(atoms.arrays["tags"] == 2)[0])
    for atom in (fixed, free):
        expected = force_by_difference(atoms, EMT(), atom, 2)
        assert written["forces"][atom, 2] == pytest.approx(expected, abs=1e-6)
    assert abs(written["forces"][fixed, 2]) > 0.01
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=EMT())
    assert written["energy"] == pytest.approx(bare.get_potential_energy(), abs=1e-7)


def test_oc22_layout_is_read_by_torch_itself(samples: dict[str, Path]) -> None:
    total = 0
    for path in sorted(samples["oc22"].glob("data.*.lmdb")):
        records = lmdb_records(path)
        total += len(records)
        log = path.with_name(path.name.replace("data", "data_log").replace(".lmdb", ".txt"))
        assert len(log.read_text().splitlines()) == len(records)
        for record in records:
            fields = vars(record)
            assert {
                "x",
                "edge_index",
                "edge_attr",
                "y",
                "pos",
                "nads",
                "sid",
                "fid",
                "id",
                "oc22",
            } <= fields.keys()
            assert isinstance(fields["y"], float)
            atoms = fields["natoms"]
            shapes = {
                "pos": (atoms, 3), "cell": (1, 3, 3), "atomic_numbers": (atoms,), "force": (atoms, 3),
                "fixed": (atoms,), "tags": (atoms,),
            }  # fmt: skip
            for name, shape in shapes.items():
                assert tuple(fields[name].shape) == shape
                assert str(fields[name].dtype) == ("torch.int64" if name == "tags" else "torch.float32")
    assert total == COUNT


def test_oc22_labels_are_emt(samples: dict[str, Path]) -> None:
    record = vars(lmdb_records(samples["oc22"] / "data.0000.lmdb")[0])
    numbers = record["atomic_numbers"].numpy().astype(int)
    atoms = Atoms(
        numbers, record["pos"].numpy().astype(float), cell=record["cell"][0].numpy().astype(float), pbc=True
    )
    assert 8 in numbers or 7 in numbers or 6 in numbers
    atoms.calc = EMT()
    assert record["y"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    for atom in (0, len(atoms) - 1):
        expected = force_by_difference(atoms, EMT(), atom, 2)
        assert record["force"][atom, 2].item() == pytest.approx(expected, abs=1e-5)


def test_a_pickle_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="not list"):
        pyg1_pickle({"y": [1.0]})


def mptrj_frames(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    data = json.loads(path.read_text())
    return [(mp_id, frame, record) for mp_id, frames in data.items() for frame, record in frames.items()]


def atoms_of(record: dict[str, Any]) -> Atoms:
    sites = record["structure"]["sites"]
    return Atoms(
        [site["species"][0]["element"] for site in sites],
        scaled_positions=[site["abc"] for site in sites],
        cell=record["structure"]["lattice"]["matrix"],
        pbc=True,
    )


def test_mptrj_layout(samples: dict[str, Path]) -> None:
    frames = mptrj_frames(samples["mptrj"])
    assert len(frames) == COUNT
    keys = {
        "structure", "uncorrected_total_energy", "corrected_total_energy", "energy_per_atom", "ef_per_atom",
        "e_per_atom_relaxed", "ef_per_atom_relaxed", "force", "stress", "magmom", "bandgap", "mp_id",
    }  # fmt: skip
    for mp_id, frame, record in frames:
        assert record.keys() == keys
        assert mp_id.startswith("mp-9")
        assert frame.startswith(f"{mp_id}-0-")
        assert record["mp_id"] == mp_id
        atoms = atoms_of(record)
        assert record["energy_per_atom"] == record["corrected_total_energy"] / len(atoms)
        shift = record["corrected_total_energy"] - record["uncorrected_total_energy"]
        assert shift == pytest.approx(-0.687 * atoms.get_chemical_symbols().count("O"))
        for site, position in zip(record["structure"]["sites"], atoms.positions, strict=True):
            np.testing.assert_allclose(site["xyz"], position, atol=1e-9)


def test_mptrj_labels_are_emt_with_the_stress_of_vasp(samples: dict[str, Path]) -> None:
    record = mptrj_frames(samples["mptrj"])[0][2]
    atoms = atoms_of(record)
    for axis in range(3):
        expected = force_by_difference(atoms, EMT(), 1, axis)
        assert record["force"][1][axis] == pytest.approx(expected, abs=1e-6)

    def energy(strain: float) -> float:
        strained = atoms.copy()
        strained.set_cell(np.array(atoms.cell) @ np.diag([1.0, 1.0, 1.0 + strain]), scale_atoms=True)
        strained.calc = EMT()
        return float(strained.get_potential_energy())

    # VASP prints pressure-like components: compressed is positive, and in kBar.
    assert record["stress"][2][2] == pytest.approx(-slope(energy) / atoms.get_volume() / KBAR, abs=1e-3)


def test_magnetic_moments_are_null_for_some(tmp_path: Path) -> None:
    path = write_sample_data(tmp_path, structures_per_source=60, seed=SEED, sources=["mptrj"])["mptrj"]
    moments = {record["magmom"] is None for _, _, record in mptrj_frames(path)}
    assert moments == {True, False}


def test_forces_are_worth_learning(samples: dict[str, Path]) -> None:
    forces: dict[str, list[Any]] = {name: [] for name in samples}
    with h5py.File(samples["ani1x"]) as file:
        forces["ani1x"] = [group["wb97x_dz.forces"][()].ravel() * HARTREE for group in file.values()]
    for path in samples["qm7x"].glob("*.hdf5"):
        with h5py.File(path) as file:
            forces["qm7x"] += [frame["totFOR"][()].ravel() for mol in file.values() for frame in mol.values()]
    forces["oc20"] = [atoms.calc.results["forces"].ravel() for atoms in oc20_frames(samples["oc20"])]
    for path in samples["oc22"].glob("*.lmdb"):
        forces["oc22"] += [vars(record)["force"].numpy().ravel() for record in lmdb_records(path)]
    forces["mptrj"] = [np.ravel(record["force"]) for _, _, record in mptrj_frames(samples["mptrj"])]
    for name, parts in forces.items():
        components = np.abs(np.concatenate(parts))
        assert (components > 0.5).mean() > 0.1, name
        assert components.max() < 26, name


@pytest.mark.parametrize("name", list(SAMPLES))
def test_the_readers_take_all_of_it(name: str, samples: dict[str, Path]) -> None:
    reader = READERS.get(name)()
    blocks = [block for part in reader.plan(str(samples[name]), 4096) for block in reader.read(part)]
    assert sum(len(block.batch) for block in blocks) == COUNT
    reasons = {reject.reason for block in blocks for reject in block.rejects}
    assert reasons == ({"duplicate"} if name == "qm7x" else set())
    for structure in (structure for block in blocks for structure in block.batch):
        assert structure.energy is not None
        assert structure.forces is not None
        assert (structure.stress is not None) == (name == "mptrj")
        assert (structure.fixed is not None) == (name in {"oc20", "oc22"})


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    samples: dict[str, Path], tmp_path: Path
) -> None:
    first = samples["ani1x"].parents[1]
    write_sample_data(tmp_path / "again", structures_per_source=COUNT, seed=SEED)
    assert files_of(tmp_path / "again") == files_of(first)
    write_sample_data(tmp_path / "other", structures_per_source=COUNT, seed=SEED + 1, sources=["mptrj"])
    assert files_of(tmp_path / "other" / "mptrj") != files_of(first / "mptrj")


def test_the_command_writes_the_same_and_prints_where(samples: dict[str, Path], tmp_path: Path) -> None:
    gfm = Path(sys.executable).with_name("gfm")
    command = [gfm, "sample-data", tmp_path, "--structures", COUNT, "--seed", SEED, "--only", "ani1x", "--json"]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"ani1x": str(tmp_path / "ani1x" / "ani1x-release.h5")}
    assert files_of(tmp_path / "ani1x") == files_of(samples["ani1x"].parent)


def test_an_old_sample_is_replaced_and_other_things_are_not(tmp_path: Path) -> None:
    write_sample_data(tmp_path, structures_per_source=3, seed=1, sources=["mptrj"])
    path = write_sample_data(tmp_path, structures_per_source=2, seed=1, sources=["mptrj"])["mptrj"]
    assert len(mptrj_frames(path)) == 2
    mine = tmp_path / "oc20" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(ConfigError, match="oc20 exists and is no sample"):
        write_sample_data(tmp_path, structures_per_source=2, sources=["oc20"])
    assert mine.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"sources": ["qm7"]}, "Did you mean 'qm7x'"), ({"structures_per_source": 0}, "at least 1, got 0")],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        write_sample_data(tmp_path, **arguments)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_samples_have_what_was_asked_for(count: int, tmp_path: Path) -> None:
    paths = write_sample_data(tmp_path, structures_per_source=count, seed=3)
    assert len(mptrj_frames(paths["mptrj"])) == count
    assert len(oc20_frames(paths["oc20"])) == count
    assert sum(len(lmdb_records(path)) for path in paths["oc22"].glob("*.lmdb")) == count
