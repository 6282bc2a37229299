"""Which sound records are wanted: finite, within limits of force, distance and size; each refusal has a reason.

Units, signs and constraints are the readers' business; here all is eV and angstrom. Checks run over whole
blocks of structures; only what is refused is looked at one by one, to say what was wrong with it. What was
measured on the way (edges, shortest distance, largest force and stress) goes along with what is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.neighbors import FLATTEST, count_edges, count_pairs, neighbor_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z
from ingest.readers.base import Reject
from ingest.recipe import Filters

__all__ = ["Kept", "normalise"]

_FARTHEST = 1e5  # angstrom from the origin; float32 resolves 8e-3 angstrom there
_LARGEST_ENERGY = 1e9  # eV
# Cells lower than this, angstrom, have so many images inside the cutoff that overlaps are looked for first.
_LOW_CELL = 1.0


@dataclass
class Kept:
    """Structures that passed, in order, and what was measured of each.

    Attributes:
        batch: The structures (G).
        sources: Where each came from (G).
        num_edges: Edges at the cutoff (G,).
        shortest: Shortest distance, angstrom (G,); infinite where it is above the cutoff.
        largest_force: Length of the largest force, eV/angstrom (G,); NaN without forces.
        largest_stress: Largest size of a stress component, eV/angstrom^3 (G,); NaN without stress.
    """

    batch: RaggedBatch
    sources: list[str]
    num_edges: NDArray[np.int64]
    shortest: NDArray[np.float64]
    largest_force: NDArray[np.float64]
    largest_stress: NDArray[np.float64]

    @classmethod
    def concatenate(cls, blocks: Sequence["Kept"]) -> Self:
        """Join blocks one after the other."""
        arrays = {
            name: np.concatenate([getattr(block, name) for block in blocks] or [np.zeros(0)])
            for name in ("shortest", "largest_force", "largest_stress")
        }
        edges = np.concatenate([block.num_edges for block in blocks] or [np.zeros(0, dtype=np.int64)])
        sources = [source for block in blocks for source in block.sources]
        return cls(RaggedBatch.concatenate([block.batch for block in blocks]), sources, edges, **arrays)


def normalise(
    batch: RaggedBatch, sources: Sequence[str], filters: Filters, cutoff: float
) -> tuple[Kept, list[Reject]]:
    """Return the structures that pass, in order, and one reject for each that does not.

    Args:
        batch: Structures (G), as a reader made them.
        sources: Where each came from (G).
        filters: The limits.
        cutoff: At which edges are counted, angstrom.
    """
    if len(batch) == 0:  # the reader refused all of the block
        return Kept(batch, [], np.zeros(0, dtype=np.int64), *np.zeros((3, 0))), []
    refused: dict[int, tuple[str, str]] = {}

    def refuse(mask: NDArray[np.bool_], reason: str, value: Callable[[int], str]) -> None:
        for row in np.flatnonzero(mask).tolist():
            if row not in refused:
                refused[row] = reason, value(row)

    counts = batch.num_atoms
    refuse(counts == 0, "no-atoms", lambda row: "0 atoms")
    if filters.max_atoms is not None:
        refuse(counts > filters.max_atoms, "too-many-atoms", lambda row: f"{counts[row]} atoms")
    numbers = batch.columns["numbers"]
    refuse(
        _any_atom((numbers == 0) | (numbers > MAX_Z), batch),
        "bad-atomic-number",
        lambda row: ", ".join(map(str, np.unique(_atoms(numbers, batch, row)).tolist())),
    )
    for name in ("positions", "cell", "energy", "forces", "stress"):
        if name in batch.columns:
            _refuse_not_finite(batch, name, refuse)
    largest = _refuse_out_of_range(batch, filters, refuse)
    rows = _sound_cells(batch, np.array([row for row in range(len(batch)) if row not in refused], int), refuse)
    num_edges, shortest = _refuse_close(batch, rows, filters.min_distance, cutoff, refuse)
    kept = np.array([row for row in range(len(batch)) if row not in refused], dtype=np.int64)
    chosen = batch if not refused else batch.take(kept)
    kept_sources = list(sources) if not refused else [sources[row] for row in kept.tolist()]
    rejects = [Reject(sources[row], *refused[row]) for row in sorted(refused)]
    measured = {name: values[kept] for name, values in largest.items()}
    return Kept(chosen, kept_sources, num_edges[kept], shortest[kept], **measured), rejects


def _sound_cells(batch: RaggedBatch, rows: NDArray[np.int64], refuse: Callable[..., None]) -> NDArray[np.int64]:
    """Refuse flat cells among rows in which everything is finite; return the others."""
    heights = np.full(len(batch), np.inf)
    heights[rows] = _least_heights(batch, rows)
    flat = heights <= FLATTEST * (1 + 1e-6)
    refuse(flat, "flat-cell", lambda row: f"height {heights[row]:.6g} angstrom")
    return rows[~flat[rows]]


def _refuse_close(
    batch: RaggedBatch, rows: NDArray[np.int64], limit: float | None, cutoff: float, refuse: Callable[..., None]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Refuse overlaps; return number of edges and shortest distance (G,), zero and infinite off these rows."""
    num_edges, shortest = np.zeros(len(batch), dtype=np.int64), np.full(len(batch), np.inf)
    close = np.zeros(len(batch), dtype=bool)
    if limit is not None:
        low = rows[_least_heights(batch, rows) < _LOW_CELL]
        close[low] = count_edges(*_geometry(batch.take(low)), limit) > 0
        rows = rows[~close[rows]]
    searched = batch if len(rows) == len(batch) else batch.take(rows)
    num_edges[rows], shortest[rows] = count_pairs(*_geometry(searched), cutoff)
    if limit is not None:
        close |= shortest < limit
        refuse(close, "atoms-too-close", lambda row: f"{_shortest(batch, row, limit):.6g} angstrom")
    return num_edges, shortest


