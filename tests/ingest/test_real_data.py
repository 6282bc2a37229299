"""Whole ingestion of every sample folder, against independent readings: nothing lost, nothing changed.

The files are read a second time with ASE, h5py, json and torch itself, with unit constants of this file. What
the dataset gives back must be the same: forces to the last bit of float32, energies to the last of float64.
"""

import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import h5py
import lmdb
import numpy as np
import pytest
from ase.data import atomic_numbers
from numpy.typing import NDArray

import store
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.build import build
from ingest.recipe import Recipe

pytestmark = [pytest.mark.data, pytest.mark.slow]

HARTREE = 27.211386245988  # eV, CODATA 2018
KCAL_PER_MOL = 4184.0 / (6.02214076e23 * 1.602176634e-19)  # eV
KBAR = 1e8 * 1e-30 / 1.602176634e-19  # eV/angstrom^3

# Name of a source: reader, path below the sample data, options of the reader.
SOURCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ani1x": ("ani1x", "synthetic-ani1x/ani1x-synthetic-gfn2.h5", {}),
    "qm7x": ("qm7x", "synthetic-qm7x", {}),
    "oc20": ("oc20", "synthetic-oc20/s2ef_train_synthetic", {}),
    "oc20-pyg1": ("oc20", "synthetic-oc20/lmdb_pyg1", {}),
    "oc20-pyg2": ("oc20", "synthetic-oc20/lmdb_pyg2", {}),
    "oc20-unlabelled": ("oc20", "synthetic-oc20/lmdb_test_nolabels", {}),
    "oc22": ("oc22", "synthetic-oc22", {}),
    "mptrj": ("mptrj", "synthetic-mptrj/MPtrj_2022.9_full.json", {}),
    "mptrj-native": ("mptrj", "mptrj-excerpt-native/MPtrj_excerpt_11frames_full_fields.json", {}),
    "mptrj-random": (
        "mptrj",
        "mptrj-excerpt-native/MPtrj_excerpt_random-1k_uncorrected_only.json.gz",
        {"label": "uncorrected_total_energy"},
    ),
    "mptrj-stress": (
        "mptrj",
        "mptrj-excerpt-native/MPtrj_excerpt_highest-stress-1k_uncorrected_only.json.gz",
        {"label": "uncorrected_total_energy"},
    ),
    "xyz-random": ("extxyz", "mattersim-mptrj-alexandria/mptrj-random-1k.xyz", {}),
    "xyz-stress": ("extxyz", "mattersim-mptrj-alexandria/mptrj-highest-stress-1k.xyz", {}),
    "alexandria": ("extxyz", "mattersim-mptrj-alexandria/alexandria-random-1k.xyz", {}),
    "3bpa": ("extxyz", "botnet-3bpa-acac/dataset_3BPA_*.xyz", {}),
    "acac": ("extxyz", "botnet-3bpa-acac/dataset_acac_train_300K.xyz", {}),
    "carbon": ("extxyz", "metatrain-fixtures/carbon_reduced_100.xyz", {"forces_key": "force"}),
    "ethanol": (
        "extxyz",
        "metatrain-fixtures/ethanol_reduced_100.xyz",
        {"energy_unit": "kcal/mol", "forces_unit": "kcal/mol/angstrom"},
    ),
}

# What SOURCE.txt and NOTE-SYNTHETIC.txt say: structures, and refused records by reason.
COUNTS: dict[str, tuple[int, int]] = {
    "ani1x": (464, 0),
    "qm7x": (378, 6),  # 384 frames; DupMols.dat names one molecule of six
    "oc20": (200, 0),
    "oc20-pyg1": (200, 0),
    "oc20-pyg2": (60, 0),
    "oc20-unlabelled": (0, 20),
    "oc22": (112, 0),
    "mptrj": (192, 0),
    "mptrj-native": (11, 0),
    "mptrj-random": (1000, 0),
    "mptrj-stress": (1000, 0),
    "xyz-random": (1000, 0),
    "xyz-stress": (1000, 0),
    "alexandria": (1000, 0),
    "3bpa": (1000, 0),
    "acac": (500, 0),
    "carbon": (100, 0),
    "ethanol": (100, 0),
}


@dataclass
class Frame:
    """One structure as read independently, in eV and angstrom."""

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    energy: float
    forces: NDArray[np.float32]
    cell: NDArray[np.float64]
    pbc: tuple[bool, bool, bool] = (False, False, False)
    stress: NDArray[np.float64] | None = None
    fixed: NDArray[np.bool_] | None = None

    @property
    def labels(self) -> tuple[bytes, bytes, bytes]:
        """Bits of what must be exact: numbers, energy, forces."""
        return (
            np.asarray(self.numbers, np.uint8).tobytes(),
            np.float64(self.energy).tobytes(),
            np.asarray(self.forces, np.float32).tobytes(),
        )


