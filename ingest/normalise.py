"""Which sound records are wanted: finite, within limits of force, distance and size; each refusal has a reason.

Units, signs and constraints are the readers' business; here all is eV and angstrom. Checks run over whole
blocks of structures; only what is refused is looked at one by one, to say what was wrong with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.neighbors import FLATTEST, count_edges, neighbor_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z
from ingest.readers.base import Reject
from ingest.recipe import Filters

__all__ = ["normalise"]

_FARTHEST = 1e5  # angstrom from the origin; float32 resolves 8e-3 angstrom there
_LARGEST_ENERGY = 1e9  # eV


def normalise(batch: RaggedBatch, sources: Sequence[str], filters: Filters) -> tuple[RaggedBatch, list[Reject]]:
    """Return the structures that pass, in order, and one reject for each that does not.

    Args:
        batch: Structures (G), as a reader made them.
        sources: Where each came from (G).
        filters: The limits.
    """
    if len(batch) == 0:  # the reader refused all of the block
        return batch, []
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
    _refuse_out_of_range(batch, filters, refuse)
    # Neighbours are searched where everything is finite only.
    rows = np.array([row for row in range(len(batch)) if row not in refused], dtype=np.int64)
    heights = _least_heights(batch, rows)
    flat = np.zeros(len(batch), dtype=bool)
    flat[rows[heights <= FLATTEST * (1 + 1e-6)]] = True
    height_of = dict(zip(rows.tolist(), heights.tolist(), strict=True))
    refuse(flat, "flat-cell", lambda row: f"height {height_of[row]:.6g} angstrom")
    if filters.min_distance is not None:
        rows = rows[~flat[rows]]
        close = np.zeros(len(batch), dtype=bool)
        close[rows] = count_edges(*_geometry(batch.take(rows)), filters.min_distance) > 0
        limit = filters.min_distance
        refuse(close, "atoms-too-close", lambda row: f"{_shortest(batch, row, limit):.6g} angstrom")
    if not refused:
        return batch, []
    kept = [row for row in range(len(batch)) if row not in refused]
    return batch.take(kept), [Reject(sources[row], *refused[row]) for row in sorted(refused)]


def _refuse_not_finite(batch: RaggedBatch, name: str, refuse: Callable[..., None]) -> None:
    column = batch.columns[name]
    bad = ~np.isfinite(column).reshape(len(column), -1).all(axis=1)
    if name in ("positions", "forces"):
        bad = _any_atom(bad, batch)
    if name in ("energy", "forces", "stress"):
        bad &= batch.has(name)
    refuse(bad, f"non-finite-{name}", lambda row: "NaN or infinite")


def _refuse_out_of_range(batch: RaggedBatch, filters: Filters, refuse: Callable[..., None]) -> None:
    positions = batch.columns["positions"]
    farthest = _largest(np.abs(positions).max(axis=1, initial=0.0), batch)
    refuse(farthest > _FARTHEST, "position-too-far", lambda row: f"{farthest[row]:.6g} angstrom")
    if "energy" in batch.columns:
        energy = batch.columns["energy"]
        # NaN where there is no energy: compares as false.
        refuse(np.abs(energy) > _LARGEST_ENERGY, "energy-too-large", lambda row: f"{energy[row]:.6g} eV")
    if "forces" in batch.columns and filters.max_force is not None:
        norms = np.linalg.norm(batch.columns["forces"].astype(np.float64), axis=1)
        largest = _largest(norms, batch)
        mask = (largest > filters.max_force) & batch.has("forces")
        refuse(mask, "force-too-large", lambda row: f"{largest[row]:.6g} eV/angstrom")


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
