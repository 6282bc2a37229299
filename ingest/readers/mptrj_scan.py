"""The frames of one MPtrj material in one pass of compiled code; what is unusual in any way is left to Python.

A material is plain when it is JSON as `ingest.readers.json_scan` takes it, each frame has a lattice and sites
that are one whole atom each, its labels are numbers of the right shape or null, and no key that counts is there
twice. Order of keys and blanks do not matter. What nobody reads is checked to be JSON, and skipped. Anything
else makes the pass give up, and what is read is never a guess.
"""

from collections.abc import Iterator

import numba
import numpy as np
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.data.units import KBAR
from ingest.readers.base import hash_id
from ingest.readers.json_scan import (
    ARRAY,
    NULL,
    OBJECT,
    Text,
    go_on,
    is_word,
    read_key,
    read_number,
    read_string,
    read_vector,
    read_vectors,
    skip_blanks,
    skip_value,
    start,
    word,
)
from ingest.readers.records import ATOMIC_NUMBERS, PERIODIC

__all__ = ["MaterialScanner"]

_KEYS = ("xyz", "species", "element", "occu", "structure", "lattice", "matrix", "sites", "force", "stress",
         "corrected_total_energy", "uncorrected_total_energy")  # fmt: skip
_BITS = [1 << k for k in range(len(_KEYS))]
_XYZ, _SPECIES, _ELEMENT, _OCCU, _STRUCTURE, _LATTICE, _MATRIX, _SITES, _FORCE, _STRESS = _BITS[:10]
_FRAME_BYTES, _SITE_BYTES = 120, 50  # no frame, and no site, is written with less


