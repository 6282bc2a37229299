"""Which structures of a block may be unsound: one look at all their numbers, so that few are checked singly.

The test is of one side only. What it does not name would pass `ingest.readers.records.check_structure`; what it
names may be sound too, and is decided on there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z
from gfm.data.structure import Structure
from gfm.errors import DataError

__all__ = ["suspects", "wrong_numbers"]

_FLOATS = {np.dtype(name) for name in ("float16", "float32", "float64")}
# The least squared volume of a cell (angstrom^6), and that over the product of its squared lengths, for
# which rounding cannot make a flat cell (below 1e-12) of it.
_SQUARED_VOLUME = 1e-9
_SQUARED_SINE = 1e-4


def suspects(structures: Sequence[Structure]) -> tuple[RaggedBatch | None, list[int]]:
    """Return structures (G) as a batch, and the rows that may be unsound; labels may be absent.

    Where something is of an unusual type or shape there is no batch, and every row is suspect.
    """
    everyone = list(range(len(structures)))
    try:
        if not _are_plain(structures):
            return None, everyone
        wrong = wrong_numbers(np.concatenate([structure.numbers for structure in structures]))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            batch = RaggedBatch.from_structures(structures)
            found = _may_be_flat(batch) | (batch.num_atoms == 0) | _owners(wrong, batch)
    except (AttributeError, DataError, OverflowError, TypeError, ValueError):
        return None, everyone
    for name in ("positions", "cell", "energy", "forces", "stress"):
        if name in batch.columns:
            column = batch.columns[name]
            bad = ~np.isfinite(column).reshape(len(column), int(np.prod(column.shape[1:]))).all(axis=1)
            bad = _owners(bad, batch) if name in ("positions", "forces") else bad
            found |= bad if name in ("positions", "cell") else bad & batch.has(name)
    return batch, np.flatnonzero(found).tolist()


def wrong_numbers(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values (N,) are no whole number from 1 to 118."""
    wrong: NDArray[np.bool_] = ~((values >= 1) & (values <= MAX_Z))
    if values.dtype.kind == "f":
        wrong |= values != np.trunc(values)
    return wrong


def _are_plain(structures: Sequence[Structure]) -> bool:
    """Say whether all is of types that storing changes in no other way than rounding."""
    for name in ("positions", "cell", "forces", "stress"):
        values = [getattr(structure, name) for structure in structures]
        if not {value.dtype for value in values if value is not None} <= _FLOATS:
            return False
    if not {structure.numbers.dtype.kind for structure in structures} <= set("iuf"):
        return False
    small = [structure.charge for structure in structures] + [structure.spin for structure in structures]
    return all(isinstance(one.energy, float | int | None) for one in structures) and all(
        value is None or -128 <= value <= 127 for value in small
    )


def _owners(atoms: NDArray[np.bool_], batch: RaggedBatch) -> NDArray[np.bool_]:
    """Return the structures (G,) to which any of the atoms (N,) belongs."""
    found = np.zeros(len(batch), dtype=bool)
    found[np.searchsorted(batch.offsets, np.flatnonzero(atoms), side="right") - 1] = True
    return found


def _may_be_flat(batch: RaggedBatch) -> NDArray[np.bool_]:
    """Return which structures' (G,) periodic lattice vectors may span no length, area or volume."""
    periodic = batch.columns["pbc"]
    vectors = batch.columns["cell"] * periodic[:, :, None]
    gram = vectors @ vectors.transpose(0, 2, 1)
    # A vector of length 1 at right angles to the others stands for one that is not periodic.
    gram[:, [0, 1, 2], [0, 1, 2]] += ~periodic
    squares = np.prod(np.diagonal(gram, axis1=1, axis2=2), axis=1)
    sound: NDArray[np.bool_] = np.linalg.det(gram) >= np.maximum(_SQUARED_VOLUME, _SQUARED_SINE * squares)
    return ~sound  # NaN compares as false: suspect
