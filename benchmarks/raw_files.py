"""Raw files for the benchmarks of ingestion: the published layouts, holding structures made by numpy.

Numbers of atoms are drawn around the means of the published data (about 73 in OC20, 80 in OC22, 31 in MPtrj,
15 in ANI-1x, 17 in QM7-X); positions are shaken grids at the density of real matter, labels are noise of a
sensible size around a linear energy. No label is computed: only the bytes have to look like those published.
"""

import copyreg
import io
import itertools
import json
import lzma
import pickle
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import package_first  # noqa: F401
from ase.data import chemical_symbols
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.data.units import HARTREE, KBAR

__all__ = [
    "crystals",
    "slabs",
    "write_ani1x",
    "write_ase_db",
    "write_aselmdb",
    "write_lmdb",
    "write_mptrj",
    "write_oc20_text",
    "write_qm7x",
]

_METALS = np.array([3, 8, 11, 12, 13, 14, 16, 19, 20, 22, 25, 26, 28, 29, 30, 38, 40, 47, 56, 78])
_QM7X_SCALARS = ("ePBE0+MBD", "eAT", "ePBE0", "eMBD", "sRMSD", "DIP", "HLgap", "mC6")


def crystals(
    rng: np.random.Generator, count: int, mean_atoms: int, *, spread: float = 0.5, volume: float = 14.4
) -> Iterator[Structure]:
    """Yield periodic structures in irregular cells, with energy, forces and stress.

    Args:
        rng: Where all choices come from.
        count: How many.
        mean_atoms: Mean number of atoms.
        spread: Numbers of atoms are uniform within this share of the mean; 0 for all the same.
        volume: Volume of an atom, angstrom^3.
    """
    for _ in range(count):
        size = max(1, round(mean_atoms * (1 + spread * rng.uniform(-1, 1))))
        species = rng.choice(_METALS, size=rng.integers(2, 6), replace=False)
        cell = np.eye(3) + np.tril(rng.uniform(-0.2, 0.2, (3, 3)))
        cell *= (size * volume / abs(np.linalg.det(cell))) ** (1 / 3)
        yield _labelled(rng, rng.choice(species, size=size), _shaken_grid(rng, size, cell), cell)


def slabs(rng: np.random.Generator, count: int, mean_atoms: int) -> Iterator[Structure]:
    """Yield crystals with 15 angstrom of vacuum along the third vector, the lower half held fixed."""
    for structure in crystals(rng, count, mean_atoms):
        structure.fixed = structure.positions[:, 2] < np.median(structure.positions[:, 2])
        structure.cell[2] *= 1 + 15 / np.linalg.norm(structure.cell[2])
        yield structure


