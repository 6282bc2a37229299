"""What one part adds to the statistics of its dataset: small sums that merge, in the order of the plan.

References are fitted on the training split only, so the normal equations know nothing of the others.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.moments import Histogram, Moments
from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z, NormalEquations, compositions
from gfm.data.splits import SPLITS

__all__ = ["ElementCounts", "Sums", "sums_of"]

_ATOM_EDGES = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
_FORCE_EDGES = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # eV/angstrom


@dataclass(frozen=True)
class ElementCounts:
    """Integers by atomic number, or by split, that add up."""

    values: NDArray[np.int64]

    def merge(self, other: "ElementCounts") -> "ElementCounts":
        """Return the sum."""
        return ElementCounts(self.values + other.values)

    def to_json(self) -> list[int]:
        """Return plain values."""
        return [int(value) for value in self.values]

    @classmethod
    def from_json(cls, data: list[int]) -> Self:
        """Return what `to_json` wrote."""
        return cls(np.array(data, dtype=np.int64))


@dataclass(frozen=True)
class Sums:
    """Mergeable statistics of some structures of one dataset.

    Attributes:
        splits: Structures by split.
        atoms: Atoms by atomic number.
        structures: Structures that contain an element, by atomic number.
        num_atoms: Moments of atoms per structure.
        num_edges: Moments of edges per structure, at the recipe's cutoff.
        energy_per_atom: Moments of total energy per atom, eV.
        force_component: Moments of force components in the training split, eV/angstrom.
        atom_histogram: Structures by number of atoms.
        force_histogram: Atoms by length of the force, eV/angstrom.
        equations: Normal equations of energy on composition, training split.
    """

    splits: ElementCounts
    atoms: ElementCounts
    structures: ElementCounts
    num_atoms: Moments
    num_edges: Moments
    energy_per_atom: Moments
    force_component: Moments
    atom_histogram: Histogram
    force_histogram: Histogram
    equations: NormalEquations

    def merge(self, other: "Sums") -> "Sums":
        """Return the sums over both sets of structures."""
        return Sums(**{f.name: getattr(self, f.name).merge(getattr(other, f.name)) for f in fields(self)})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {f.name: getattr(self, f.name).to_json() for f in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls(**{f.name: f.type.from_json(data[f.name]) for f in fields(cls)})  # type: ignore[union-attr]


def sums_of(batch: RaggedBatch, num_edges: NDArray[np.int64], split: NDArray[np.uint8]) -> Sums:
    """Sum over structures of one dataset.

    Args:
        batch: Structures (G).
        num_edges: Edges of each (G,).
        split: Split of each (G,), an index into `SPLITS`.
    """
    counts = compositions(batch)
    train = split == 0
    has_energy, has_forces = batch.has("energy"), batch.has("forces")
    energy = batch.columns.get("energy", np.zeros(len(batch)))
    forces = batch.columns.get("forces", np.zeros((0, 3), dtype=np.float32)).astype(np.float64)
    owners_have = np.repeat(has_forces, batch.num_atoms)
    owners_train = np.repeat(has_forces & train, batch.num_atoms)
    if not len(forces):
        owners_have = owners_train = np.zeros(0, dtype=bool)
    fitted = train & has_energy
    return Sums(
        splits=ElementCounts(np.bincount(split, minlength=len(SPLITS)).astype(np.int64)),
        atoms=ElementCounts(np.bincount(batch.columns["numbers"], minlength=MAX_Z + 1).astype(np.int64)),
        structures=ElementCounts((counts > 0).sum(axis=0)),
        num_atoms=Moments.of(batch.num_atoms),
        num_edges=Moments.of(num_edges),
        energy_per_atom=Moments.of(energy[has_energy] / batch.num_atoms[has_energy]),
        force_component=Moments.of(forces[owners_train]),
        atom_histogram=Histogram.of(batch.num_atoms, _ATOM_EDGES),
        force_histogram=Histogram.of(np.linalg.norm(forces[owners_have], axis=1), _FORCE_EDGES),
        equations=NormalEquations.of(counts[fitted], energy[fitted]),
    )
