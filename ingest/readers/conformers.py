"""Conformers: structures that come as arrays over many configurations of one molecule, checked block by block.

No object is made per structure. What a file holds is gathered until a block has come together; then everything
is joined, converted to eV and angstrom, and looked at as a whole. Only what is refused is looked at by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import FIELDS, presence_bit
from gfm.data.ragged import RaggedBatch
from ingest.readers.base import BLOCK_STRUCTURES, hash_id
from ingest.readers.records import MAX_Z, BlockBuilder, hill_formula

__all__ = ["Conformers", "Gatherer", "Scale"]

_Optional = Literal["forces", "cell", "stress", "charge", "spin"]
_PER_ATOM = ("positions", "forces")
# In this order a structure is looked at: the first that is wrong is the reason.
_CHECKED = ("energy", "positions", "forces", "cell", "stress")


@dataclass(frozen=True)
class Scale:
    """What one of a file's unit is, in eV and angstrom; negative where the sign is the other one."""

    length: float = 1.0
    energy: float = 1.0
    forces: float = 1.0
    stress: float = 1.0

    def of(self, name: str) -> float:
        """Return the factor of a field."""
        return {"positions": self.length, "cell": self.length}.get(name) or float(getattr(self, name))


@dataclass(slots=True)
class Conformers:
    """R configurations of N atoms as a file holds them, of any dtype of numbers.

    Attributes:
        numbers: Atomic numbers (N,), or (R, N).
        positions: Positions (R, N, 3).
        energy: Energies (R,).
        sources: Where each is from (R).
        keys: Hash of each one's id (R).
        group: Hash of what a split must not tear apart; None for the formula.
        forces: Forces (R, N, 3).
        cell: Lattice vectors as rows (R, 3, 3).
        stress: Stress (R, 3, 3).
        charge: Total charge (R,).
        spin: Multiplicity (R,).
    """

    numbers: NDArray[Any]
    positions: NDArray[Any]
    energy: NDArray[Any]
    sources: list[str]
    keys: list[int]
    group: int | None = None
    forces: NDArray[Any] | None = None
    cell: NDArray[Any] | None = None
    stress: NDArray[Any] | None = None
    charge: NDArray[Any] | None = None
    spin: NDArray[Any] | None = None