def _refuse_not_finite(batch: RaggedBatch, name: str, refuse: Callable[..., None]) -> None:
    column = batch.columns[name]
    bad = ~np.isfinite(column).reshape(len(column), -1).all(axis=1)
    if name in ("positions", "forces"):
        bad = _any_atom(bad, batch)
    if name in ("energy", "forces", "stress"):
        bad &= batch.has(name)
    refuse(bad, f"non-finite-{name}", lambda row: "NaN or infinite")


def _refuse_out_of_range(
    batch: RaggedBatch, filters: Filters, refuse: Callable[..., None]
) -> dict[str, NDArray[np.float64]]:
    """Refuse numbers beyond limits; return the largest force and stress of each structure (G,)."""
    positions = batch.columns["positions"]
    farthest = _largest(np.abs(positions).max(axis=1, initial=0.0), batch)
    refuse(farthest > _FARTHEST, "position-too-far", lambda row: f"{farthest[row]:.6g} angstrom")
    if "energy" in batch.columns:
        energy = batch.columns["energy"]
        # NaN where there is no energy: compares as false.
        refuse(np.abs(energy) > _LARGEST_ENERGY, "energy-too-large", lambda row: f"{energy[row]:.6g} eV")
    force, stress = np.full(len(batch), np.nan), np.full(len(batch), np.nan)
    if "forces" in batch.columns:
        norms = np.linalg.norm(batch.columns["forces"].astype(np.float64), axis=1)
        force = np.where(batch.has("forces"), _largest(norms, batch), np.nan)
        if filters.max_force is not None:
            refuse(force > filters.max_force, "force-too-large", lambda row: f"{force[row]:.6g} eV/angstrom")
    if "stress" in batch.columns:
        components = np.abs(batch.columns["stress"].astype(np.float64)).max(axis=(1, 2), initial=0.0)
        stress = np.where(batch.has("stress"), components, np.nan)
        if filters.max_stress is not None:
            mask = stress > filters.max_stress
            refuse(mask, "stress-too-large", lambda row: f"{stress[row]:.6g} eV/angstrom^3")
    return {"largest_force": force, "largest_stress": stress}


def _atoms(column: NDArray[Any], batch: RaggedBatch, row: int) -> NDArray[Any]:
    return column[batch.offsets[row] : batch.offsets[row + 1]]


def _any_atom(mask: NDArray[np.bool_], batch: RaggedBatch) -> NDArray[np.bool_]:
    """Return whether any atom of each structure (G,) is in a mask over atoms (N,)."""
    return _largest(mask.astype(np.float64), batch) > 0


def _largest(values: NDArray[np.floating], batch: RaggedBatch) -> NDArray[np.float64]:
    """Return the largest of values over atoms (N,), not negative, for each structure (G,); 0 without atoms."""
    result = np.zeros(len(batch))
    filled = batch.num_atoms > 0
    if filled.any():
        result[filled] = np.maximum.reduceat(values, batch.offsets[:-1][filled])
    return result


def _least_heights(batch: RaggedBatch, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the least height of the periodic vectors' parallelepiped (R,), angstrom; infinite without any."""
    heights = np.full(len(rows), np.inf)
    cells, pbc = batch.columns["cell"][rows], batch.columns["pbc"][rows]
    patterns = pbc @ np.array([1, 2, 4])
    for pattern in np.unique(patterns[patterns > 0]).tolist():
        chosen = patterns == pattern
        axes = [axis for axis in range(3) if pattern >> axis & 1]
        triangular = np.linalg.qr(cells[chosen][:, axes].transpose(0, 2, 1), mode="r")
        heights[chosen] = np.abs(np.diagonal(triangular, axis1=1, axis2=2)).min(axis=1)
    return heights


def _geometry(batch: RaggedBatch) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    return batch.columns["positions"], batch.columns["cell"], batch.columns["pbc"], batch.offsets


def _shortest(batch: RaggedBatch, row: int, cutoff: float) -> float:
    """Return the shortest distance in one structure that has one below the cutoff, angstrom."""
    positions, cells, pbc, offsets = _geometry(batch[row : row + 1])
    edges = neighbor_edges(positions, cells, pbc, offsets, cutoff)
    points = positions.astype(np.float64)
    vectors = points[edges.sources] + edges.shifts @ cells[0] - points[edges.targets]
    return float(np.linalg.norm(vectors, axis=1).min())
