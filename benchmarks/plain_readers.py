"""The plain way to read each published layout: the library that comes to mind first, and arrays per structure.

These are the peers of `ingestion.py`: no checks, no units, no ids, nothing kept. Each function reads a whole
file and returns the number of structures.
"""

import io
import json
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "ani1x_by_conformer",
    "ani1x_by_formula",
    "ase_extxyz",
    "ase_rows",
    "aselmdb_rows",
    "hdf5_by_row",
    "lmdb_with_pyg",
    "mptrj_ijson",
    "mptrj_json",
    "oc20_with_ase",
    "qm7x_by_frame",
    "unpack",
]


def ase_extxyz(path: Path) -> int:
    """Read extended XYZ with `ase.io.read`."""
    from ase.io import read

    return len(read(path, ":", format="extxyz"))


def oc20_with_ase(path: Path) -> int:
    """Unpack frames and sidecar, and read the frames with `ase.io.read`.

    It would open the .xz itself, but then seeks in it and unpacks it from the beginning for every frame.
    """
    from ase.io import read

    with lzma.open(path.with_name(path.name.replace(".extxyz", ".txt")), "rt") as file:
        sidecar = [line.strip().split(",") for line in file]
    with lzma.open(path, "rt") as file:
        frames = read(io.StringIO(file.read()), ":", format="extxyz")
    assert len(frames) == len(sidecar)
    return len(frames)


def unpack(path: Path, structures: int) -> int:
    """Unpack a file that holds so many structures, and look at nothing in it."""
    with lzma.open(path) as file:
        while file.read(1 << 20):
            continue
    return structures


def mptrj_json(path: Path) -> int:
    """Load the whole file, then make arrays."""
    with path.open() as file:
        materials = json.load(file)
    return sum(_mptrj_arrays(frame) for frames in materials.values() for frame in frames.values())


def mptrj_ijson(path: Path) -> int:
    """Load one material after the other (ijson with its fastest backend)."""
    import ijson

    with path.open("rb") as file:
        materials = ijson.kvitems(file, "", use_float=True)
        return sum(_mptrj_arrays(frame) for _, frames in materials for frame in frames.values())


def _mptrj_arrays(frame: dict[str, Any]) -> int:
    from ase.data import atomic_numbers

    sites = frame["structure"]["sites"]
    np.array([atomic_numbers[site["species"][0]["element"]] for site in sites])
    np.array([site["xyz"] for site in sites])
    np.array(frame["structure"]["lattice"]["matrix"])
    np.array(frame["force"])
    np.array(frame["stress"])
    return 1


def lmdb_with_pyg(path: Path) -> int:
    """Unpickle every record with torch_geometric; what PyG 1.x wrote is only found in ``__dict__`` by PyG 2."""
    import lmdb

    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False) as environment,
        environment.begin() as transaction,
    ):
        count: int = pickle.loads(transaction.get(b"length") or b"")
        for index in range(count):
            data = pickle.loads(transaction.get(str(index).encode()) or b"")
            values = data.__dict__ if "_store" not in data.__dict__ else data
            forces = "force" if "force" in values else "forces"
            for name in ("atomic_numbers", "pos", "cell", forces, "fixed"):
                values[name].numpy()
    return count


def qm7x_by_frame(path: Path) -> int:
    """Read the four arrays of each frame through h5py's groups."""
    import h5py

    count = 0
    with h5py.File(path, "r") as file:
        for molecule in file.values():
            for frame in molecule.values():
                for key in ("atNUM", "atXYZ", "ePBE0+MBD", "totFOR"):
                    frame[key][()]
                count += 1
    return count


def ani1x_by_conformer(path: Path) -> int:
    """Read each conformer by itself."""
    import h5py

    count = 0
    with h5py.File(path, "r") as file:
        for group in file.values():
            coordinates, forces = group["coordinates"], group["wb97x_dz.forces"]
            energies = group["wb97x_dz.energy"]
            group["atomic_numbers"][()]
            for row in range(len(coordinates)):
                coordinates[row], forces[row], energies[row]
                count += 1
    return count


def ani1x_by_formula(path: Path) -> int:
    """Read whole arrays as the release's own loader does, drop what is not finite, copy out each conformer."""
    import h5py

    count = 0
    with h5py.File(path, "r") as file:
        for group in file.values():
            columns = [group[key][()] for key in ("coordinates", "wb97x_dz.forces", "wb97x_dz.energy")]
            finite = [np.isfinite(column.reshape(len(column), -1)).all(axis=1) for column in columns]
            group["atomic_numbers"][()]
            for row in np.flatnonzero(np.logical_and.reduce(finite)):
                for column in columns:
                    np.array(column[row])
                count += 1
    return count


def ase_rows(path: Path) -> int:
    """Select all rows of an ASE database and make Atoms of them."""
    from ase.db import connect

    with connect(path) as database:
        return sum(1 for row in database.select() if row.toatoms())


def aselmdb_rows(path: Path) -> int:
    """Decode the rows of an .aselmdb as its backend for ASE does: zlib, ASE's JSON, AtomsRow, Atoms."""
    import lmdb
    from ase.db.row import AtomsRow
    from ase.io.jsonio import decode

    count = 0
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for key, value in transaction.cursor():
            if key.isdigit():
                row = decode(zlib.decompress(value).decode())
                AtomsRow({"id": int(key), **row}).toatoms()
                count += 1
    return count


def hdf5_by_row(path: Path, keys: tuple[str, ...]) -> int:
    """Read each structure of keyed HDF5 (a group a molecule, arrays over conformers) by itself."""
    import h5py

    count = 0
    with h5py.File(path, "r") as file:
        for group in file.values():
            columns = [group[key] for key in keys]
            for row in range(len(columns[0])):
                for column in columns:
                    column[row]
                count += 1
    return count
