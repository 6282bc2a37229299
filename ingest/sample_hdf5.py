"""Sample files in the layouts of ANI-1x and QM7-X: molecules with tight-binding labels in HDF5.

Sources of the layouts: ANI-1x, doi:10.1038/s41597-020-0473-z; QM7-X, doi:10.1038/s41597-021-00812-2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.units import HARTREE
from ingest.sample_molecules import (
    XtbLabels,
    molecule_pool,
    relaxed,
    shaken,
    share_out,
    xtb_calculator,
    xtb_labels,
)

__all__ = ["write_ani1x", "write_qm7x"]


def write_ani1x(folder: Path, structures: int, rng: np.random.Generator, made: Callable[[], None]) -> Path:
    """Write ``ani1x-release.h5``: one group a formula, energies in hartree, forces in hartree/angstrom.

    The rows of ``wb97x_dz`` hold GFN2-xTB; half of those of ``wb97x_tz`` hold GFN1-xTB, and the other half,
    like all of ``ccsd(t)_cbs``, is NaN: so the release marks what was not computed.
    """
    import h5py

    pool = molecule_pool("H C N O", rng)
    path = folder / "ani1x-release.h5"
    with h5py.File(path, "w") as file:
        for atoms, count in zip(pool, share_out(structures, len(pool), 5), strict=False):
            gfn2, gfn1 = xtb_calculator(), xtb_calculator("GFN1-xTB")
            double: list[XtbLabels] = []
            triple: list[XtbLabels | None] = []
            for row in range(count):
                double.append(shaken(atoms, gfn2, rng, _to_float32))
                triple.append(xtb_labels(atoms, double[-1].positions, gfn1) if row % 2 == 0 else None)
                made()
            group = file.create_group(_ani_formula(atoms.get_chemical_symbols()))
            group["atomic_numbers"] = atoms.numbers.astype(np.uint8)
            group["coordinates"] = np.array([labels.positions for labels in double], dtype=np.float32)
            for level, rows in (("wb97x_dz", double), ("wb97x_tz", triple)):
                for name, column in _ani_columns(rows, len(atoms)).items():
                    group[f"{level}.{name}"] = column
            group["ccsd(t)_cbs.energy"] = np.full(count, np.nan)
    return path


def _ani_formula(symbols: list[str]) -> str:
    """Return a formula as the release spells it: every count written, elements in alphabetical order."""
    return "".join(f"{symbol}{symbols.count(symbol)}" for symbol in sorted(set(symbols)))


def _ani_columns(rows: "list[XtbLabels] | list[XtbLabels | None]", num_atoms: int) -> dict[str, NDArray[Any]]:
    """Return energy (Nc,) float64, forces (Nc, Na, 3) and dipole (Nc, 3) float32, NaN where there is none."""
    energy = np.full(len(rows), np.nan)
    forces = np.full((len(rows), num_atoms, 3), np.nan, dtype=np.float32)
    dipole = np.full((len(rows), 3), np.nan, dtype=np.float32)
    for row, labels in enumerate(rows):
        if labels is not None:
            energy[row] = labels.energy / HARTREE
            forces[row] = labels.forces / HARTREE
            dipole[row] = labels.dipole
    return {"energy": energy, "forces": forces, "dipole": dipole}


def _to_float32(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return positions.astype(np.float32).astype(np.float64)


def write_qm7x(folder: Path, structures: int, rng: np.random.Generator, made: Callable[[], None]) -> Path:
    """Write ``1000.hdf5``, ``8000.hdf5`` and ``DupMols.dat``: a group a molecule, a group a geometry below it.

    Every molecule has its relaxed geometry (``-opt``) and shaken ones, named ``-<k>`` in the first file and
    ``-d<k>`` in the second, since both spellings occur. ``DupMols.dat`` names one further conformer, a copy of
    another: with it the files hold more frames than were asked for, and as many without.
    """
    import h5py

    pool = molecule_pool("H C N O S Cl", rng)
    counts = share_out(structures, len(pool), 3)
    ids = [index + 1 if index < (len(counts) + 1) // 2 else index + 7001 for index in range(len(counts))]
    duplicate = ""
    for name, letter, chosen in (("1000", "", range(1000)), ("8000", "d", range(7000, 8000))):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for idmol, atoms, count in zip(ids, pool, counts, strict=False):
                if idmol not in chosen:
                    continue
                gfn2, gfn1 = xtb_calculator(), xtb_calculator("GFN1-xTB")
                minimum = relaxed(atoms, gfn2)
                free = _atom_energies(atoms)
                frames = [xtb_labels(minimum, minimum.positions, gfn2)]
                made()
                for _ in range(count - 1):
                    frames.append(shaken(minimum, gfn2, rng, np.asarray))
                    made()
                conformers = ("c1",) if duplicate else ("c1", "c2")
                for conformer in conformers:
                    duplicate = f"Geom-m{idmol}-i1-{conformer}-opt" if conformer == "c2" else duplicate
                    for index, frame in enumerate(frames):
                        suffix = f"{letter}{index}" if index else "opt"
                        group = file.create_group(f"{idmol}/Geom-m{idmol}-i1-{conformer}-{suffix}")
                        second = xtb_labels(minimum, frame.positions, gfn1)
                        for key, value in _qm7x_properties(
                            minimum.numbers, frame, second, frames[0], free
                        ).items():
                            group[key] = value
    (folder / "DupMols.dat").write_text(f"{duplicate}\n")
    return folder


def _atom_energies(atoms: Any) -> float:
    """Return the summed GFN2-xTB energies of the free atoms of a molecule, eV."""
    from ase import Atoms

    unpaired = {"H": 1, "C": 2, "N": 3, "O": 2, "S": 2, "Cl": 1}
    symbols: list[str] = atoms.get_chemical_symbols()
    total = 0.0
    for symbol in sorted(set(symbols)):
        calculator = xtb_calculator()
        calculator.set(multiplicity=unpaired[symbol] + 1)
        atom = Atoms(symbol)
        total += symbols.count(symbol) * xtb_labels(atom, atom.positions, calculator).energy
    return total


def _qm7x_properties(
    numbers: NDArray[np.integer], total: XtbLabels, bare: XtbLabels, minimum: XtbLabels, free: float
) -> dict[str, NDArray[Any]]:
    """Return the properties of one geometry under their published names, eV and angstrom.

    ``ePBE0+MBD`` and ``totFOR`` hold GFN2-xTB, ``ePBE0`` and ``pbe0FOR`` hold GFN1-xTB, so that energy and
    forces belong together in both pairs and the pairs differ; ``eMBD`` and ``vdwFOR`` are the differences.
    """
    deviation = np.sqrt(((total.positions - minimum.positions) ** 2).sum(axis=1).mean())
    scalars = {
        "sRMSD": deviation,
        "ePBE0+MBD": total.energy,
        "eAT": total.energy - free,
        "ePBE0": bare.energy,
        "eMBD": total.energy - bare.energy,
        "DIP": np.linalg.norm(total.dipole),
    }
    return {
        "atNUM": numbers.astype(np.int64),
        "atXYZ": total.positions,
        **{name: np.array([value], dtype=np.float64) for name, value in scalars.items()},
        "totFOR": total.forces,
        "pbe0FOR": bare.forces,
        "vdwFOR": total.forces - bare.forces,
        "vDIP": total.dipole,
    }
