"""Extended XYZ text as frames, fast and without trust: a count line, a header line, one row per atom.

The parser keeps in step when a frame is damaged: a line that holds one whole number and nothing else begins a
frame, so a frame with too few or too many rows is one refused record, and the next is read again.

Source: the extended XYZ specification, github.com/libAtoms/extxyz.
"""

import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gfm.errors import CorruptDataError
from ingest.readers.records import ATOMIC_NUMBERS, MAX_Z, Refused

__all__ = [
    "Frame",
    "FrameError",
    "frames",
    "is_packed",
    "open_text",
    "parse_cell",
    "parse_floats",
    "parse_frame",
    "parse_header",
    "seek_frame",
]

_MAX_LINE = 1 << 20
_MAX_ATOMS = 1_000_000
# Errors that unpacking a damaged or shortened file ends in.
STREAM_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
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
    """A stretch of text that is no frame: where, the reason, and what was found."""

    index: int
    offset: int
    reason: str
    value: str


def is_packed(path: Path) -> bool:
    """Say whether a file is packed (.xz, .gz, .zip), by what its first bytes say."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\xfd7zXZ", b"\x1f\x8b", b"PK\x03\x04"))


def open_text(path: Path, member: str | None = None) -> io.BufferedIOBase:
    """Open a file that is plain or packed (.xz, .gz, .zip), by what its first bytes say.

    Raises:
        CorruptDataError: It is a zip that cannot be opened.
    """
    with path.open("rb") as stream:
        magic = stream.read(6)
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(path)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(path)
    if magic.startswith(b"PK\x03\x04"):
        try:
            archive = zipfile.ZipFile(path)
            return cast("io.BufferedIOBase", archive.open(member or archive.namelist()[0]))
        except (zipfile.BadZipFile, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
            raise CorruptDataError(f"{path}: not readable as zip: {error}") from error
    return path.open("rb")


def frames(stream: io.BufferedIOBase, start: int = 0, stop: int | None = None) -> Iterator[Frame | FrameError]:
    """Yield the frames whose count line begins in a range of bytes, and what lies between as errors.

    Args:
        stream: Open at ``start``, which is 0 or what `seek_frame` returned.
        start: Byte of the first frame.
        stop: Byte at which no further frame begins; None for the end of the text.
    """
    index, begin = 0, start
    try:
        line, offset = _line(stream), start
        # A line that begins no frame belongs to the range before it; no range starts with one.
        while line and (stop is None or offset < stop or not _is_count(line)):
            begin = offset
            if not line.strip():
                offset += len(line)
                line = _line(stream)
                continue
            if not _is_count(line):
                found = f"expected a number of atoms, found {line[:60]!r}"
                line, offset = _skip(stream, offset + len(line))
                yield FrameError(index, begin, "bad-frame", found)
                index += 1
                continue
            num_atoms = int(line)
            header = _line(stream)
            offset += len(line) + len(header)
            rows: list[bytes] = []
            line = _line(stream)
            while line and len(rows) < num_atoms and not _is_count(line):
                rows.append(line)
                offset += len(line)
                line = _line(stream)
            if len(rows) < num_atoms:
                reason = "bad-frame" if line else "truncated-file"
                yield FrameError(index, begin, reason, f"{len(rows)} rows of the {num_atoms} announced")
            elif not line and not (rows or [header])[-1].endswith(b"\n"):
                # Nothing tells a last number that was cut in half from a whole one.
                yield FrameError(index, begin, "truncated-file", "the last line has no end")
            elif rows and line.strip() and not _is_count(line) and _alike(line, rows[-1]):
                line, offset = _skip(stream, offset + len(line))
                yield FrameError(index, begin, "bad-frame", f"more rows than the {num_atoms} announced")
            else:
                yield Frame(index, begin, num_atoms, header, rows)
            index += 1
    except STREAM_ERRORS as error:
        # What was unpacked before is good; where the stream breaks off, all that follows is lost at once.
        reason = "truncated-file" if isinstance(error, EOFError) else "corrupt-file"
        yield FrameError(index, begin, reason, f"{type(error).__name__}: {error}")


def seek_frame(stream: io.BufferedIOBase, start: int) -> int:
    """Move a plain file to the first frame that begins at a byte or after it; return where that is."""
    if start == 0:
        return stream.seek(0)
    stream.seek(start - 1)
    skipped = stream.readline(_MAX_LINE)  # the rest of the line before, or its end
    _, offset = _skip(stream, start - 1 + len(skipped))
    return stream.seek(offset)


def _line(stream: io.BufferedIOBase) -> bytes:
    """Return the next line.

    Raises:
        OSError: It is longer than any line of such a file; memory is not spent on finding its end.
    """
    line = stream.readline(_MAX_LINE)
    if len(line) == _MAX_LINE and not line.endswith(b"\n"):
        raise OSError(f"a line of more than {_MAX_LINE} bytes")
    return line


def _skip(stream: io.BufferedIOBase, offset: int) -> tuple[bytes, int]:
    """Go on to the next line that may begin a frame; return it and where it begins."""
    line = stream.readline(_MAX_LINE)
    while line and not _is_count(line):
        offset += len(line)
        line = stream.readline(_MAX_LINE)
    return line, offset


def _alike(line: bytes, row: bytes) -> bool:
    """Say whether a line has as many words as a row."""
    return len(line.split()) == len(row.split())


def _is_count(line: bytes) -> bool:
    """Say whether a line holds one whole number and nothing else."""
    if len(line) > 24:
        return False
    word = line.strip()
    return word.isdigit() and int(word) <= _MAX_ATOMS


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
    layout = _layout(info.get("Properties", "species:S:1:pos:R:3"))
    width = sum(count for _, _, count in layout)
    words = b" ".join(frame.rows).split()
    if len(words) != width * frame.num_atoms:
        raise Refused(
            "bad-frame", f"{len(words)} words in {frame.num_atoms} rows, Properties has {width} a row"
        )
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
def _layout(text: str) -> tuple[tuple[str, str, int], ...]:
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
