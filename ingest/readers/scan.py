"""Whole frames of extended XYZ text in one pass of compiled code; what is unusual in any way is left to Python.

A frame is plain when its header is printable ASCII without backslashes, its values are what their keys ask for,
every row has the words that ``Properties`` says, each certain without asking ``float()``, and the next line is
blank or begins a frame. Anything else ends the pass in front of that frame, and what is read is never a guess.

Source: the extended XYZ specification, github.com/libAtoms/extxyz.
"""

import numba
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ingest.readers.numbers import parse_decimal

__all__ = [
    "FLOAT", "FULL", "INTEGER", "LAYOUT", "MAX_ATOMS", "MAX_LINE", "MORE", "NUMBERS", "ODD", "SPECIES", "TEXT",
    "TRUTH", "TRUTHS", "WIDTH", "WORD", "scan_frames",
]  # fmt: skip

MAX_LINE = 1 << 20
MAX_ATOMS = 1_000_000
# Why a pass ended: no room for a further frame, text is missing, the frame is not plain, another Properties.
FULL, MORE, ODD, LAYOUT = range(4)
# What the words of a row are.
SPECIES, FLOAT, INTEGER, TRUTH, WORD = range(5)
# What the value of a header key is: anything, at most WIDTH numbers, as many truth values.
TEXT, NUMBERS, TRUTHS = range(3)
WIDTH = 9

_MISSING, _NOT_PLAIN = -2, -1  # in place of a position in the text


def _symbol_table() -> NDArray[np.uint8]:
    """Return atomic numbers by first and second letter (128 * 128,); 0 where there is no such element."""
    table = np.zeros(128 * 128, dtype=np.uint8)
    for number, symbol in enumerate(chemical_symbols[1:119], start=1):
        table[ord(symbol[0]) * 128 + (ord(symbol[1]) if len(symbol) > 1 else 0)] = number
    return table


_ELEMENTS = _symbol_table()


@numba.njit(nogil=True, cache=True)
def scan_frames(
    text: NDArray[np.uint8],
    start: int,
    stop: int,
    whole: bool,
    words: NDArray[np.uint8],
    layout: NDArray[np.uint8],
    by_default: bool,
    keys: NDArray[np.uint8],
    key_ends: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    frames: NDArray[np.int64],
    spans: NDArray[np.int64],
    numbers: NDArray[np.float64],
    counts: NDArray[np.int8],
    values: NDArray[np.float64],
) -> tuple[int, int, int]:
    """Read plain frames one after the other.

    Args:
        text: Bytes of the text (T,).
        start: Where a line begins that is blank or begins the first frame.
        stop: No frame that begins here or later is read.
        whole: Whether the text ends where these bytes do.
        words: What each word of a row is (W,).
        layout: The value of ``Properties`` that says so.
        by_default: Whether a header without ``Properties`` says so too.
        keys: Names of the header keys that are wanted, one after the other; the first is ``Properties``.
        key_ends: Where each name ends (K,).
        kinds: What the value of each key is (K,).
        frames: Out: begin, number of atoms, begin of the header, end of the header, end (F, 5).
        spans: Out: begin and end of each value in the text (F, K, 2).
        numbers: Out: numbers and truth values of each value (F, K, WIDTH).
        counts: Out: how many there are; -1 where the key is not there (F, K).
        values: Out: the words of all rows as numbers (R, W); with T / (2 W) rows there is always room.

    Returns:
        Number of frames read, where the text goes on, and why the pass ended.
    """
    size, num_words = len(text), len(words)
    at, row = start, 0
    short = ODD if whole else MORE
    for frame in range(len(frames)):
        begin, num_atoms, header = _count_line(text, at)
        if begin >= stop or header < 0:
            return frame, at, short if header == _MISSING else ODD
        rows = _header(text, header, keys, key_ends, kinds, spans[frame], numbers[frame], counts[frame])
        if rows < 0:
            return frame, at, short if rows == _MISSING else ODD
        frames[frame, 0], frames[frame, 1], frames[frame, 2], frames[frame, 3] = begin, num_atoms, header, rows
        if not _same_layout(text, spans[frame, 0], counts[frame, 0], layout, by_default):
            return frame, at, LAYOUT
        if num_atoms * num_words * 2 > size - rows:
            return frame, at, short
        end = rows
        for atom in range(num_atoms):
            end = _row(text, end, words, values[row + atom])
            if end < 0:
                return frame, at, short if end == _MISSING else ODD
        following = _ends_plainly(text, end, whole)
        if following < 0:
            return frame, at, short if following == _MISSING else ODD
        frames[frame, 4] = end
        row += num_atoms
        at = end
    return len(frames), at, FULL


