"""Arrays of an HDF5 file, read by their place in the file; links are not followed out of it.

Where a file holds millions of tiny arrays, opening them costs 20 times as much as their bytes. The library says
where the header of an array lies; one of the plain form (`ingest.readers.hdf5_header`) is read here, and the
array from the same stretch of the file. Whatever else there is the library reads.
"""

import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.readers.base import HDF5_ERRORS
from ingest.readers.hdf5_header import HEADER_BYTES, parse_header, plain_dtypes
from ingest.readers.records import Refused

if TYPE_CHECKING:
    import h5py
    from h5py._objects import ObjectID
    from h5py.h5d import DatasetID
    from h5py.h5g import GroupID

__all__ = ["HARD", "Child", "Hdf5Arrays", "Stored"]

HARD = 0  # the type of a link that is an object's own place in the tree
# A chunk that was never written costs no bytes and is read as any number of zeros. No compression makes so many
# bytes of one that is stored (deflate: 1032); a small array may hold what it likes.
_MOST_PER_BYTE = 5000
_SMALL = 1 << 24
_WINDOW = 1 << 15  # bytes read ahead: the arrays of one group lie side by side


class Stored(NamedTuple):
    """One array of a file: where its bytes lie, or the object that reads them.

    Attributes:
        shape: Its shape.
        dtype: Its dtype as numpy has it; the kind says whether these are numbers.
        address: First byte of the array in the file.
        dataset: Set where only the library can read it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int = -1
    dataset: "DatasetID | None" = None


class Child(NamedTuple):
    """One entry of a group.

    Attributes:
        name: Its name; what is not text is escaped, and is found under no such name.
        link: Type of the link, 0 for an object's own place in the tree.
        address: Identity of the object in this file, where it is its own place.
    """

    name: str
    link: int
    address: int


class Hdf5Arrays:
    """Finds and reads the arrays of one open file."""

    def __init__(self, h5: "h5py.File") -> None:
        """Take the open file; it must stay open."""
        from h5py import h5p

        self.root: GroupID = h5.id
        self._chain: list[tuple[str, GroupID]] = []  # the last path that was opened
        # A link to a path that leads through a link to another file would be two links.
        self._one_link = h5p.create(h5p.LINK_ACCESS)
        self._one_link.set_nlinks(1)
        plain = h5.driver == "sec2" and not h5.userblock_size and h5.id.get_create_plist().get_sizes() == (8, 8)
        self._file = h5.id.get_vfd_handle() if plain else -1
        self._size = os.fstat(self._file).st_size if plain else 0
        self._window, self._start = b"", 0
        self._dtypes = plain_dtypes()

    def group(self, path: str) -> "GroupID":
        """Open a group by its path from the root.

        Raises:
            Refused: There is no such group in this file.
        """
        from h5py import h5g

        names = [name for name in path.split("/") if name]
        kept = 0
        while kept < min(len(names), len(self._chain)) and self._chain[kept][0] == names[kept]:
            kept += 1
        del self._chain[kept:]
        for name in names[kept:]:
            found = self.open(self._chain[-1][1] if self._chain else self.root, name)
            if not isinstance(found, h5g.GroupID):
                raise Refused("bad-group", f"{name} in {path} is no group")
            self._chain.append((name, found))
        return self._chain[-1][1] if self._chain else self.root

    def children(self, group: "GroupID") -> list[Child]:
        """Return the entries of a group, by name.

        Raises:
            Refused: It is damaged.
        """
        found: list[Child] = []

        def add(name: bytes, info: Any) -> None:
            found.append(Child(name.decode(errors="backslashreplace"), info.type, info.u))

        try:
            group.links.iterate(add, info=True)
        except HDF5_ERRORS as error:
            raise Refused("unreadable", error) from error
        return found

    def is_array(self, group: "GroupID", child: Child) -> bool:
        """Say whether an entry that is its own place is an array, and so no group to look into."""
        from h5py import h5g, h5o

        try:
            return bool(h5o.get_info(group, child.name.encode()).type != h5g.GROUP)
        except HDF5_ERRORS as error:
            raise Refused("unreadable", f"{child.name}: {error}") from error

    def open(self, group: "GroupID", name: str) -> "ObjectID":
        """Open an entry of a group; a link inside of the file is followed, once.

        Raises:
            Refused: It cannot be opened; it is a link to another file (not touched), to nowhere, or by way of
                further links.
        """
        from h5py import h5l, h5o

        raw = name.encode()
        try:
            inside = group.links.get_info(raw).type in (h5l.TYPE_HARD, h5l.TYPE_SOFT)
            if inside:
                return h5o.open(group, raw, self._one_link)
        except HDF5_ERRORS as error:
            raise Refused("unreadable", f"{name}: {error}") from error
        raise Refused("external-link", f"{name} leads to another file")

    def find(self, group: "GroupID", name: str) -> Stored | None:
        """Return one array of a group that lies in this file; None where there is none.

        Args:
            group: The group.
            name: Name of the array; or of a group that is its own place, a slash, and the name in there.

        Raises:
            Refused: It cannot be opened, is no array, or lies in another file.
        """
        from h5py import h5d

        try:
            link = group.links.get_info(name.encode())
        except RuntimeError as error:
            if self._exists(group, name):
                raise Refused("unreadable", f"{name}: {error}") from error
            return None
        except HDF5_ERRORS as error:
            raise Refused("unreadable", f"{name}: {error}") from error
        if link.type == HARD and (stored := self._plain(link.u)) is not None:
            return stored
        found = self.open(group, name)
        if not isinstance(found, h5d.DatasetID):
            raise Refused("bad-shape", f"{name} is no array")
        try:
            # Where there is no shape (a null dataspace) there are no numbers.
            stored = Stored((0,) if found.shape is None else found.shape, found.dtype, dataset=found)
            size = math.prod(stored.shape) * stored.dtype.itemsize
            if size > max(_SMALL, _MOST_PER_BYTE * found.get_storage_size()):
                raise Refused("bad-shape", f"{name} {stored.shape}, of which hardly anything is in the file")
            return stored
        except Refused:
            raise
        except HDF5_ERRORS as error:
            raise Refused("unreadable", f"{name}: {error}") from error

    def _exists(self, group: "GroupID", name: str) -> bool:
        try:
            return bool(group.links.exists(name.encode()))
        except HDF5_ERRORS:
            return True

    def read(self, stored: Stored, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read an array, or its rows ``first`` to ``stop``.

        Raises:
            Refused: It cannot be read.
        """
        shape, dtype, address, dataset = stored
        if stop is not None:
            shape = (stop - first, *shape[1:])
        size = math.prod(shape) * dtype.itemsize
        if dataset is None:
            if first:
                address += first * math.prod(shape[1:]) * dtype.itemsize
            window, begin = self._view(address, size)
            if len(window) - begin < size:
                raise Refused("unreadable", f"{size} bytes at {address} lie beyond the end of the file")
            return np.frombuffer(window[begin : begin + size], dtype).reshape(shape)
        from h5py import h5s

        try:
            array: NDArray[Any] = np.empty(shape, dtype=dtype)
            if not size:
                return array
            here = h5s.ALL
            if stop is not None:
                here = dataset.get_space()
                here.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
            memory = h5s.ALL if stop is None else h5s.create_simple(shape)
            dataset.read(memory, here, array)
        except HDF5_ERRORS as error:
            raise Refused("unreadable", error) from error
        return array

    def _view(self, address: int, size: int) -> tuple[bytes, int]:
        """Return bytes of the file and where in them an address is; fewer than ``size`` at the file's end."""
        if address >= self._size:
            return b"", 0
        begin = address - self._start
        if 0 <= begin and begin + size <= len(self._window):
            return self._window, begin
        if size > _WINDOW:
            return os.pread(self._file, size, address), 0
        self._window, self._start = os.pread(self._file, _WINDOW, address), address
        return self._window, 0

    def _plain(self, address: int) -> Stored | None:
        """Return the array whose header lies at an address; None where the library must read it."""
        if self._file < 0:
            return None
        window, at = self._view(address, HEADER_BYTES)
        found = parse_header(window, at, self._dtypes)
        if found is None:
            return None
        shape, dtype, place, size = found
        # An array that was never written has the largest address; the library knows what it is filled with.
        if place + size > self._size or size != math.prod(shape) * dtype.itemsize:
            return None
        return Stored(shape, dtype, place)