@dataclass
class Gatherer:
    """Gathers conformers, and hands those that are sound to a block builder, the rest as rejects.

    Attributes:
        builder: Where they go.
        scale: Units of what is gathered.
        require_forces: Whether a structure without forces is refused; else forces that are all NaN mean none.
        pbc: Directions in which a structure that has a cell is periodic.
    """

    builder: BlockBuilder
    scale: Scale = field(default_factory=Scale)
    require_forces: bool = True
    pbc: tuple[bool, bool, bool] = (True, True, True)
    _gathered: list[Conformers] = field(default_factory=list)
    _num_rows: int = 0

    def add(self, conformers: Conformers) -> None:
        """Take some; whatever has come together becomes part of the builder's block at a block's worth."""
        self._gathered.append(conformers)
        self._num_rows += len(conformers.sources)
        if self._num_rows >= BLOCK_STRUCTURES:
            self.settle()

    def settle(self) -> None:
        """Check what was gathered and give it to the builder."""
        gathered, self._gathered, self._num_rows = self._gathered, [], 0
        if not gathered:
            return
        num_rows = [len(each.sources) for each in gathered]
        offsets = np.zeros(sum(num_rows) + 1, dtype=np.int64)
        np.cumsum(np.repeat([each.positions.shape[1] for each in gathered], num_rows), out=offsets[1:])
        sources = [source for each in gathered for source in each.sources]
        numbers = np.concatenate([_by_row(each.numbers, each) for each in gathered])
        columns, present = self._columns(gathered, num_rows, offsets)
        columns["numbers"], good = self._check_numbers(numbers, offsets, sources)
        everyone = np.ones(len(sources), dtype=bool)
        for name in _CHECKED:
            if name in columns:
                has = present.get(name, everyone)
                good &= self._check_finite(name, columns[name], offsets, sources, good, has)
        for name in ("charge", "spin"):
            if name in columns:
                good &= self._check_small(name, columns, present[name], sources, good)
        if not good.any():
            return
        columns["group"] = _groups(gathered, num_rows, columns["numbers"], offsets, good)
        columns["key"] = np.array([key for each in gathered for key in each.keys], dtype=np.uint64)
        mask = np.full(len(sources), presence_bit("energy"), dtype=np.uint32)
        for name, has in present.items():
            mask |= np.where(has, np.uint32(presence_bit(name)), np.uint32(0))
        batch = RaggedBatch(columns, offsets, mask)
        if not good.all():
            kept = np.flatnonzero(good)
            batch, sources = batch.take(kept), [sources[row] for row in kept.tolist()]
        self.builder.add_batch(batch, sources)

    def _columns(
        self, gathered: list[Conformers], num_rows: list[int], offsets: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
        """Return the columns in eV and angstrom (not yet checked), and who has each optional one but energy."""
        size = len(offsets) - 1
        columns: dict[str, NDArray[Any]] = {
            "positions": self._joined("positions", [each.positions for each in gathered]),
            "energy": self._joined("energy", [each.energy for each in gathered]),
            "cell": np.zeros((size, 3, 3)),
            "pbc": np.zeros((size, 3), dtype=bool),
            "dataset": np.zeros(size, dtype=np.uint8),
        }
        present: dict[str, NDArray[np.bool_]] = {}
        for name in ("forces", "cell", "stress", "charge", "spin"):
            values = [getattr(each, name) for each in gathered]
            if all(value is None for value in values):
                continue
            present[name] = np.repeat([value is not None for value in values], num_rows)
            pairs = zip(gathered, values, strict=True)
            parts = [_absent(name, each) if value is None else value for each, value in pairs]
            columns[name] = self._joined(name, parts)
        if "cell" in present:
            columns["cell"][~present.pop("cell")] = 0.0
            periodic = np.abs(columns["cell"]).max(axis=(1, 2)) > 0.0
            columns["pbc"] = periodic[:, None] & np.array(self.pbc)
        if "forces" in present and not self.require_forces:
            nowhere = np.logical_and.reduceat(np.isnan(columns["forces"]).all(axis=1), offsets[:-1])
            present["forces"] &= ~nowhere
        if "stress" in present:
            present["stress"] &= ~np.isnan(columns["stress"]).all(axis=(1, 2))
        return columns, present

    def _joined(self, name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Join arrays of one field; converted in float64, then cast to what is stored."""
        entry = FIELDS[name]
        joined = np.concatenate([part.reshape(-1, *entry.shape) for part in parts])
        if name in ("charge", "spin"):
            return joined.astype(np.float64)
        factor = self.scale.of(name)
        # What overflows is infinite then, and refused as such; so is a NaN, of whatever kind.
        with np.errstate(over="ignore", invalid="ignore"):
            if factor != 1.0:
                joined = np.multiply(joined, factor, dtype=np.float64)
            return joined.astype(entry.dtype, copy=False)

    def _check_numbers(
        self, numbers: NDArray[Any], offsets: NDArray[np.int64], sources: list[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return atomic numbers, 0 for what is none, and who has good ones (R,); refuse the rest."""
        good = np.ones(len(sources), dtype=bool)
        wrong = ~((numbers >= 1) & (numbers <= MAX_Z))
        if numbers.dtype.kind == "f":
            wrong |= numbers != np.trunc(numbers)
        for atom in np.flatnonzero(wrong).tolist():
            row = int(np.searchsorted(offsets, atom, side="right")) - 1
            if good[row]:
                good[row] = False
                value = f"{numbers[atom]} of atom {atom - offsets[row]}"
                self.builder.reject(sources[row], "bad-atomic-number", value)
        return np.where(wrong, 0, numbers).astype(np.uint8), good

    def _check_finite(
        self,
        name: str,
        column: NDArray[Any],
        offsets: NDArray[np.int64],
        sources: list[str],
        good: NDArray[np.bool_],
        has: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return whose numbers are finite, or absent (R,); refuse those of the rest that are good so far."""
        finite = np.isfinite(column)
        if finite.all():
            return np.ones(len(sources), dtype=bool)
        if name in _PER_ATOM:
            sound = np.logical_and.reduceat(finite.all(axis=1), offsets[:-1])
        else:
            sound = finite.reshape(len(sources), -1).all(axis=1)
        sound |= ~has
        for row in np.flatnonzero(good & ~sound).tolist():
            values = column[offsets[row] : offsets[row + 1]] if name in _PER_ATOM else column[row]
            bad = values[~np.isfinite(values)]
            kind = "nan" if np.isnan(bad).any() else "infinite"
            self.builder.reject(sources[row], f"{kind}-{name}", f"{bad.size} of {values.size} numbers")
        return np.asarray(sound, dtype=bool)

    def _check_small(
        self,
        name: str,
        columns: dict[str, NDArray[Any]],
        has: NDArray[np.bool_],
        sources: list[str],
        good: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return whose charge or spin (R,) is a small whole number, or absent, and store it as such."""
        values = columns[name]
        sound: NDArray[np.bool_] = (np.abs(values) <= 127) & (values == np.trunc(values))
        columns[name] = np.where(sound, values, 0).astype(np.int8)
        sound |= ~has
        for row in np.flatnonzero(good & ~sound).tolist():
            self.builder.reject(sources[row], f"bad-{name}", values[row])
        return sound


def _by_row(numbers: NDArray[Any], each: Conformers) -> NDArray[Any]:
    """Return atomic numbers of all configurations (R * N,)."""
    if each.numbers.size == each.positions.size // 3:
        return each.numbers.reshape(-1)
    return np.broadcast_to(numbers, each.positions.shape[:2]).reshape(-1)


def _absent(name: _Optional, each: Conformers) -> NDArray[Any]:
    """Return the filler for configurations that lack a field."""
    num_rows, num_atoms = each.positions.shape[:2]
    entry = FIELDS[name]
    lead = (num_rows, num_atoms) if entry.per == "atom" else (num_rows,)
    filler = np.nan if np.dtype(entry.dtype).kind == "f" else 0.0
    return np.full((*lead, *entry.shape), filler, dtype=np.float32)


def _groups(
    gathered: list[Conformers],
    num_rows: list[int],
    numbers: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    good: NDArray[np.bool_],
) -> NDArray[np.uint64]:
    """Return the group of each structure (R,); 0 for those that are not good."""
    groups = np.zeros(len(good), dtype=np.uint64)
    start = 0
    for each, count in zip(gathered, num_rows, strict=True):
        rows = slice(start, start + count)
        start += count
        if each.group is not None:
            groups[rows] = each.group
        elif each.numbers.ndim == 1:
            if good[rows].any():
                first = offsets[rows.start + int(good[rows].argmax())]
                groups[rows] = hash_id(f"formula:{hill_formula(numbers[first : first + len(each.numbers)])}")
        else:
            for row in np.flatnonzero(good[rows]).tolist():
                atoms = numbers[offsets[rows.start + row] : offsets[rows.start + row + 1]]
                groups[rows.start + row] = hash_id(f"formula:{hill_formula(atoms)}")
    return groups