def _shaken_grid(rng: np.random.Generator, size: int, cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions (N, 3), angstrom, with no two closer than about half of their mean distance."""
    steps = np.full(3, int(np.ceil(size ** (1 / 3))))
    while np.prod(steps) - np.prod(steps) // steps.max() >= size:
        steps[np.argmax(steps)] -= 1
    places = rng.choice(int(np.prod(steps)), size=size, replace=False)
    grid = np.stack(np.unravel_index(places, tuple(steps)), axis=1)
    fractional = (grid + rng.uniform(0.35, 0.65, (size, 3))) / steps
    positions: NDArray[np.float64] = fractional @ cell
    return positions


def _labelled(
    rng: np.random.Generator,
    numbers: NDArray[Any],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
) -> Structure:
    stress = rng.normal(scale=0.01, size=(3, 3))
    return Structure(
        numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=np.ones(3, dtype=bool),
        energy=float(-0.2 * numbers.sum() + 0.02 * len(numbers) * rng.normal()),
        forces=rng.normal(scale=0.3, size=(len(numbers), 3)),
        stress=(stress + stress.T) / 2,
    )


def write_oc20_text(folder: Path, frames: Iterable[Structure], *, per_file: int, packed: bool) -> Path:
    """Write ``<n>.extxyz`` and ``<n>.txt``, or both as ``.xz``; four frames in a row are of one system."""
    folder.mkdir(parents=True)
    rest = iter(frames)
    for index, chunk in enumerate(iter(lambda: list(itertools.islice(rest, per_file)), [])):
        text = "".join(map(_oc20_frame, chunk))
        first = index * per_file
        lines = (f"random{(first + i) // 4},frame{(first + i) % 4},{-1.5:.8f}\n" for i in range(len(chunk)))
        for suffix, content in (("extxyz", text), ("txt", "".join(lines))):
            if packed:
                (folder / f"{index}.{suffix}.xz").write_bytes(lzma.compress(content.encode()))
            else:
                (folder / f"{index}.{suffix}").write_text(content)
    return folder


def _oc20_frame(structure: Structure) -> str:
    assert structure.forces is not None
    assert structure.fixed is not None
    lattice = " ".join(f"{value:.8f}" for value in structure.cell.ravel())
    head = (
        f'{len(structure)}\nLattice="{lattice}" '
        "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 "
        f'energy={structure.energy:.8f} free_energy={structure.energy:.8f} pbc="T T T"\n'
    )
    row = "%-2s %15.8f %15.8f %15.8f  %s %8d %15.8f %15.8f %15.8f\n"
    return head + "".join(
        row % (chemical_symbols[number], *position, "F" if fixed else "T", 0 if fixed else 1, *force)
        for number, position, fixed, force in zip(
            structure.numbers.tolist(),
            structure.positions.tolist(),
            structure.fixed.tolist(),
            structure.forces.tolist(),
            strict=True,
        )
    )


def write_mptrj(path: Path, structures: Iterable[Structure], *, frames: int = 10) -> Path:
    """Write one JSON object with so many frames a material, as Python's json writes it."""
    with path.open("w") as file:
        material: dict[str, Any] = {}
        mp_id, separator = "mp-1", "{"
        for index, structure in enumerate(structures):
            if index and index % frames == 0:
                file.write(f'{separator}"{mp_id}": {json.dumps(material)}')
                mp_id, material, separator = f"mp-{1 + index // frames}", {}, ", "
            material[f"{mp_id}-0-{index % frames}"] = _mptrj_frame(mp_id, structure)
        file.write(f'{separator}"{mp_id}": {json.dumps(material)}}}')
    return path


def _mptrj_frame(mp_id: str, structure: Structure) -> dict[str, Any]:
    assert structure.energy is not None
    assert structure.forces is not None
    assert structure.stress is not None
    abc = (structure.positions @ np.linalg.inv(structure.cell)).tolist()
    symbols = [chemical_symbols[number] for number in structure.numbers.tolist()]
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": a, "xyz": xyz, "label": symbol, "properties": {}}
        for symbol, a, xyz in zip(symbols, abc, structure.positions.tolist(), strict=True)
    ]
    per_atom = structure.energy / len(structure)
    lattice = {
        "matrix": structure.cell.tolist(),
        **dict.fromkeys(("a", "b", "c"), 5.0),
        **dict.fromkeys(("alpha", "beta", "gamma"), 90.0),
        "volume": float(abs(np.linalg.det(structure.cell))),
    }
    return {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": None,
            "lattice": lattice,
            "sites": sites,
        },
        "uncorrected_total_energy": structure.energy,
        "corrected_total_energy": structure.energy,
        "energy_per_atom": per_atom,
        "ef_per_atom": per_atom,
        "e_per_atom_relaxed": per_atom,
        "ef_per_atom_relaxed": per_atom,
        "force": structure.forces.round(8).tolist(),
        "stress": (-structure.stress / KBAR).round(8).tolist(),
        "magmom": [0.0] * len(structure),
        "bandgap": 0.0,
        "mp_id": mp_id,
    }


def write_lmdb(path: Path, structures: Iterable[Structure], *, pyg: int) -> Path:
    """Write one LMDB file of pickled ``Data`` as OC22 has them (``pyg=1``), or as OC20 does since 2024 (2)."""
    import lmdb

    record = {1: _pyg1_record, 2: _pyg2_record}[pyg]
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 36) as environment,
        environment.begin(write=True) as transaction,
    ):
        index = -1
        for index, structure in enumerate(structures):
            transaction.put(str(index).encode(), record(structure, index))
        transaction.put(b"length", pickle.dumps(index + 1, protocol=4))
    return path


class _Pyg1Pickler(pickle.Pickler):
    """Writes what torch_geometric 1 wrote, where version 2 is installed: ``Data`` with a plain state."""

    def __init__(self, stream: io.BytesIO, state: dict[str, Any]) -> None:
        super().__init__(stream, protocol=4)
        self.state = state

    def reducer_override(self, value: Any) -> Any:
        """Let the state of ``Data`` be its attributes."""
        if type(value).__name__ != "Data":
            return NotImplemented
        return copyreg.__newobj__, (type(value),), self.state  # type: ignore[attr-defined]


def _pyg1_record(structure: Structure, index: int) -> bytes:
    import torch
    from torch_geometric.data import Data

    assert structure.forces is not None
    assert structure.fixed is not None
    fields = {
        "y": structure.energy,
        "pos": structure.positions.astype(np.float32),
        "cell": structure.cell.astype(np.float32)[None],
        "atomic_numbers": structure.numbers.astype(np.float32),
        "natoms": len(structure),
        "force": structure.forces.astype(np.float32),
        "fixed": structure.fixed.astype(np.float32),
        "tags": (~structure.fixed).astype(np.int64),
        "nads": 1,
        "sid": index // 4,
        "fid": index % 4,
        "id": str(index),
        "oc22": 1,
    }
    values = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
    }
    stream = io.BytesIO()
    _Pyg1Pickler(stream, values).dump(Data())
    return stream.getvalue()


