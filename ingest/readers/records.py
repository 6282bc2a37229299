"""One record: what makes it a labelled structure, and how accepted and refused ones are gathered."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from gfm.errors import DataError
from ingest.readers.base import BLOCK_STRUCTURES, Block, Reject
from ingest.readers.suspects import suspects, wrong_numbers

__all__ = [
    "ATOMIC_NUMBERS",
    "MAX_Z",
    "PERIODIC",
    "SYMBOLS",
    "BlockBuilder",
    "Refused",
    "atomic_numbers",
    "check_structure",
    "finite",
    "hill_formula",
]

MAX_Z = 118
SYMBOLS: tuple[str, ...] = tuple(chemical_symbols[: MAX_Z + 1])  # by atomic number; the first is a placeholder
ATOMIC_NUMBERS: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}

PERIODIC: NDArray[np.bool_] = np.ones(
    3, dtype=bool
)  # along all three lattice vectors; shared, not to be written
PERIODIC.flags.writeable = False


class Refused(DataError):
    """A record that cannot be a labelled structure; readers catch it and write down a `Reject`."""

    def __init__(self, reason: str, value: object = "") -> None:
        """Take the reason (a slug that is counted) and the offending value."""
        super().__init__(f"{reason}: {value}" if value != "" else reason)
        self.reason = reason
        self.value = str(value)[:300]


class _Offer(NamedTuple):
    """A structure that waits for its block: where it stands among all records, and what it must have."""

    structure: Structure
    source: str
    place: int
    energy: bool
    forces: bool


class BlockBuilder:
    """Gathers structures and rejects, in order; hands out a block whenever enough have come together."""

    def __init__(self) -> None:
        self._batches: list[RaggedBatch] = []
        self._offers: list[_Offer] = []
        self._sources: list[str] = []
        self._rejects: list[tuple[int, Reject]] = []
        self._places = 0

    def add(self, structure: Structure, source: str) -> None:
        """Add one structure that `check_structure` let pass."""
        self.offer(structure, source, energy=False, forces=False)

    def offer(self, structure: Structure, source: str, *, energy: bool = True, forces: bool = True) -> None:
        """Add one structure, or its reject: what `check_structure` does, done for a whole block at once.

        Args:
            structure: The candidate, in eV and angstrom; it is kept, and may be changed.
            source: Where it is from.
            energy: Whether it must have an energy.
            forces: Whether it must have forces.
        """
        self._places += 1
        self._offers.append(_Offer(structure, source, self._places, energy, forces))

    def add_batch(self, batch: RaggedBatch, sources: list[str]) -> None:
        """Add structures that were checked together."""
        self._settle()
        self._batches.append(batch)
        self._sources += sources

    def reject(self, source: str, reason: str, value: object = "") -> None:
        """Write one refused record down."""
        self._places += 1
        self._rejects.append((self._places, Reject(source, reason, str(value)[:300])))

    def refuse(self, source: str, refused: Refused) -> None:
        """Write down the record that a `Refused` speaks of."""
        self.reject(source, refused.reason, refused.value)

    @property
    def full(self) -> bool:
        """Whether a block's worth has come together."""
        structures = len(self._sources) + len(self._offers)
        return structures >= BLOCK_STRUCTURES or len(self._rejects) >= BLOCK_STRUCTURES

    def __bool__(self) -> bool:
        """Whether there is anything to hand out."""
        return bool(self._sources or self._offers or self._rejects)

    def take(self) -> Block:
        """Hand out what has come together, and begin anew."""
        self._settle()
        self._rejects.sort(key=itemgetter(0))  # what was offered is refused later than it came
        batch = self._batches[0] if len(self._batches) == 1 else RaggedBatch.concatenate(self._batches)
        block = Block(batch, self._sources, [reject for _, reject in self._rejects])
        self._batches, self._offers, self._sources, self._rejects = [], [], [], []
        return block

    def _settle(self) -> None:
        """Make a batch of what was offered and is sound; the rest becomes rejects."""
        if not self._offers:
            return
        batch, rows = suspects([offer.structure for offer in self._offers])
        unlabelled = [
            row
            for row, (structure, _, _, energy, forces) in enumerate(self._offers)
            if (energy and structure.energy is None) or (forces and structure.forces is None)
        ]
        refused = set()
        for row in sorted({*rows, *unlabelled}):
            structure, source, place, energy, forces = self._offers[row]
            try:
                check_structure(structure, energy=energy, forces=forces)
            except Refused as error:
                self._rejects.append((place, Reject(source, error.reason, error.value)))
                refused.add(row)
        kept = [offer for row, offer in enumerate(self._offers) if row not in refused]
        if batch is None or refused:
            batch = RaggedBatch.from_structures([offer.structure for offer in kept])
        if kept:
            self._batches.append(batch)
        self._sources += [offer.source for offer in kept]
        self._offers = []


