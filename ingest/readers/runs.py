"""Runs of plain frames as columns: what compiled code makes of the text in a window."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.readers import scan
from ingest.readers.frame import DEFAULT_LAYOUT, Column, Frame, parse_header, parse_layout
from ingest.readers.records import Refused
from ingest.readers.window import Window

__all__ = ["Run", "Scanner"]

_MOST_FRAMES = 500  # of a run: what bounds its memory where frames are tiny
_KINDS = {"R": scan.FLOAT, "I": scan.INTEGER, "L": scan.TRUTH, "S": scan.WORD}
_NO_STOP = 1 << 62


@dataclass
class Run:
    """Some plain frames that follow each other and share one ``Properties``.

    Attributes:
        index: Number of the first in the stream.
        before: Bytes of the text before ``text``.
        text: The bytes they lie in.
        frames: Begin, number of atoms, begin of the header, of the rows, end; places in ``text`` (F, 5).
        layout: Name, kind and width of each column.
        keys: The wanted header keys.
        spans: Where their values lie (F, K, 2).
        numbers: Their numbers and truth values (F, K, 9).
        counts: How many there are; -1 where a frame has no such key (F, K).
        values: The words of all rows: numbers, atomic numbers, truth values as 1 and 0 (N, W).
    """

    index: int
    before: int
    text: bytes
    frames: NDArray[np.int64]
    layout: tuple[Column, ...]
    keys: tuple[str, ...]
    spans: NDArray[np.int64]
    numbers: NDArray[np.float64]
    counts: NDArray[np.int8]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    @cached_property
    def offsets(self) -> list[int]:
        """Byte of the text at which each frame begins."""
        offsets: list[int] = (self.frames[:, 0] + self.before).tolist()
        return offsets

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Row pointer of the atoms (F + 1,)."""
        starts = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(self.frames[:, 1], out=starts[1:])
        return starts

    @cached_property
    def columns(self) -> dict[str, tuple[str, NDArray[np.float64]]]:
        """Kind (S, R, I, L) and values (N,) or (N, width) of each column; words are zeros."""
        columns, first = {}, 0
        for name, kind, width in self.layout:
            values = self.values[:, first : first + width]
            columns[name] = (kind, values[:, 0] if width == 1 else values)
            first += width
        return columns

    def has(self, key: str) -> NDArray[np.bool_]:
        """Return which frames have a wanted key (F,)."""
        has: NDArray[np.bool_] = self.counts[:, self.keys.index(key)] >= 0
        return has

    def of(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Return the numbers of a key (F, 9), and how many each frame has (F,); -1 without the key."""
        k = self.keys.index(key)
        return self.numbers[:, k], self.counts[:, k]

    def texts(self, key: str) -> list[str]:
        """Return the values of a key, empty where a frame has it not."""
        spans = np.where(self.has(key)[:, None], self.spans[:, self.keys.index(key)], 0).tolist()
        return [self.text[begin:end].decode() for begin, end in spans]

    def frame(self, row: int) -> Frame:
        """Return one frame as raw text."""
        begin, num_atoms, header, rows, end = self.frames[row].tolist()
        lines = self.text[rows:end].split(b"\n")[:-1]
        return Frame(
            self.index + row,
            self.before + begin,
            num_atoms,
            self.text[header:rows],
            [line + b"\n" for line in lines],
        )


class Scanner:
    """Finds runs in a window; remembers the ``Properties`` of the last frame, because the next has the same."""

    def __init__(self, keys: dict[str, int]) -> None:
        """Take the wanted header keys with their kinds; ``Properties`` is added."""
        kinds = {"Properties": scan.TEXT, **keys}
        names = [key.encode() for key in kinds]
        self._keys = tuple(kinds)
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._kinds = np.array(list(kinds.values()), dtype=np.uint8)
        self._layout = DEFAULT_LAYOUT
        self._rooms: tuple[NDArray[Any], ...] | None = None

    def next(self, window: Window, index: int, stop: int | None) -> Run | None:
        """Return the run at the window's place and go behind it; None where no plain frame begins.

        Args:
            window: The text.
            index: Number of the next frame.
            stop: Byte of the text at which no further frame begins.

        Raises:
            EOFError: The stream breaks off, and before that lies no plain frame. So for all `STREAM_ERRORS`.
        """
        while True:
            run, why, place = self._scan(window, index, stop)
            if run:
                return run
            if why == scan.MORE:
                window.more()
            elif why != scan.LAYOUT or not self._learn(window.data[place[2] : place[3]]):
                return None

    def _scan(self, window: Window, index: int, stop: int | None) -> tuple[Run | None, int, NDArray[np.int64]]:
        """Make one pass; return the run, why the pass ended, and the place of the frame behind the run."""
        columns, words = _words(self._layout)
        text = np.frombuffer(window.data, dtype=np.uint8)
        frames, spans, numbers, counts, values = self._room(len(text) - window.at, len(words))
        last = _NO_STOP if stop is None else stop - window.offset + window.at
        count, at, why = scan.scan_frames(
            text, window.at, last, window.whole, words,
            np.frombuffer(self._layout.encode(), dtype=np.uint8), self._layout == DEFAULT_LAYOUT,
            self._names, self._ends, self._kinds, frames, spans, numbers, counts, values,
        )  # fmt: skip
        run = None
        if count:
            self._rooms = None
            before = window.offset - window.at
            run = Run(
                index, before, window.data, frames[:count], columns, self._keys, spans[:count],
                numbers[:count], counts[:count], values[: frames[:count, 1].sum()],
            )  # fmt: skip
        window.at = at
        return run, why, frames[min(count, len(frames) - 1)]

    def _room(self, num_bytes: int, width: int) -> tuple[NDArray[Any], ...]:
        """Return arrays for frames of so many bytes, rows of so many words; a run keeps those it is in."""
        size, num_keys = _MOST_FRAMES, len(self._keys)
        if self._rooms is None:
            self._rooms = (
                np.empty((size, 5), dtype=np.int64), np.empty((size, num_keys, 2), dtype=np.int64),
                np.empty((size, num_keys, scan.WIDTH)), np.empty((size, num_keys), dtype=np.int8),
                np.empty((0, 0)),
            )  # fmt: skip
        rows = num_bytes // (2 * width) + 1  # no row has less than two bytes a word
        if self._rooms[-1].shape[1] != width or len(self._rooms[-1]) < rows:
            self._rooms = (*self._rooms[:-1], np.empty((rows, width)))
        return self._rooms

    def _learn(self, header: bytes) -> bool:
        """Take over the ``Properties`` of a header; say whether it is another that plain frames can have."""
        try:
            layout = parse_header(header).get("Properties", DEFAULT_LAYOUT)
            columns = parse_layout(layout)
        except Refused:
            return False
        # A row of one word cannot be told from a count line, and of two columns of one name one is hidden.
        sound = sum(width for _, _, width in columns) > 1 and len({name for name, _, _ in columns}) == len(
            columns
        )
        changed = sound and layout != self._layout and layout.isascii()
        if changed:
            self._layout = layout
        return changed


@lru_cache(maxsize=64)
def _words(layout: str) -> tuple[tuple[Column, ...], NDArray[np.uint8]]:
    """Return the columns of a ``Properties`` value, and what each word of a row is (W,)."""
    columns = parse_layout(layout)
    kinds = [
        scan.SPECIES if name == "species" else _KINDS[kind]
        for name, kind, width in columns
        for _ in range(width)
    ]
    return columns, np.array(kinds, dtype=np.uint8)