@numba.njit(nogil=True, cache=True)
def _blank(byte: int) -> bool:
    """Say whether a byte parts words inside a line."""
    return byte == 32 or byte == 9 or byte == 13


@numba.njit(nogil=True, cache=True)
def _count_line(text: NDArray[np.uint8], at: int) -> tuple[int, int, int]:
    """Read a line that holds one whole number, behind blank ones: where it begins, the number, its end."""
    size, begin, first = len(text), at, at
    while at < size and (_blank(text[at]) or text[at] == 10):
        at += 1
        if text[at - 1] == 10:
            begin = at
        if at - first > MAX_LINE:
            return begin, 0, _NOT_PLAIN
    number, digits = 0, at
    while at < size and 48 <= text[at] <= 57 and at - digits < 8:
        number = number * 10 + int(text[at]) - 48
        at += 1
    if at < size and (at == digits or number > MAX_ATOMS):
        return begin, 0, _NOT_PLAIN
    while at < size and _blank(text[at]):
        at += 1
    if at == size:
        return begin, 0, _MISSING
    if text[at] != 10 or at - begin > 23:
        return begin, 0, _NOT_PLAIN
    return begin, number, at + 1


@numba.njit(nogil=True, cache=True)
def _ends_plainly(text: NDArray[np.uint8], at: int, whole: bool) -> int:
    """Say (by a position) whether what follows a frame is blank or begins another."""
    size, begin = len(text), at
    while at < size and _blank(text[at]) and at - begin < MAX_LINE:
        at += 1
    if at < size and text[at] == 10:
        return at
    if at == size and whole:
        return at
    _, _, following = _count_line(text, begin)
    return following


@numba.njit(nogil=True, cache=True)
def _same_layout(
    text: NDArray[np.uint8], span: NDArray[np.int64], count: int, layout: NDArray[np.uint8], by_default: bool
) -> bool:
    """Say whether a header has this ``Properties``."""
    if count < 0:
        return by_default
    if span[1] - span[0] != len(layout):
        return False
    same = True
    for k in range(len(layout)):
        same &= text[span[0] + k] == layout[k]
    return same


@numba.njit(nogil=True, cache=True)
def _header(
    text: NDArray[np.uint8],
    at: int,
    keys: NDArray[np.uint8],
    key_ends: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    spans: NDArray[np.int64],
    numbers: NDArray[np.float64],
    counts: NDArray[np.int8],
) -> int:
    """Read the values of the wanted keys from a header line; return where the next line begins."""
    size, end = len(text), at
    while end < size and text[end] != 10:
        byte = text[end]
        if byte == 92 or byte > 126 or (byte < 32 and not _blank(byte)) or end - at >= MAX_LINE - 1:
            return _NOT_PLAIN
        end += 1
    if end == size:
        return _MISSING
    counts[:] = -1
    while at < end:
        if _blank(text[at]):
            at += 1
            continue
        first = at
        while at < end and text[at] != 61 and not _blank(text[at]):  # =
            at += 1
        key = _wanted(text, first, at, keys, key_ends)
        if at == first or (key >= 0 and (at == end or text[at] != 61)):
            return _NOT_PLAIN
        if at == end or text[at] != 61:
            continue
        at += 1
        begin = at
        if at < end and (text[at] == 34 or text[at] == 39):  # " '
            begin += 1
            at += 1
            while at < end and text[at] != text[begin - 1]:
                at += 1
            if at == end:
                return _NOT_PLAIN
            stop = at
            at += 1
        else:
            while at < end and not _blank(text[at]):
                at += 1
            stop = at
        if key >= 0:
            spans[key, 0], spans[key, 1] = begin, stop
            counts[key] = 0 if kinds[key] == TEXT else _numbers(text, begin, stop, kinds[key], numbers[key])
            if counts[key] < 0:
                return _NOT_PLAIN
    return end + 1


@numba.njit(nogil=True, cache=True)
def _wanted(
    text: NDArray[np.uint8], first: int, stop: int, keys: NDArray[np.uint8], key_ends: NDArray[np.int64]
) -> int:
    """Return which of the wanted keys a word is; -1 for none."""
    begin = 0
    for key in range(len(key_ends)):
        if key_ends[key] - begin == stop - first:
            k = 0
            while k < stop - first and keys[begin + k] == text[first + k]:
                k += 1
            if k == stop - first:
                return key
        begin = key_ends[key]
    return -1