def hill_formula(numbers: NDArray[np.integer] | Sequence[int]) -> str:
    """Return the formula in Hill's order: C, then H, then the other symbols by alphabet."""
    counts = np.bincount(np.asarray(numbers))
    amounts = {SYMBOLS[kind]: int(counts[kind]) for kind in np.flatnonzero(counts)}
    first = [symbol for symbol in ("C", "H") if "C" in amounts and symbol in amounts]
    order = first + sorted(amounts.keys() - set(first))
    return "".join(f"{symbol}{amounts[symbol] if amounts[symbol] > 1 else ''}" for symbol in order)


def check_structure(structure: Structure, *, energy: bool = True, forces: bool = True) -> Structure:
    """Return the structure if it can be one, with its arrays in the storage dtypes.

    Args:
        structure: The candidate, in eV and angstrom.
        energy: Whether it must have an energy.
        forces: Whether it must have forces.

    Raises:
        Refused: It has no atoms, a label is missing, a shape does not fit, an atomic number is none, or a
            number is not finite (or too large for the storage dtype).
    """
    numbers = np.asarray(structure.numbers)
    if numbers.size == 0:
        raise Refused("no-atoms")
    if numbers.ndim != 1:
        raise Refused("bad-shape", f"numbers has shape {numbers.shape}, expected one dimension")
    if energy and structure.energy is None:
        raise Refused("missing-energy")
    if forces and structure.forces is None:
        raise Refused("missing-forces")
    structure.numbers = atomic_numbers(numbers)
    try:
        structure.check_shapes()
    except DataError as error:
        raise Refused("bad-shape", error) from None
    structure.positions = finite("positions", structure.positions, np.float32)
    structure.cell = finite("cell", structure.cell, np.float64)
    if structure.energy is not None:
        total = finite("energy", structure.energy, np.float64)
        if total.ndim:
            raise Refused("bad-energy", f"{total.size} values, expected one")
        structure.energy = float(total)
    if structure.forces is not None:
        structure.forces = finite("forces", structure.forces, np.float32)
    if structure.stress is not None:
        structure.stress = finite("stress", structure.stress, np.float32)
    for name in ("charge", "spin"):
        value = getattr(structure, name)
        if value is not None and not -128 <= value <= 127:
            raise Refused(f"bad-{name}", value)
    if _is_flat(structure.cell, structure.pbc):
        raise Refused("flat-cell", structure.cell.tolist())
    return structure


def _is_flat(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> bool:
    """Say whether the periodic lattice vectors span no length, area or volume (below 1e-6 angstrom^n)."""
    if not pbc.any():
        return False
    vectors = cell[pbc]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # vectors beyond 1e150 angstrom
        return bool(np.linalg.det(vectors @ vectors.T) < 1e-12)


def atomic_numbers(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return atomic numbers (N,) as uint8.

    Raises:
        Refused: One is not a whole number from 1 to 118.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise Refused("bad-atomic-number", f"dtype {values.dtype}")
    wrong = wrong_numbers(values)
    if wrong.any():
        raise Refused("bad-atomic-number", f"{values[wrong][0]} of atom {int(np.flatnonzero(wrong)[0])}")
    return values.astype(np.uint8)


def finite(name: str, values: Any, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return values in a floating dtype.

    Raises:
        Refused: They are not numbers, or one is NaN, infinite, or too large for the dtype.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "c":
        raise Refused(f"bad-{name}", f"dtype {values.dtype}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN is one, too
            array = np.asarray(np.asarray(values, dtype=np.float64), dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"bad-{name}", error) from None
    if not np.isfinite(array).all():
        raise Refused(f"{'nan' if np.isnan(array).any() else 'infinite'}-{name}", _first_bad(array))
    return array


def _first_bad(array: NDArray[Any]) -> str:
    """Say which entry is not finite."""
    if array.ndim == 0:
        return str(array)
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    return f"{array[index]} at {list(index)}"
