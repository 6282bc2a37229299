"""What one part adds to the statistics of its dataset: small sums that merge, in the order of the plan.

References are fitted on the training split only, so the normal equations know nothing of the others.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.loggrid import LogGrid, SignedLogGrid
from gfm.data.moments import Histogram, Moments
from gfm.data.references import MAX_Z, NormalEquations, compositions
from gfm.data.splits import SPLITS
from ingest.normalise import Kept

__all__ = ["ENERGY", "SIZE", "ElementCounts", "ElementMoments", "GridCounts", "Sums", "sums_of"]

# eV/atom, and sizes of anything else: 9 % wide bins up to 1e9.
SIZE = LogGrid(low=-20, octaves=50, per_octave=8)
ENERGY = SignedLogGrid(LogGrid(low=-14, octaves=44, per_octave=16))
_ATOM_EDGES = (*range(1, 30), *range(30, 100, 5), *range(100, 300, 10), *range(300, 1001, 50))
# eV/angstrom, eight a decade.
_FORCE_EDGES = (0.0, *(round(10 ** (k / 8), 9) for k in range(-32, 25)))
_DISTANCE_EDGES = tuple(round(0.05 * k, 2) for k in range(101))  # angstrom
_NEIGHBOR_EDGES = tuple(range(0, 202, 2))


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
class GridCounts:
    """Counts on the bins of a grid that both sides know; kept as the bins that are filled."""

    values: NDArray[np.int64]

    def merge(self, other: "GridCounts") -> "GridCounts":
        """Return the sum."""
        return GridCounts(self.values + other.values)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        filled = np.flatnonzero(self.values)
        return {"size": len(self.values), "bins": filled.tolist(), "counts": self.values[filled].tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        values = np.zeros(data["size"], dtype=np.int64)
        values[data["bins"]] = data["counts"]
        return cls(values)

    def histogram(self, edges: NDArray[np.float64]) -> Histogram:
        """Return the filled stretch of the bins as a histogram."""
        filled = np.flatnonzero(self.values)
        if not len(filled):
            return Histogram((0.0, 1.0), (0,))
        first, last = int(filled[0]), int(filled[-1]) + 1
        return Histogram(tuple(edges[first : last + 1].tolist()), tuple(self.values[first:last].tolist()))


@dataclass(frozen=True)
class ElementMoments:
    """Moments of a value over the atoms of each element, by atomic number."""

    values: dict[int, Moments]

    def merge(self, other: "ElementMoments") -> "ElementMoments":
        """Return the moments of both together."""
        joined = dict(self.values)
        for z, moments in other.values.items():
            joined[z] = joined[z].merge(moments) if z in joined else moments
        return ElementMoments(dict(sorted(joined.items())))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {str(z): moments.to_json() for z, moments in self.values.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls({int(z): Moments.from_json(moments) for z, moments in data.items()})

    @classmethod
    def of(cls, values: NDArray[np.float64], numbers: NDArray[np.uint8]) -> Self:
        """Return the moments of values over atoms (N,) by their atomic numbers (N,)."""
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(MAX_Z + 2))
        present = np.flatnonzero(np.diff(bounds)).tolist()
        return cls({z: Moments.of(values[order[bounds[z] : bounds[z + 1]]]) for z in present})


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
        element_forces: Moments of the length of forces by element, eV/angstrom.
        atom_histogram: Structures by number of atoms.
        force_histogram: Atoms by length of the force, eV/angstrom.
        neighbor_histogram: Structures by edges per atom, at the recipe's cutoff.
        distance_histogram: Structures by shortest distance, angstrom.
        energies: Structures by total energy per atom, eV, on the bins of `ENERGY`.
        largest_forces: Structures by largest force, eV/angstrom, on the bins of `SIZE`.
        largest_stresses: Structures by largest stress component, eV/angstrom^3, on the bins of `SIZE`.
        equations: Normal equations of energy on composition, training split.
    """

    splits: ElementCounts
    atoms: ElementCounts
    structures: ElementCounts
    num_atoms: Moments
    num_edges: Moments
    energy_per_atom: Moments
    force_component: Moments
    element_forces: ElementMoments
    atom_histogram: Histogram
    force_histogram: Histogram
    neighbor_histogram: Histogram
    distance_histogram: Histogram
    energies: GridCounts
    largest_forces: GridCounts
    largest_stresses: GridCounts
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


def sums_of(kept: Kept, split: NDArray[np.uint8]) -> Sums:
    """Sum over structures of one dataset.

    Args:
        kept: The structures (G).
        split: Split of each (G,), an index into `SPLITS`.
    """
    batch = kept.batch
    counts = compositions(batch)
    train = split == 0
    has_energy, has_forces = batch.has("energy"), batch.has("forces")
    energy = batch.columns.get("energy", np.zeros(len(batch)))
    per_atom = energy[has_energy] / batch.num_atoms[has_energy]
    forces = batch.columns.get("forces", np.zeros((0, 3), dtype=np.float32)).astype(np.float64)
    owners_have = np.repeat(has_forces, batch.num_atoms)
    owners_train = np.repeat(has_forces & train, batch.num_atoms)
    if not len(forces):
        owners_have = owners_train = np.zeros(0, dtype=bool)
    norms = np.linalg.norm(forces[owners_have], axis=1)
    numbers = batch.columns["numbers"]
    fitted = train & has_energy
    return Sums(
        splits=ElementCounts(np.bincount(split, minlength=len(SPLITS)).astype(np.int64)),
        atoms=ElementCounts(np.bincount(numbers, minlength=MAX_Z + 1).astype(np.int64)),
        structures=ElementCounts((counts > 0).sum(axis=0)),
        num_atoms=Moments.of(batch.num_atoms),
        num_edges=Moments.of(kept.num_edges),
        energy_per_atom=Moments.of(per_atom),
        force_component=Moments.of(forces[owners_train]),
        element_forces=ElementMoments.of(norms, numbers[owners_have] if len(forces) else numbers[:0]),
        atom_histogram=Histogram.of(batch.num_atoms, _ATOM_EDGES),
        force_histogram=Histogram.of(norms, _FORCE_EDGES),
        neighbor_histogram=Histogram.of(kept.num_edges / np.maximum(batch.num_atoms, 1), _NEIGHBOR_EDGES),
        distance_histogram=Histogram.of(kept.shortest[np.isfinite(kept.shortest)], _DISTANCE_EDGES),
        energies=GridCounts(ENERGY.count(per_atom)),
        largest_forces=GridCounts(SIZE.count(_present(kept.largest_force))),
        largest_stresses=GridCounts(SIZE.count(_present(kept.largest_stress))),
        equations=NormalEquations.of(counts[fitted], energy[fitted]),
    )


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]