def _pyg2_record(structure: Structure, index: int) -> bytes:
    import torch
    from torch_geometric.data import Data

    fields = {
        "pos": structure.positions.astype(np.float32),
        "cell": structure.cell.astype(np.float32)[None],
        "atomic_numbers": np.asarray(structure.numbers, dtype=np.int64),
        "tags": np.asarray(~np.asarray(structure.fixed), dtype=np.int64),
        "forces": np.asarray(structure.forces, dtype=np.float32),
        "fixed": np.asarray(structure.fixed, dtype=np.int32),
    }
    data = Data(
        natoms=len(structure),
        energy=structure.energy,
        sid=torch.tensor([index // 4]),
        fid=torch.tensor([index % 4]),
        **{name: torch.from_numpy(array) for name, array in fields.items()},
    )
    return pickle.dumps(data, protocol=4)


def write_ase_db(path: Path, structures: Iterable[Structure]) -> Path:
    """Write an SQLite database with ASE."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    with connect(path) as database:
        for structure in structures:
            atoms = structure.to_atoms()
            labels = {"energy": structure.energy, "forces": structure.forces}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            database.write(atoms)
    return path


def write_aselmdb(path: Path, structures: Iterable[Structure]) -> Path:
    """Write an LMDB of rows as OMat24 and OMol25 have it: keys from ``b"1"``, zlib of ASE's JSON."""
    import lmdb
    from ase.io.jsonio import encode

    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 36) as environment,
        environment.begin(write=True) as transaction,
    ):
        index = 0
        for index, structure in enumerate(structures, start=1):
            row = {
                "numbers": np.asarray(structure.numbers, dtype=np.int64),
                "positions": structure.positions,
                "unique_id": f"{index:032x}",
                "pbc": structure.pbc,
                "cell": structure.cell,
                "calculator": "unknown",
                "calculator_parameters": {},
                "energy": structure.energy,
                "forces": structure.forces,
                "ctime": 26.9,
                "mtime": 26.9,
                "user": None,
                "data": {"sid": f"agm{index // 4:09d}"},
            }
            transaction.put(str(index).encode(), zlib.compress(encode(row).encode()))
        transaction.put(b"nextid", zlib.compress(str(index + 1).encode()))
    return path


def write_ani1x(path: Path, rng: np.random.Generator, *, structures: int, conformers: int = 1000) -> Path:
    """Write one HDF5 file of molecules of about 15 atoms; ANI-1x has some 1,600 conformers a formula."""
    import h5py

    counts = [
        count
        for count in itertools.product(range(1, 10), range(1, 15), range(7), range(7))
        if 9 <= sum(count) <= 21
    ]
    chosen = rng.choice(len(counts), size=-(-structures // conformers), replace=False)
    with h5py.File(path, "w") as file:
        for index, place in enumerate(np.sort(chosen)):
            rows = min(conformers, structures - index * conformers)
            numbers = np.repeat([6, 1, 7, 8], counts[place]).astype(np.uint8)
            size = len(numbers)
            base = _shaken_grid(rng, size, np.eye(3) * (size * 4.0) ** (1 / 3)).astype(np.float32)
            noise = rng.standard_normal((rows, size, 3), dtype=np.float32)
            group = file.create_group("".join(f"{s}{n}" for s, n in zip("CHNO", counts[place], strict=True)))
            group["atomic_numbers"] = numbers
            group["coordinates"] = base + np.float32(0.05) * noise
            group["wb97x_dz.energy"] = -0.5 * numbers.sum() + 0.02 * rng.normal(size=rows)
            group["wb97x_dz.forces"] = noise * np.float32(-1.0 / HARTREE)
    return path


def write_qm7x(path: Path, rng: np.random.Generator, *, structures: int) -> Path:
    """Write one HDF5 file of about 17 atoms a molecule, 20 frames (QM7-X: 101), 12 arrays a frame (some 40)."""
    import h5py

    with h5py.File(path, "w") as file:
        for molecule in range(1, 1 + -(-structures // 20)):
            size = int(rng.integers(11, 24))
            numbers = rng.choice([1, 1, 6, 7, 8], size=size)
            base = _shaken_grid(rng, size, np.eye(3) * (size * 4.0) ** (1 / 3))
            for frame in range(min(20, structures - 20 * (molecule - 1))):
                group = file.create_group(f"{molecule}/Geom-m{molecule}-i1-c1-{frame or 'opt'}")
                noise = rng.normal(size=(size, 3))
                group["atNUM"] = numbers
                group["atXYZ"] = base + 0.05 * noise
                for key in ("totFOR", "pbe0FOR"):
                    group[key] = -noise
                for key in _QM7X_SCALARS:
                    group[key] = np.array([-300.0 * numbers.sum() + 0.3 * rng.normal()])
    return path