class MaterialScanner:
    """Reads the frames of one plain material after the other."""

    def __init__(self, label: str) -> None:
        """Take the name of the energy that is read."""
        self._label = _BITS[_KEYS.index(label)]
        self._make_room(1 << 18)

    def _make_room(self, size: int) -> None:
        """Make arrays for a text of so many bytes; rows that are not written to take no memory."""
        frames, sites = size // _FRAME_BYTES + 1, size // _SITE_BYTES + 1
        self._text = np.empty(size + 1, dtype=np.uint8)
        self._places = np.empty((frames, 4), dtype=np.int64)
        self._labels = np.empty((frames, 19))
        self._numbers = np.empty(sites, dtype=np.uint8)
        self._positions, self._forces = np.empty((sites, 3)), np.empty((sites, 3))

    def structures(self, material: str, text: bytes) -> Iterator[tuple[str, Structure]] | None:
        """Return the id and structure of each frame in a material's text; None where it is not plain.

        They must be taken before the next text is scanned; what they hold stays as it is then.
        """
        if len(text) >= len(self._text):
            self._make_room(len(text) + len(text) // 4)
        self._text[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        self._text[len(text)] = 0
        count = _scan_frames(
            self._text[: len(text) + 1], self._label,
            self._places, self._labels, self._numbers, self._positions, self._forces,
        )  # fmt: skip
        ids = [text[begin:stop].decode("ascii") for begin, stop in self._places[: max(count, 0), :2].tolist()]
        return self._frames(material, ids) if len(set(ids)) == count else None

    def _frames(self, material: str, ids: list[str]) -> Iterator[tuple[str, Structure]]:
        """Yield the frames that were scanned last."""
        labels = self._labels[: len(ids)].copy()
        energies, cells = labels[:, 0].tolist(), labels[:, 1:10].reshape(-1, 3, 3)
        stresses = labels[:, 10:].reshape(-1, 3, 3) * -KBAR
        stops, has = self._places[: len(ids), 2].tolist(), self._places[: len(ids), 3].tolist()
        numbers = self._numbers[: max(stops, default=0)].copy()
        positions, forces = self._positions[: len(numbers)].copy(), self._forces[: len(numbers)].copy()
        group, begin = hash_id(f"mp:{material}"), 0
        for row, (name, stop) in enumerate(zip(ids, stops, strict=True)):
            yield (
                name,
                Structure(
                    numbers=numbers[begin:stop],
                    positions=positions[begin:stop],
                    cell=cells[row],
                    pbc=PERIODIC,
                    energy=energies[row] if has[row] & self._label else None,
                    forces=forces[begin:stop] if has[row] & _FORCE else None,
                    stress=stresses[row] if has[row] & _STRESS else None,
                    group=group,
                    key=hash_id(f"mptrj:{material}/{name}"),
                ),
            )
            begin = stop


def _key_tables() -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return which key, or -1, has a length and first letter (no two share both); and the letters of each."""
    candidates, letters = np.full((32, 128), -1), np.zeros((len(_KEYS), 32), dtype=np.uint8)
    for k, key in enumerate(_KEYS):
        candidates[len(key), ord(key[0])] = k
        letters[k, : len(key)] = word(key)
    return candidates, letters


def _symbol_table() -> NDArray[np.uint8]:
    """Return atomic numbers by first and second letter (128, 128); 0 where there is no such element."""
    table = np.zeros((128, 128), dtype=np.uint8)
    for symbol, number in ATOMIC_NUMBERS.items():
        table[ord(symbol[0]), ord(symbol[1]) if len(symbol) > 1 else 0] = number
    return table


_NUMBERS = _symbol_table()
_CANDIDATES, _LETTERS = _key_tables()


@numba.njit(nogil=True, cache=True)
def _scan_frames(
    text: Text,
    label: int,
    places: NDArray[np.int64],
    labels: NDArray[np.float64],
    numbers: NDArray[np.uint8],
    positions: NDArray[np.float64],
    forces: NDArray[np.float64],
) -> int:
    """Read the object that holds a material's frames.

    Args:
        text: Its bytes, and a byte 0 (T,).
        label: Bit of the energy that is read.
        places: Out: begin and end of a frame's id in the text, row behind its atoms, bits it has (F, 4).
        labels: Out: its energy, lattice vectors and stress (F, 19); zeros where it has none.
        numbers: Out: atomic numbers (N,).
        positions: Out: Cartesian positions (N, 3).
        forces: Out: forces (N, 3); those of a frame that has none are undefined.

    Returns:
        Number of frames; -1 where the material is not plain, or there is no room for it.
    """
    frame, row = 0, 0
    at, more = start(text, skip_blanks(text, 0), OBJECT)
    while more:
        if frame == len(places):
            return -1
        places[frame, 0] = at + 1
        stop, at = read_key(text, at)
        places[frame, 1] = stop - 1
        at, num_atoms, has = _frame(
            text, at, label, labels[frame], numbers[row:], positions[row:], forces[row:]
        )
        row += num_atoms
        places[frame, 2], places[frame, 3] = row, has
        frame += 1
        at, more = go_on(text, at, OBJECT)
    return frame if skip_blanks(text, at) == len(text) - 1 else -1


@numba.njit(nogil=True, cache=True)
def _key(text: Text, at: int, seen: int) -> tuple[int, int, int]:
    """Read a key of an object: its bit (0 if it does not count), the bits seen so far, the place of its value.

    There is no such place where the key is there twice.
    """
    stop, value = read_key(text, at)
    length = stop - at - 2
    if 0 < length < len(_CANDIDATES):
        k = _CANDIDATES[length, text[at + 1]]
        if k >= 0 and is_word(text, at + 1, _LETTERS[k, :length]):
            return 1 << k, seen | 1 << k, -1 if seen & 1 << k else value
    return 0, seen, value


@numba.njit(nogil=True, cache=True)
def _frame(
    text: Text,
    at: int,
    label: int,
    labels: NDArray[np.float64],
    numbers: NDArray[np.uint8],
    positions: NDArray[np.float64],
    forces: NDArray[np.float64],
) -> tuple[int, int, int]:
    """Read one frame: the place behind it, its number of atoms, and bits of what it has."""
    seen, has, num_atoms, num_forces, rows = 0, 0, 0, 0, 3
    labels[:] = 0.0
    at, more = start(text, at, OBJECT)
    while more:
        key, seen, at = _key(text, at, seen)
        has |= key if text[at] != NULL else 0
        if not has & key:
            at = skip_value(text, at)
        elif key == _STRUCTURE:
            at, num_atoms = _structure(text, at, labels[1:10].reshape(3, 3), numbers, positions)
        elif key == label:
            at, labels[0] = read_number(text, at)
        elif key == _FORCE:
            at, num_forces = read_vectors(text, at, forces)
        elif key == _STRESS:
            at, rows = read_vectors(text, at, labels[10:].reshape(3, 3))
        else:
            at = skip_value(text, at)
        at, more = go_on(text, at, OBJECT)
    if num_atoms == 0 or rows != 3 or (has & _FORCE and num_forces != num_atoms):
        return -1, 0, 0
    return at, num_atoms, has


@numba.njit(nogil=True, cache=True)
def _structure(
    text: Text, at: int, cell: NDArray[np.float64], numbers: NDArray[np.uint8], positions: NDArray[np.float64]
) -> tuple[int, int]:
    """Read a structure: the place behind it, and its number of atoms."""
    seen, num_atoms = 0, 0
    at, more = start(text, at, OBJECT)
    while more:
        key, seen, at = _key(text, at, seen)
        if key == _LATTICE:
            at = _lattice(text, at, cell)
        elif key == _SITES:
            at, num_atoms = _sites(text, at, numbers, positions)
        else:
            at = skip_value(text, at)
        at, more = go_on(text, at, OBJECT)
    return at if seen & _LATTICE else -1, num_atoms


@numba.njit(nogil=True, cache=True)
def _lattice(text: Text, at: int, cell: NDArray[np.float64]) -> int:
    """Read the vectors of a lattice; return the place behind it."""
    seen, rows = 0, 0
    at, more = start(text, at, OBJECT)
    while more:
        key, seen, at = _key(text, at, seen)
        if key == _MATRIX:
            at, rows = read_vectors(text, at, cell)
        else:
            at = skip_value(text, at)
        at, more = go_on(text, at, OBJECT)
    return at if rows == 3 else -1


@numba.njit(nogil=True, cache=True)
def _sites(text: Text, at: int, numbers: NDArray[np.uint8], positions: NDArray[np.float64]) -> tuple[int, int]:
    """Read a list of sites: the place behind it, and how many there are."""
    count = 0
    at, more = start(text, at, ARRAY)
    while more:
        if count == len(numbers):
            return -1, 0
        at, numbers[count] = _site(text, at, positions[count])
        count += 1
        at, more = go_on(text, at, ARRAY)
    return at, count


@numba.njit(nogil=True, cache=True)
def _site(text: Text, at: int, position: NDArray[np.float64]) -> tuple[int, int]:
    """Read a site: the place behind it, and its atomic number."""
    seen, number = 0, 0
    at, more = start(text, at, OBJECT)
    while more:
        key, seen, at = _key(text, at, seen)
        if key == _SPECIES:
            at, number = _whole_atom(text, at)
        elif key == _XYZ:
            at = read_vector(text, at, position)
        else:
            at = skip_value(text, at)
        at, more = go_on(text, at, OBJECT)
    return at if number > 0 and seen & _XYZ else -1, number


@numba.njit(nogil=True, cache=True)
def _whole_atom(text: Text, at: int) -> tuple[int, int]:
    """Read a list of one species with occupancy 1: the place behind it, and its atomic number."""
    seen, number, occupancy = 0, 0, 0.0
    at, more = start(text, at, ARRAY)
    at, more = start(text, at if more else -1, OBJECT)
    while more:
        key, seen, at = _key(text, at, seen)
        if key == _ELEMENT:
            at, number = _symbol(text, at)
        elif key == _OCCU:
            at, occupancy = read_number(text, at)
        else:
            at = skip_value(text, at)
        at, more = go_on(text, at, OBJECT)
    at, more = go_on(text, at, ARRAY)
    return at if occupancy == 1.0 and not more else -1, number


@numba.njit(nogil=True, cache=True)
def _symbol(text: Text, at: int) -> tuple[int, int]:
    """Read the symbol of an element in quotes: the place behind it, and its atomic number."""
    stop = read_string(text, at)
    if not at + 3 <= stop <= at + 4:
        return -1, 0
    number = int(_NUMBERS[text[at + 1], text[at + 2] if stop == at + 4 else 0])
    return stop if number > 0 else -1, number
