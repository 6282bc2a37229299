"""Many frames as one batch: storage dtypes, presence, and which of them must be looked at singly.

The test is of one side only: what it does not name would pass `ingest.readers.records.check_structure`; what it
names is decided on there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import FIELDS, absent_value, presence_bit
from gfm.data.ragged import RaggedBatch
from ingest.readers.records import MAX_Z, BlockBuilder
from ingest.readers.runs import Run

__all__ = ["add_run", "cells", "number"]

_SQUARED_VOLUME = 1e-9  # angstrom^6; far above what rounding can make of a flat cell
_SQUARED_SINE = 1e-4


def cells(run: Run) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return cells (F, 3, 3), zeros without one, pbc (F, 3), and which frames have unusual ones (F,)."""
    lattice, num_lattice = run.of("Lattice")
    truths, num_truths = run.of("pbc")
    has_cell = num_lattice >= 0
    cell = np.where(has_cell[:, None], lattice, 0.0).reshape(-1, 3, 3)
    pbc = np.where((num_truths >= 0)[:, None], truths[:, :3] != 0.0, has_cell[:, None])
    odd = (has_cell & (num_lattice != 9)) | ((num_truths >= 0) & (num_truths != 3))
    return cell, pbc, odd


def number(run: Run, key: str) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the single number of a header key (F,), zero without it; who has it; who has several or none."""
    numbers, counts = run.of(key)
    has = counts >= 0
    return np.where(has, numbers[:, 0], 0.0), has, has & (counts != 1)


def add_run(
    builder: BlockBuilder,
    run: Run,
    columns: dict[str, NDArray[Any]],
    has: dict[str, NDArray[np.bool_]],
    odd: NDArray[np.bool_],
    sources: list[str],
    singly: Callable[[int], None],
) -> None:
    """Hand the frames of a run to a builder, in order.

    Args:
        builder: Takes them.
        run: The frames (F).
        columns: Fields of a structure as float64, or in their storage dtype.
        has: Which frames have an optional field (F,); all, where it is not said.
        odd: Frames that must be looked at singly (F,).
        sources: Where each is from.
        singly: Looks at one frame and gives it to the builder.
    """
    batch, unsound = _batch(columns, has, run.starts)
    begin = 0
    for row in [*np.flatnonzero(odd | unsound).tolist(), len(run)]:
        if begin < row:
            builder.add_batch(batch[begin:row], sources[begin:row])
        if row < len(run):
            singly(row)
        begin = row + 1


def _batch(
    columns: dict[str, NDArray[Any]], has: dict[str, NDArray[np.bool_]], starts: NDArray[np.int64]
) -> tuple[RaggedBatch, NDArray[np.bool_]]:
    """Return structures as a batch in the storage dtypes, and which of them may be unsound (F,)."""
    num_frames = len(starts) - 1
    numbers = columns["numbers"]
    wrong = ~((numbers >= 1) & (numbers <= MAX_Z) & (numbers == np.trunc(numbers)))
    unsound = (starts[1:] == starts[:-1]) | _owners(wrong, starts)
    present = np.zeros(num_frames, dtype=np.uint32)
    stored = {}
    for name, values in columns.items():
        field = FIELDS[name]
        mask = has.get(name)
        if mask is not None and not mask.any():
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            column = np.asarray(values).astype(field.dtype)
        bad = np.zeros(len(column), dtype=bool)
        if column.dtype.kind == "f":
            bad = ~np.isfinite(column).reshape(len(column), -1).all(axis=1) if column.size else bad
        elif name in ("charge", "spin"):
            bad = column != values
        bad = _owners(bad, starts) if field.per == "atom" else bad
        if mask is not None:
            column[~mask] = absent_value(field)
            bad &= mask
        unsound |= bad
        if field.optional:
            present[slice(None) if mask is None else mask] |= np.uint32(presence_bit(name))
        stored[name] = column
    stored["dataset"] = np.zeros(num_frames, dtype=np.uint8)
    unsound |= _may_be_flat(stored["cell"], stored["pbc"])
    return RaggedBatch(stored, starts, present), unsound


def _owners(atoms: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the frames (F,) to which any of the atoms (N,) belongs."""
    found = np.zeros(len(starts) - 1, dtype=bool)
    if atoms.any():
        found[np.searchsorted(starts, np.flatnonzero(atoms), side="right") - 1] = True
    return found


def _may_be_flat(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which frames' periodic lattice vectors may span no length, area or volume (F,)."""
    vectors = cell * pbc[:, :, None]
    with np.errstate(over="ignore", invalid="ignore"):
        gram = vectors @ vectors.transpose(0, 2, 1)
        gram[:, [0, 1, 2], [0, 1, 2]] += ~pbc  # a unit vector at right angles for one that is not periodic
        squares = np.prod(np.diagonal(gram, axis1=1, axis2=2), axis=1)
        sound: NDArray[np.bool_] = np.linalg.det(gram) >= np.maximum(_SQUARED_VOLUME, _SQUARED_SINE * squares)
    return ~sound  # NaN compares as false