class TorchData:
    """Stands for torch_geometric's Data; takes the state of PyG 1 and PyG 2."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state.get("_store", TorchData()).__dict__.get("_mapping", {}) or state)


class TorchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch_geometric"):
            return TorchData
        return super().find_class(module, name)


def read_ani1x(path: Path) -> Iterator[Frame]:
    with h5py.File(path) as file:
        for group in file.values():
            energies = group["wb97x_dz.energy"][()] * HARTREE
            forces = (group["wb97x_dz.forces"][()].astype(np.float64) * HARTREE).astype(np.float32)
            for row, energy in enumerate(energies):
                yield Frame(
                    group["atomic_numbers"][()],
                    group["coordinates"][row],
                    energy,
                    forces[row],
                    np.zeros((3, 3)),
                )


def read_qm7x(folder: Path) -> Iterator[Frame]:
    doubles = [name.removesuffix("opt") for name in (folder / "DupMols.dat").read_text().split()]
    for path in folder.glob("*.hdf5"):
        with h5py.File(path) as file:
            for molecule in file.values():
                for name, frame in molecule.items():
                    if not name.startswith(tuple(doubles)):
                        yield Frame(
                            frame["atNUM"][()].astype(np.uint8),
                            frame["atXYZ"][()].astype(np.float32),
                            float(frame["ePBE0+MBD"][0]),
                            frame["totFOR"][()].astype(np.float32),
                            np.zeros((3, 3)),
                        )


def read_xyz(text: str, forces_key: str = "forces", unit: float = 1.0) -> Iterator[Frame]:
    for atoms in ase.io.read(io.StringIO(text), ":", format="extxyz"):
        results = atoms.calc.results
        forces = results[forces_key] if forces_key in results else atoms.arrays[forces_key]
        mask = atoms.arrays.get("move_mask")
        yield Frame(
            atoms.numbers.astype(np.uint8),
            atoms.positions.astype(np.float32),
            float(results["energy"]) * unit,
            (forces * unit).astype(np.float32),
            np.array(atoms.cell),
            tuple(atoms.pbc.tolist()),
            atoms.get_stress(voigt=False) if "stress" in results else None,
            None if mask is None else ~mask,
        )


def read_oc20_text(folder: Path) -> Iterator[Frame]:
    for path in folder.rglob("*.extxyz.xz"):
        text = lzma.decompress(path.read_bytes()).decode()
        masks = [row.split()[4] == "F" for row in text.splitlines() if len(row.split()) == 9]
        start = 0
        for frame in read_xyz(text):
            stop = start + len(frame.numbers)
            frame.fixed = np.array(masks[start:stop])
            start = stop
            yield frame


def read_lmdb(folder: Path) -> Iterator[Frame]:
    for path in folder.glob("*.lmdb"):
        with (
            tempfile.TemporaryDirectory() as temporary,  # of one path, a process may open LMDB only once
            lmdb.open(shutil.copy(path, temporary), subdir=False, readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                if key == b"length":
                    continue
                record = vars(TorchUnpickler(io.BytesIO(value)).load())
                yield Frame(
                    record["atomic_numbers"].numpy().astype(np.uint8),
                    record["pos"].numpy(),
                    float(record["y"] if record.get("y") is not None else record["energy"]),
                    (record["force"] if record.get("force") is not None else record["forces"]).numpy(),
                    record["cell"][0].numpy().astype(np.float64),
                    (True, True, True),
                    fixed=record["fixed"].numpy().astype(bool),
                )


def read_mptrj(path: Path, label: str = "corrected_total_energy") -> Iterator[Frame]:
    raw = path.read_bytes()
    data = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    for frames in data.values():
        for record in frames.values():
            sites = record["structure"]["sites"]
            yield Frame(
                np.array([atomic_numbers[site["species"][0]["element"]] for site in sites], np.uint8),
                np.array([site["xyz"] for site in sites], np.float32),
                record[label],
                np.array(record["force"]).astype(np.float32),
                np.array(record["structure"]["lattice"]["matrix"], np.float64),
                (True, True, True),
                None if record["stress"] is None else -KBAR * np.array(record["stress"]),
            )


def expected_frames(name: str, data: Path) -> list[Frame]:
    reader, pattern, options = SOURCES[name]
    if name == "oc20-unlabelled":
        return []
    if reader == "extxyz":
        unit = KCAL_PER_MOL if "energy_unit" in options else 1.0
        paths = sorted(data.glob(pattern))
        key = options.get("forces_key", "forces")
        return [frame for path in paths for frame in read_xyz(path.read_text(), key, unit)]
    path = data / pattern
    if reader == "mptrj":
        return list(read_mptrj(path, **options))
    if name == "oc20":
        return list(read_oc20_text(path))
    if reader in {"oc20", "oc22"}:
        return list(read_lmdb(path))
    return list({"ani1x": read_ani1x, "qm7x": read_qm7x}[reader](path))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with open_client(ClusterConfig(processes=False, workers=1, threads=2, dashboard=None)) as started:
        yield started


def run(output: Path, client: Any, sources: list[dict[str, Any]], **settings: Any) -> store.Dataset:
    # Every record is looked for again: nothing is left out for being odd, or there twice.
    everything = {"duplicates": "keep", "filters": {"outliers": None}}
    data = {"output": str(output), "sources": sources, **everything, **settings}
    recipe = parse_config(Recipe, data, "test")
    build(recipe, client=client)
    return store.open_dataset(output, verify=True)


def rejects_of(dataset: store.Dataset) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(Path(dataset.path).glob("rejects/*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module", params=["adios", "zarr"])
def everything(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_data: Path, client: Any
) -> store.Dataset:
    sources = [
        {"name": name, "reader": reader, "path": str(shared_data / path), "options": options}
        for name, (reader, path, options) in SOURCES.items()
    ]
    output = tmp_path_factory.mktemp("data") / request.param
    return run(output, client, sources, format=request.param, part_bytes="1MiB")


def rows_of(dataset: store.Dataset, name: str) -> NDArray[np.int64]:
    return np.flatnonzero(dataset.dataset_index == dataset.dataset_names.index(name))


def test_counts_are_what_the_notes_say(everything: store.Dataset) -> None:
    rejects = Counter(reject["dataset"] for reject in rejects_of(everything))
    found = {name: (len(rows_of(everything, name)), rejects[name]) for name in everything.dataset_names}
    assert found == COUNTS
    in_manifest = {
        entry.name: (entry.structures, sum(entry.rejected.values())) for entry in everything.manifest.datasets
    }
    assert in_manifest == COUNTS
    assert len(everything) == sum(structures for structures, _ in COUNTS.values())


def test_every_reject_says_where_and_why(everything: store.Dataset) -> None:
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for reject in rejects_of(everything):
        reasons[reject["dataset"]][reject["reason"]] += 1
        place = re.match(r"[^:\[]+", reject["source"])
        assert place is not None
        assert Path(place[0]).is_file()
    assert reasons["oc20-unlabelled"] == {"missing-energy": 20}
    assert sum(reasons["qm7x"].values()) == 6
    assert all("duplicate" in reason for reason in reasons["qm7x"])


@pytest.mark.parametrize("name", list(SOURCES))
def test_readback_is_the_independent_reading(name: str, everything: store.Dataset, shared_data: Path) -> None:
    expected: dict[Any, list[Frame]] = defaultdict(list)
    for frame in expected_frames(name, shared_data):
        expected[frame.labels].append(frame)
    batch = everything.batch(rows_of(everything, name))
    for structure in batch:
        assert structure.energy is not None
        assert structure.forces is not None
        found = Frame(
            structure.numbers, structure.positions.astype(np.float32), structure.energy, structure.forces,
            structure.cell, tuple(structure.pbc.tolist()), structure.stress, structure.fixed,
        )  # fmt: skip
        candidates = expected[found.labels]
        assert candidates, f"no frame of the files has these numbers, energy {found.energy} and forces"
        same = min(candidates, key=lambda frame: float(np.abs(frame.positions - found.positions).max()))
        candidates.remove(same)
        np.testing.assert_array_equal(found.positions, same.positions)
        assert found.pbc == same.pbc
        np.testing.assert_array_equal(found.cell[list(same.pbc)], same.cell[list(same.pbc)])
        if same.stress is not None:
            assert found.stress is not None
            np.testing.assert_allclose(found.stress, same.stress, rtol=2e-7, atol=1e-12)
        if same.fixed is not None:
            assert found.fixed is not None
            np.testing.assert_array_equal(found.fixed, same.fixed)
    assert not any(expected.values()), "frames of the files that are in no shard and in no reject"


def test_groups_stay_together_in_splits(everything: store.Dataset) -> None:
    batch = everything.batch(np.arange(len(everything)))
    groups, splits = batch.columns["group"], np.asarray(everything.split)
    split_of_group: dict[tuple[int, int], set[int]] = defaultdict(set)
    for index, group, split in zip(everything.dataset_index, groups, splits, strict=True):
        split_of_group[int(index), int(group)].add(int(split))
    assert all(len(where) == 1 for where in split_of_group.values())
    assert len(set(zip(everything.dataset_index.tolist(), batch.columns["key"].tolist(), strict=True))) == len(
        batch
    )


def test_both_formats_and_any_cut_hold_the_same_content(tmp_path: Path, shared_data: Path, client: Any) -> None:
    hashes = {}
    for part_bytes in ("200KiB", "64MiB"):
        for file_format in ("adios", "zarr"):
            sources = [
                {"name": name, "reader": SOURCES[name][0], "path": str(shared_data / SOURCES[name][1])}
                for name in ("ani1x", "oc20", "mptrj")
            ]
            output = tmp_path / f"{file_format}-{part_bytes}"
            dataset = run(output, client, sources, format=file_format, part_bytes=part_bytes)
            hashes[file_format, part_bytes] = dataset.manifest.content_hash
    assert len(set(hashes.values())) == 1, hashes
