"""LMDB files for reading, without trust: a page or an entry is looked at before it is followed.

LMDB's own library maps a file and believes what it says of itself; a few damaged bytes of it end the process or
never let it come back. Here a damaged place costs the records that are found by way of it. Files are mapped,
a few at a time, and the search for a key is compiled.

Source: ``mdb.c`` in github.com/LMDB/lmdb (version 0.9): ``MDB_page``, ``MDB_node``, ``MDB_meta``.
"""

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gfm.errors import CorruptDataError
from ingest.readers.records import Refused

__all__ = ["LmdbFile", "is_lmdb", "open_lmdb"]

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_META_BYTES = 152  # of a page, up to the end of its meta data
_MOST_OPEN = 16  # files a process keeps mapped
_MOST_LEVELS = 32
_EMPTY = (1 << 64) - 1  # the root where there is no entry
_BRANCH, _LEAF, _OVERFLOW, _KINDS = 1, 2, 4, 0x6F
_PAGE_HEADER = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_BIG = 1  # a value in pages of its own
_MISSING, _DAMAGED = -1, -2

_open: dict[str, tuple[tuple[int, ...], "LmdbFile"]] = {}
_lock = threading.Lock()


def is_lmdb(path: Path) -> bool:
    """Say whether a file begins as an LMDB does."""
    with path.open("rb") as stream:
        head = stream.read(20)
    return len(head) == 20 and struct.unpack_from("<I", head, 16)[0] == _MAGIC


def open_lmdb(file: Path) -> "LmdbFile":
    """Return the open file; a process opens it once, and anew when it was replaced.

    Raises:
        CorruptDataError: It is cut short, or no LMDB.
    """
    name = os.path.realpath(file)
    with _lock:
        try:
            state = os.stat(name)
            identity = (state.st_ino, state.st_size, state.st_mtime_ns)
            known, found = _open.pop(name, (None, None))
            if found is None or known != identity:
                found = LmdbFile(name)
        except OSError as error:
            if isinstance(error, CorruptDataError):
                raise
            raise CorruptDataError(f"{file}: not readable as LMDB: {error}") from error
        _open[name] = (identity, found)
        if len(_open) > _MOST_OPEN:
            del _open[next(iter(_open))]
        return found


