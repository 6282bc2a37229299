"""Sample file in the layout of MPtrj: frames of strained and shaken metals and alloys in nested JSON.

Source of the layout: doi:10.1038/s42256-023-00716-3.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gfm.data.structure import Structure
from gfm.data.units import KBAR
from ingest.sample_metals import alloy, jolted
from ingest.sample_molecules import share_out

__all__ = ["write_mptrj"]

# MP2020's shift of an oxide, eV for each oxygen atom (doi:10.1038/s41598-021-94550-5).
_OXIDE_SHIFT = -0.687


def write_mptrj(folder: Path, structures: int, rng: np.random.Generator, made: Callable[[], None]) -> Path:
    """Write ``MPtrj_2022.9_full.json``: material, frame, then pymatgen's dict of the structure and the labels.

    A third of the materials have oxygen, and for those corrected and uncorrected energies differ. Stress is
    kBar with VASP's sign, the other way round than everywhere inside this project.
    """
    path = folder / "MPtrj_2022.9_full.json"
    numbers = rng.choice(1_000_000, size=structures, replace=False)
    with path.open("w") as file:
        for index, count in enumerate(share_out(structures, structures, 5)):
            mp_id = f"mp-9{numbers[index]:07d}"
            atoms = alloy(rng, with_oxygen=index % 3 == 2)
            frames = []
            for _ in range(count):
                frames.append(jolted(atoms, rng, decimals=8, strain=0.02))
                made()
            magnetic = rng.random() < 0.5
            entry = {
                f"{mp_id}-0-{step}": record
                for step, record in enumerate(_mptrj_records(mp_id, frames, magnetic=magnetic))
            }
            file.write(("{" if index == 0 else ", ") + f"{json.dumps(mp_id)}: {json.dumps(entry)}")
        file.write("}")
    return path


def _mptrj_records(mp_id: str, frames: list[Structure], *, magnetic: bool) -> list[dict[str, Any]]:
    """Return the frames of one material with the twelve keys of the published file."""
    oxygens = int((frames[0].numbers == 8).sum())
    size = len(frames[0])
    uncorrected = [float(frame.energy or 0.0) for frame in frames]
    corrected = [energy + _OXIDE_SHIFT * oxygens for energy in uncorrected]
    # EMT counts energy from the fcc metals, so for an alloy it is a formation energy; with oxygen it is none.
    formation = [None if oxygens else energy / size for energy in corrected]
    records = []
    for index, frame in enumerate(frames):
        assert frame.forces is not None
        assert frame.stress is not None
        records.append(
            {
                "structure": _pymatgen_dict(frame),
                "uncorrected_total_energy": uncorrected[index],
                "corrected_total_energy": corrected[index],
                "energy_per_atom": corrected[index] / size,
                "ef_per_atom": formation[index],
                "e_per_atom_relaxed": min(corrected) / size,
                "ef_per_atom_relaxed": None if oxygens else min(corrected) / size,
                "force": frame.forces.tolist(),
                "stress": (-frame.stress / KBAR).tolist(),
                "magmom": [0.0] * size if magnetic else None,
                "bandgap": 0.0,
                "mp_id": mp_id,
            }
        )
    return records


def _pymatgen_dict(structure: Structure) -> dict[str, Any]:
    """Return a structure as pymatgen's ``Structure.as_dict`` does."""
    from ase.cell import Cell
    from ase.data import chemical_symbols

    cell = Cell(structure.cell)
    lengths_angles = dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), cell.cellpar().tolist(), strict=True))
    fractional = cell.scaled_positions(structure.positions)
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": {"matrix": structure.cell.tolist(), **lengths_angles, "volume": float(cell.volume)},
        "sites": [
            {
                "species": [{"element": chemical_symbols[number], "occu": 1}],
                "abc": abc.tolist(),
                "xyz": xyz.tolist(),
                "label": chemical_symbols[number],
                "properties": {},
            }
            for number, abc, xyz in zip(structure.numbers, fractional, structure.positions, strict=True)
        ],
    }
