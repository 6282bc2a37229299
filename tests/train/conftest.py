"""A small dataset that can be learnt: Morse clusters of H, C, O and periodic EMT alloys of Cu and Al."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential

from gfm.data.neighbors import count_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.references import NormalEquations, compositions
from gfm.data.structure import Structure
from store.manifest import DatasetEntry, Reference, Splits
from store.writer import commit_dataset, write_shard

CUTOFF = 4.0
NAMES = ("clusters", "alloys")
# So large that float32 energies would show.
_ATOMIC_ENERGIES = {"H": -13.6, "C": -1030.0, "O": -2040.0, "Cu": -45000.0, "Al": -6600.0}


def _cluster(rng: np.random.Generator) -> Atoms:
    positions = [np.zeros(3)]
    while len(positions) < rng.integers(3, 7):
        step = rng.normal(size=3)
        trial = positions[rng.integers(len(positions))] + step / np.linalg.norm(step) * rng.uniform(1.1, 1.5)
        if min(np.linalg.norm(trial - other) for other in positions) > 1.0:
            positions.append(trial)
    atoms = Atoms(rng.choice(["H", "C", "O"], len(positions)), positions)
    atoms.calc = MorsePotential(epsilon=1.5, r0=1.3, rho0=3.0, rcut1=3.0, rcut2=4.0)
    return atoms


def _alloy(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True) * (1, 1, int(rng.integers(1, 3)))
    atoms.symbols = rng.choice(["Cu", "Al"], len(atoms))
    atoms.set_cell(atoms.cell.array * (1 + rng.normal(scale=0.03)), scale_atoms=True)
    atoms.rattle(0.15, rng=rng)
    atoms.calc = EMT()
    return atoms


def _labelled(atoms: Atoms, dataset: int, key: int) -> Structure:
    atoms.get_potential_energy()
    atoms.get_forces()
    structure = Structure.from_atoms(atoms)
    structure.stress = None
    assert structure.energy is not None
    structure.energy += sum(_ATOMIC_ENERGIES[symbol] for symbol in atoms.symbols)
    structure.dataset, structure.key, structure.group = dataset, key, key
    return structure


def write_dataset(
    path: Path,
    clusters: int = 50,
    alloys: int = 30,
    *,
    change: Callable[[int, Structure], None] | None = None,
) -> Path:
    """Write a dataset, 8 of 10 for training; ``change`` may spoil a structure by its row."""
    rng = np.random.default_rng(7)
    structures = [_labelled(_cluster(rng), 0, 100 + row) for row in range(clusters)]
    structures += [_labelled(_alloy(rng), 1, 900 + row) for row in range(alloys)]
    # Some lack a label, as published data do.
    for row in range(3, len(structures), 9):
        structures[row].forces = None
    for row in range(5, len(structures), 11):
        structures[row].energy = None
    whole = RaggedBatch.from_structures(structures)
    split = np.array([{8: 1, 9: 2}.get(row % 10, 0) for row in range(len(structures))], dtype=np.uint8)
    references = [_reference(whole, (whole.columns["dataset"] == index) & (split == 0)) for index in (0, 1)]
    if change is not None:
        for row, structure in enumerate(structures):
            change(row, structure)
    order = rng.permutation(len(structures))
    receipts = []
    for name, rows in zip(("a", "b"), np.array_split(order, 2), strict=True):
        batch = RaggedBatch.from_structures([structures[row] for row in rows])
        edges = count_edges(
            batch.columns["positions"], batch.columns["cell"], batch.columns["pbc"], batch.offsets, CUTOFF
        )
        receipts.append(
            write_shard(
                path, name, batch, num_edges=edges, split=split[rows], dataset_names=NAMES, format="adios"
            )
        )
    commit_dataset(
        path,
        receipts,
        format="adios",
        datasets=[
            DatasetEntry(name=name, reference=reference)
            for name, reference in zip(NAMES, references, strict=True)
        ],
        edges_cutoff=CUTOFF,
        splits=Splits(fractions={"train": 0.8, "validation": 0.1, "test": 0.1}),
        statistics={},
        provenance={},
    )
    return path


def _reference(batch: RaggedBatch, chosen: np.ndarray) -> Reference:
    from ase.data import chemical_symbols

    part = batch.take(np.flatnonzero(chosen & batch.has("energy")))
    if len(part) == 0:
        return Reference()
    fit = NormalEquations.of(compositions(part), part.columns["energy"]).solve()
    values = {chemical_symbols[z]: float(fit.values[z]) for z in np.flatnonzero(fit.seen)}
    return Reference(values=values, rank=fit.rank, num_elements=fit.num_elements, count=fit.count)


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset: 80 structures, 64 to train on."""
    return write_dataset(tmp_path_factory.mktemp("dataset") / "small")


@pytest.fixture
def settings(dataset_path: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Make the settings of a tiny training run; ``key__sub=value`` overrides."""

    def make(**overrides: Any) -> dict[str, Any]:
        data: dict[str, Any] = {
            "dataset": str(dataset_path),
            "output": str(tmp_path / "run"),
            "epochs": 2,
            "model": {"layer": "painn", "hidden": 8, "num_layers": 1, "cutoff": CUTOFF, "num_radial": 4},
            "batch": {"size": 8},
            "optimizer": {"learning_rate": 5e-3, "warmup_steps": 4},
            "plots": False,
        }
        for key, value in overrides.items():
            *parents, last = key.split("__")
            node = data
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = value
        return data

    return make


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """`write_dataset`."""
    return write_dataset