class LmdbFile:
    """One file, mapped.

    Attributes:
        entries: How many keys it says it has.
    """

    def __init__(self, name: str) -> None:
        """Map a file and find its tree.

        Raises:
            CorruptDataError: It is no LMDB, or shorter than its header says.
        """
        with open(name, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < _META_BYTES:
                raise CorruptDataError(f"{name}: not an LMDB file (no header; {size} bytes)")
            self._map = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        if _meta(self._map, 0) is None:
            raise CorruptDataError(f"{name}: not an LMDB file (no header; {size} bytes)")
        (self._page_size,) = struct.unpack_from("<I", self._map, 40)
        whole = 256 <= self._page_size <= 65536 and size >= self._page_size + _META_BYTES
        second = _meta(self._map, self._page_size) if whole else None
        if second is None:
            raise CorruptDataError(
                f"{name}: LMDB with pages of {self._page_size} bytes in a file of {size}; cut or damaged"
            )
        # Two headers take turns; the one of the later transaction counts.
        first = _meta(self._map, 0)
        assert first is not None
        _, last_page, flags, self.entries, self._root = max(first, second)
        needed = (last_page + 1) * self._page_size
        if size < needed:
            raise CorruptDataError(f"{name}: {size} bytes, but its header says {needed}; the file is cut short")
        if flags:
            raise CorruptDataError(f"{name}: LMDB with flags {flags:#x}, expected plain keys and values")
        self._num_pages = last_page + 1
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key; None where there is none.

        Raises:
            Refused: A page on the way to it is damaged.
        """
        if self._root == _EMPTY:
            return None
        if not 2 <= self._root < self._num_pages:
            raise Refused("unreadable", f"the tree of this LMDB begins at page {self._root}, where none can be")
        wanted = np.frombuffer(key, dtype=np.uint8)
        begin, size = _find(self._bytes, self._page_size, self._num_pages, self._root, wanted)
        if begin == _DAMAGED:
            raise Refused("unreadable", f"page {size} of this LMDB is damaged")
        return None if begin == _MISSING else self._map[begin : begin + size]

    def all_keys(self) -> Iterator[bytes]:
        """Yield all keys in their order.

        Raises:
            Refused: A page is damaged.
        """
        waiting = [] if self._root == _EMPTY else [self._root]
        seen: set[int] = set()
        while waiting:
            page = waiting.pop()
            if page in seen or not 2 <= page < self._num_pages:
                raise Refused("unreadable", f"page {page} of this LMDB lies where none can")
            seen.add(page)
            nodes = list(self._nodes(page))
            if nodes and nodes[0][0] == _BRANCH:
                waiting += [child for _, child, _ in reversed(nodes)]
            else:
                yield from (key for _, _, key in nodes)

    def _nodes(self, page: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield the entries of a page: its kind, the page below (a branch's), the key."""
        start = page * self._page_size
        number, _, kind, lower, upper = _PAGE_HEADER.unpack_from(self._map, start)
        kind &= _KINDS
        if number != page or kind not in (_BRANCH, _LEAF) or not 16 <= lower <= upper <= self._page_size:
            raise Refused("unreadable", f"page {page} of this LMDB is damaged")
        for (at,) in struct.iter_unpack("<H", self._map[start + 16 : start + (lower & ~1)]):
            if not lower <= at <= self._page_size - 8:
                raise Refused("unreadable", f"page {page} of this LMDB is damaged")
            low, high, flags, key_size = _NODE.unpack_from(self._map, start + at)
            if at + 8 + key_size > self._page_size:
                raise Refused("unreadable", f"page {page} of this LMDB is damaged")
            key = self._map[start + at + 8 : start + at + 8 + key_size]
            yield kind, low | high << 16 | flags << 32, key


def _meta(data: Any, at: int) -> tuple[int, int, int, int, int] | None:
    """Return transaction, last page, flags, entries and root of the header at a byte; None if there is none."""
    if struct.unpack_from("<II", data, at + 16) != (_MAGIC, _VERSION):
        return None
    (flags,) = struct.unpack_from("<H", data, at + 92)
    entries, root, last_page, transaction = struct.unpack_from("<QQQQ", data, at + 120)
    return transaction, last_page, flags, entries, root


@numba.njit(nogil=True, cache=True)
def _number(data: NDArray[np.uint8], at: int, width: int) -> int:
    """Return a little-endian number of up to 6 bytes."""
    value = 0
    for index in range(width):
        value |= int(data[at + index]) << (8 * index)
    return value


@numba.njit(nogil=True, cache=True)
def _compare(data: NDArray[np.uint8], at: int, size: int, key: NDArray[np.uint8]) -> int:
    """Return -1, 0 or 1 as a key stands before, at or behind the key in the file."""
    for index in range(min(size, len(key))):
        if key[index] != data[at + index]:
            return -1 if key[index] < data[at + index] else 1
    return 0 if len(key) == size else (-1 if len(key) < size else 1)


@numba.njit(nogil=True, cache=True)
def _find(
    data: NDArray[np.uint8], page_size: int, num_pages: int, root: int, key: NDArray[np.uint8]
) -> tuple[int, int]:
    """Return where the value of a key begins and its bytes; -1 where there is none; -2 and a damaged page."""
    page = root
    for _ in range(_MOST_LEVELS):
        start = page * page_size
        if page < 2 or page >= num_pages or _number(data, start, 6) != page:
            return _DAMAGED, page
        kind = _number(data, start + 10, 2) & _KINDS
        lower, upper = _number(data, start + 12, 2), _number(data, start + 14, 2)
        if kind not in (_BRANCH, _LEAF) or lower < 18 or lower > upper or upper > page_size:
            return _DAMAGED, page
        # The last entry whose key is not behind the one that is looked for; a branch's first has no key.
        first, last, order = 0, (lower - 16) // 2, 1
        if kind == _BRANCH:
            first = 1
        while first < last:
            middle = (first + last) // 2
            at = _number(data, start + 16 + 2 * middle, 2)
            if at < lower or at + 8 > page_size:
                return _DAMAGED, page
            size = _number(data, start + at + 6, 2)
            if at + 8 + size > page_size:
                return _DAMAGED, page
            order = _compare(data, start + at + 8, size, key)
            if order < 0:
                last = middle
            else:
                first = middle + 1
                if order == 0:
                    break
        if kind == _LEAF and order != 0:
            return _MISSING, 0
        at = _number(data, start + 16 + 2 * (first - 1), 2)
        if at < lower or at + 8 > page_size:
            return _DAMAGED, page
        if kind == _BRANCH:
            page = _number(data, start + at, 6)
            continue
        size, flags = _number(data, start + at, 4), _number(data, start + at + 4, 2)
        begin = at + 8 + _number(data, start + at + 6, 2)
        if flags == 0:
            return (start + begin, size) if begin + size <= page_size else (_DAMAGED, page)
        if flags != _BIG or begin + 8 > page_size:
            return _DAMAGED, page
        first_page = _number(data, start + begin, 6)
        return _big(data, page_size, num_pages, first_page, size)
    return _DAMAGED, page


@numba.njit(nogil=True, cache=True)
def _big(data: NDArray[np.uint8], page_size: int, num_pages: int, page: int, size: int) -> tuple[int, int]:
    """Return where a value in pages of its own begins, and its bytes; -2 and the page where it is damaged."""
    start = page * page_size
    if page < 2 or page >= num_pages or _number(data, start, 6) != page:
        return _DAMAGED, page
    pages = _number(data, start + 12, 4)
    if _number(data, start + 10, 2) & _KINDS != _OVERFLOW or pages != (16 + size + page_size - 1) // page_size:
        return _DAMAGED, page
    if page + pages > num_pages:
        return _DAMAGED, page
    return start + 16, size
