"""One frame of extended XYZ, word by word: what compiled code leaves over, and what it is measured against.

Source: the extended XYZ specification, github.com/libAtoms/extxyz.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.readers.records import ATOMIC_NUMBERS, MAX_Z, Refused

__all__ = [
    "DEFAULT_LAYOUT",
    "Column",
    "Frame",
    "FrameError",
    "parse_cell",
    "parse_floats",
    "parse_frame",
    "parse_header",
    "parse_layout",
]

DEFAULT_LAYOUT = "species:S:1:pos:R:3"
Column = tuple[str, str, int]  # name, kind (S, R, I, L) and width
_PAIR = re.compile(
    r"""\s*(?P<key>[^\s=]+)(?:=(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>\S*)))?"""
)
_SYMBOLS = {symbol.encode(): number for symbol, number in ATOMIC_NUMBERS.items()} | {
    str(number).encode(): number for number in range(1, MAX_Z + 1)
}
_TRUTH = {b"T": True, b"F": False, b"True": True, b"False": False, b"1": True, b"0": False}


@dataclass
class Frame:
    """The raw text of one frame.

    Attributes:
        index: Its number in the stream, from 0; a damaged frame has one too.
        offset: Byte at which its count line begins, in the unpacked text.
        num_atoms: What its count line says.
        header: Its second line.
        rows: Its further lines.
    """

    index: int
    offset: int
    num_atoms: int
    header: bytes
    rows: list[bytes]


@dataclass
class FrameError:
    """A stretch of text that is no frame: where, why, what was found, whether it is the end."""

    index: int
    offset: int
    reason: str
    value: str
    is_last: bool = False


def parse_header(header: bytes) -> dict[str, str]:
    """Return the ``key=value`` pairs of a header line; a key alone means T.

    Raises:
        Refused: It is not text.
    """
    try:
        text = header.decode()
    except UnicodeDecodeError as error:
        raise Refused("bad-header", error) from None
    info: dict[str, str] = {}
    for match in _PAIR.finditer(text):
        values = match["double"], match["single"], match["bare"]
        info[match["key"]] = next((value for value in values if value is not None), "T")
    return info


def parse_frame(frame: Frame) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Return the header's pairs and the columns by name: (N,) or (N, width); float64, int64, bool or bytes.

    ``species`` comes as atomic numbers, whatever its type.

    Raises:
        Refused: Header and rows do not fit each other, or a word is not what its column asks for.
    """
    info = parse_header(frame.header)
    layout = parse_layout(info.get("Properties", DEFAULT_LAYOUT))
    width = sum(count for _, _, count in layout)
    rows = [row.split() for row in frame.rows]
    for number, row in enumerate(rows):
        if len(row) != width:
            raise Refused("bad-frame", f"{len(row)} words in row {number}, Properties has {width} a row")
    words = [word for row in rows for word in row]
    columns: dict[str, NDArray[Any]] = {}
    first = 0
    for name, kind, count in layout:
        parts = [_column(name, kind, words[k::width]) for k in range(first, first + count)]
        columns[name] = parts[0] if count == 1 else np.stack(parts, axis=1)
        first += count
    return info, columns


def parse_floats(text: str, what: str) -> NDArray[np.float64]:
    """Return the numbers of a header value, with or without brackets and commas.

    Raises:
        Refused: Something in it is no number.
    """
    try:
        return np.array([float(word) for word in re.sub(r"[\[\]{},]", " ", text).split()])
    except ValueError as error:
        raise Refused(f"bad-{what}", error) from None


def parse_cell(info: dict[str, str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return cell (3, 3), zeros without one, and pbc (3,): what is said, else whether there is a cell.

    Raises:
        Refused: ``Lattice`` is not nine numbers, or ``pbc`` not three truth values.
    """
    cell = np.zeros((3, 3))
    if "Lattice" in info:
        numbers = parse_floats(info["Lattice"], "cell")
        if numbers.size != 9:
            raise Refused("bad-cell", f"Lattice has {numbers.size} numbers")
        cell = numbers.reshape(3, 3)
    words = info.get("pbc", "T T T" if "Lattice" in info else "F F F")
    try:
        pbc = [_TRUTH[word.encode()] for word in re.sub(r"[\[\]{},]", " ", words).split()]
    except KeyError as error:
        raise Refused("bad-pbc", error) from None
    if len(pbc) != 3:
        raise Refused("bad-pbc", words)
    return cell, np.array(pbc)


@lru_cache(maxsize=256)
def parse_layout(text: str) -> tuple[Column, ...]:
    """Split a ``Properties`` value into name, type and width of each column.

    Raises:
        Refused: It is not made of such triples.
    """
    words = text.split(":")
    layout = []
    for name, kind, count in zip(words[::3], words[1::3], words[2::3], strict=False):
        if kind not in ("S", "R", "I", "L") or not count.isdecimal() or not 1 <= int(count) <= 100:
            raise Refused("bad-header", f"Properties={text[:100]}")
        layout.append((name, kind, int(count)))
    if len(words) % 3 or not layout:
        raise Refused("bad-header", f"Properties={text[:100]}")
    return tuple(layout)


def _column(name: str, kind: str, words: list[bytes]) -> NDArray[Any]:
    """Return one column.

    Raises:
        Refused: A word in it is not of the column's type.
    """
    try:
        if name == "species":
            return np.array([_SYMBOLS[word] for word in words], dtype=np.int64)
        if kind == "R":
            return np.array(list(map(float, words)))
        if kind == "I":
            return np.array(list(map(int, words)), dtype=np.int64)
        if kind == "L":
            return np.array([_TRUTH[word] for word in words], dtype=bool)
    except (KeyError, ValueError, OverflowError) as error:
        reason = "bad-atomic-number" if name == "species" else f"bad-{name}"
        raise Refused(reason, f"{error} is no {'element' if name == 'species' else kind}") from None
    return np.array(words, dtype=bytes)