@numba.njit(nogil=True, cache=True)
def _numbers(text: NDArray[np.uint8], at: int, stop: int, kind: int, out: NDArray[np.float64]) -> int:
    """Read numbers or truth values between blanks, brackets, commas; return how many, -1 where one is none."""
    count = 0
    while True:
        while at < stop and _parts(text[at]):
            at += 1
        if at == stop:
            return count
        if count == len(out):
            return -1
        if kind == TRUTHS:
            out[count], at = _truth(text, at, stop)
            known = at > 0
        else:
            out[count], at, known = parse_decimal(text, at, stop)
        if not known or (at < stop and not _parts(text[at])):
            return -1
        count += 1


@numba.njit(nogil=True, cache=True)
def _parts(byte: int) -> bool:
    """Say whether a byte parts the numbers of a header value."""
    return _blank(byte) or byte == 44 or byte == 91 or byte == 93 or byte == 123 or byte == 125  # , [ ] { }


@numba.njit(nogil=True, cache=True)
def _truth(text: NDArray[np.uint8], at: int, stop: int) -> tuple[float, int]:
    """Read T, F, True, False, 1 or 0; return it as a number, and the byte behind it."""
    byte = text[at]
    left = stop - at
    if byte == 84:
        if left >= 4 and text[at + 1] == 114 and text[at + 2] == 117 and text[at + 3] == 101:
            return 1.0, at + 4
        return 1.0, at + 1
    if byte == 70:
        if (
            left >= 5
            and text[at + 1] == 97
            and text[at + 2] == 108
            and text[at + 3] == 115
            and text[at + 4] == 101
        ):
            return 0.0, at + 5
        return 0.0, at + 1
    if byte == 48 or byte == 49:
        return float(byte - 48), at + 1
    return 0.0, _NOT_PLAIN


@numba.njit(nogil=True, cache=True)
def _row(text: NDArray[np.uint8], at: int, words: NDArray[np.uint8], out: NDArray[np.float64]) -> int:
    """Read one row; return where the next line begins."""
    size, begin = len(text), at
    for k in range(len(words)):
        while at < size and _blank(text[at]):
            at += 1
        if at == size:
            return _MISSING
        kind, known = words[k], True
        if kind == FLOAT:
            out[k], at, known = parse_decimal(text, at, size)
        elif kind == INTEGER:
            out[k], at = _integer(text, at, size)
        elif kind == SPECIES:
            out[k], at = _species(text, at, size)
        elif kind == TRUTH:
            out[k], at = _truth(text, at, size)
        else:
            at = _word(text, at, size)
        if at == size:
            return _MISSING
        if not known or at < 0 or not (_blank(text[at]) or text[at] == 10):
            return _NOT_PLAIN
    while at < size and _blank(text[at]):
        at += 1
    if at == size:
        return _MISSING
    return at + 1 if text[at] == 10 and at - begin < MAX_LINE - 1 else _NOT_PLAIN


@numba.njit(nogil=True, cache=True)
def _word(text: NDArray[np.uint8], at: int, stop: int) -> int:
    """Skip a word; return the byte behind it."""
    first = at
    while at < stop and text[at] > 32:
        at += 1
    return at if at > first else _NOT_PLAIN


@numba.njit(nogil=True, cache=True)
def _integer(text: NDArray[np.uint8], at: int, stop: int) -> tuple[float, int]:
    """Read a whole number of at most 15 digits, which float64 holds exactly."""
    negative = text[at] == 45
    if text[at] == 45 or text[at] == 43:
        at += 1
    first, number = at, 0
    while at < stop and 48 <= text[at] <= 57 and at - first < 16:
        number = number * 10 + int(text[at]) - 48
        at += 1
    if not first < at < first + 16:
        return 0.0, _NOT_PLAIN if at < stop else at
    return float(-number if negative else number), at


@numba.njit(nogil=True, cache=True)
def _species(text: NDArray[np.uint8], at: int, stop: int) -> tuple[float, int]:
    """Read a symbol or an atomic number."""
    first = text[at]
    if 49 <= first <= 57:
        number, at = _integer(text, at, stop)
        return number, at if number <= 118 else _NOT_PLAIN
    second = text[at + 1] if at + 1 < stop and text[at + 1] > 32 else np.uint8(0)
    if first > 127 or second > 127:
        return 0.0, _NOT_PLAIN
    number = float(_ELEMENTS[int(first) * 128 + int(second)])
    return number, (at + 2 if second > 0 else at + 1) if number > 0 else _NOT_PLAIN
