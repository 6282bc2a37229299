"""Sample files in the layouts of OC20 and OC22: slabs with adsorbates, as compressed text and as LMDB.

Sources of the layouts: OC20, doi:10.1021/acscatal.0c04525; OC22, doi:10.1021/acscatal.2c05426.
"""

import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from ingest.sample_metals import ADSORBATES, System, jolted, slab_with_adsorbates
from ingest.sample_molecules import share_out
from ingest.sample_pickles import pyg1_pickle

__all__ = ["write_oc20", "write_oc22"]


def write_oc20(folder: Path, structures: int, rng: np.random.Generator, made: Callable[[], None]) -> Path:
    """Write ``s2ef_train_200K/s2ef_train_200K/<n>.extxyz.xz`` with ``<n>.txt.xz``, two of each.

    Frames of a system are spread over both files, as published ones are. The forces of fixed atoms are the true
    ones; the sidecar holds the energy that makes an adsorption energy of the total.
    """
    inner = folder / "s2ef_train_200K" / "s2ef_train_200K"
    inner.mkdir(parents=True)
    lines: list[tuple[str, str]] = []
    sids = rng.choice(2_500_000, size=structures, replace=False)
    for sid, count in zip(sids, share_out(structures, structures, 4), strict=False):
        system = slab_with_adsorbates(rng, ADSORBATES, coverage=1)
        for frame in np.sort(rng.choice(200 + count, size=count, replace=False)):
            structure = jolted(system.atoms, rng, decimals=8)
            sidecar = f"random{sid},frame{frame},{system.reference_energy:.8f}\n"
            lines.append((_oc20_frame(structure, system.atoms.get_tags()), sidecar))
            made()
    order = rng.permutation(len(lines))
    for index, part in enumerate(np.array_split(order, min(2, len(order)))):
        for suffix, column in (("extxyz", 0), ("txt", 1)):
            text = "".join(lines[row][column] for row in part)
            (inner / f"{index}.{suffix}.xz").write_bytes(lzma.compress(text.encode()))
    return inner


def _oc20_frame(structure: Structure, tags: NDArray[np.integer]) -> str:
    """Return one frame of extended XYZ with the columns and the number format of the published files."""
    from ase.data import chemical_symbols

    assert structure.forces is not None
    assert structure.fixed is not None
    lattice = " ".join(repr(float(value)) for value in structure.cell.ravel())
    energy = f"{structure.energy:.8f}"
    rows = [
        f"{len(structure)}",
        f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
        f'energy={energy} free_energy={energy} pbc="T T T"',
    ]
    for number, position, fixed, tag, force in zip(
        structure.numbers, structure.positions, structure.fixed, tags, structure.forces, strict=True
    ):
        xyz, pull = (" ".join(f"{value:15.8f}" for value in vector) for vector in (position, force))
        rows.append(f"{chemical_symbols[number]:<2} {xyz}  {'F' if fixed else 'T'} {tag:8d} {pull}")
    return "\n".join(rows) + "\n"


def write_oc22(folder: Path, structures: int, rng: np.random.Generator, made: Callable[[], None]) -> Path:
    """Write ``data.0000.lmdb`` and ``data.0001.lmdb`` of pickled PyG 1.x ``Data``, and ``data_log.<n>.txt``.

    Slabs are covered with up to four adsorbates, mostly oxygen; ``y`` is the total energy in eV.
    """
    counts = share_out(structures, structures, 4)
    half = (len(counts) + 1) // 2
    sid = int(rng.integers(1000, 30_000))
    for index, part in enumerate((counts[:half], counts[half:])):
        records: list[bytes] = []
        log: list[str] = []
        for count in part:
            sid += 1
            system = slab_with_adsorbates(rng, ("O", "O", "O", "O", "OH", "H2O", "N", "C"), coverage=4)
            name = f"{system.atoms.get_chemical_formula()}_{'-'.join(system.adsorbates)}_{sid}"
            for frame in np.sort(rng.choice(100 + count, size=count, replace=False)):
                structure = jolted(system.atoms, rng, decimals=None)
                records.append(pyg1_pickle(_oc22_fields(structure, system, sid, int(frame), len(records))))
                log.append(f"{name},{frame}\n")
                made()
        if records:
            _write_lmdb(folder / f"data.{index:04d}.lmdb", records)
            (folder / f"data_log.{index:04d}.txt").write_text("".join(log))
    return folder


def _oc22_fields(structure: Structure, system: System, sid: int, frame: int, number: int) -> dict[str, Any]:
    """Return what the OC22 writer gave to ``Data``, with its dtypes."""
    assert structure.forces is not None
    assert structure.fixed is not None
    return {
        "y": structure.energy,
        "pos": structure.positions.astype(np.float32),
        "cell": structure.cell.astype(np.float32)[None],
        "atomic_numbers": structure.numbers.astype(np.float32),
        "natoms": len(structure),
        "force": structure.forces.astype(np.float32),
        "fixed": structure.fixed.astype(np.float32),
        "tags": system.atoms.get_tags().astype(np.int64),
        "nads": len(system.adsorbates),
        "sid": sid,
        "fid": frame,
        "id": str(number),
        "oc22": 1,
    }


def _write_lmdb(path: Path, records: list[bytes]) -> None:
    """Write one LMDB file: ``b"0"``, ``b"1"``, … and ``b"length"``."""
    import lmdb

    # The map is address space, not disk: the file grows as needed.
    size = 2 * sum(len(record) + 8192 for record in records) + (1 << 20)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=size) as environment,
        environment.begin(write=True) as transaction,
    ):
        for index, record in enumerate(records):
            transaction.put(str(index).encode(), record)
        transaction.put(b"length", pickle.dumps(len(records), protocol=4))
