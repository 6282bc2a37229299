"""HDF5 files whose groups hold arrays over the conformers of one molecule: found, cut into parts, read.

A subclass says which arrays of a group are what. Groups are looked for at any depth; one that can be reached by
several names is read once; no link is followed out of the file.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gfm.errors import DataError
from ingest.readers.base import BLOCK_STRUCTURES, HDF5_ERRORS, Block, Part, Reader, hash_id, open_hdf5
from ingest.readers.conformers import Conformers, Gatherer, Scale
from ingest.readers.hdf5_arrays import HARD, Hdf5Arrays
from ingest.readers.hdf5_rows import GroupKeys, read_group
from ingest.readers.records import BlockBuilder, Refused

if TYPE_CHECKING:
    from h5py.h5g import GroupID

__all__ = ["GroupReader"]


class _Found(NamedTuple):
    """A group that holds structures (conformers, bytes), or something that is refused (a reason, a value)."""

    path: str
    rows: int = 0
    row_bytes: int = 0
    reason: str = ""
    value: str = ""


class GroupReader(Reader):
    """What readers of such files share."""

    require_forces: bool = True

    @abstractmethod
    def keys(self) -> GroupKeys:
        """Return which arrays of a group are what."""

    @abstractmethod
    def scale(self) -> Scale:
        """Return the units of the arrays."""

    @abstractmethod
    def name_space(self, file: Path) -> str:
        """Return what the id of a conformer begins with; it goes on with ``<group>/<row>``."""

    def starts(self) -> tuple[str, ...]:
        """Return the groups below which structures are looked for, by path from the root."""
        return ("",)

    def nested(self) -> bool:
        """Say whether a group that holds structures may hold groups that do, too."""
        return False

    def group_hash(self, file: Path, path: str) -> int | None:
        """Return what a split must not tear apart; None for the formula."""
        return None

    def constants(self) -> dict[str, int]:
        """Return the charge and spin of structures for which the file does not tell them."""
        return {}

    def check_group(self, arrays: Hdf5Arrays, group: "GroupID", path: str) -> None:
        """Refuse a group for what it is as a whole.

        Raises:
            Refused: It is not to be read, or says something else than the options.
        """

    def gatherer(self, builder: BlockBuilder) -> Gatherer:
        """Return what gathers the conformers."""
        return Gatherer(builder, self.scale(), self.require_forces)

    def plan_file(self, file: Path, part_bytes: int, expected: str) -> list[Part]:
        """Cut one file into stretches of conformers, groups in the file's order.

        Args:
            file: The file.
            part_bytes: Size of a part.
            expected: What the file should hold, for the error.

        Raises:
            DataError: There is no group with the positions.
        """
        import h5py

        stretches: list[tuple[str, int, int, int]] = []  # group, first row, stop row, bytes
        refused: list[list[str]] = []
        try:
            with h5py.File(file, "r") as h5:
                for found in self._groups(Hdf5Arrays(h5)):
                    if found.reason:
                        refused.append([found.path, found.reason, found.value])
                        continue
                    step = max(1, part_bytes // found.row_bytes)
                    for first in range(0, max(found.rows, 1), step):
                        stop = min(first + step, found.rows)
                        stretches.append((found.path, first, stop, (stop - first) * found.row_bytes))
        except HDF5_ERRORS as error:
            return [self.unreadable(file, f"not readable as HDF5 ({error}); expected {expected}")]
        if not stretches:
            raise DataError(f"{file}: no group holds '{self.keys().positions}'; expected {expected}")
        parts = self._gather(file, stretches, part_bytes)
        if refused:
            parts[0].extra["refused"] = refused
        return parts

    def _groups(self, arrays: Hdf5Arrays) -> Iterator[_Found]:
        """Yield the groups with structures below the starts, depth first, and what must be refused."""
        from h5py import h5g, h5o

        keys = self.keys()
        labels = {keys.numbers, keys.energy, keys.forces} - {None}
        waiting = list(reversed(self.starts()))
        seen: set[int] = set()
        while waiting:
            path = waiting.pop()
            try:
                group = arrays.group(path)
            except Refused as error:
                yield _Found(path, reason=error.reason, value=error.value)
                continue
            address = h5o.get_info(group).addr
            if address in seen:
                continue
            seen.add(address)
            children = arrays.children(group)
            names = {child.name for child in children}
            if keys.positions in names:
                yield self._size(arrays, group, path)
                if not self.nested():
                    continue
            elif labels & names:
                yield _Found(path, reason="missing-positions", value=keys.positions)
            below = []
            for child in children:
                where = f"{path}/{child.name}" if path else child.name
                if child.link == HARD:
                    if child.address not in seen and not arrays.is_array(group, child):
                        below.append(where)
                    continue
                try:
                    if isinstance(arrays.open(group, child.name), h5g.GroupID):
                        below.append(where)
                except Refused as error:
                    yield _Found(where, reason=error.reason, value=error.value)
            waiting += reversed(below)

    def _size(self, arrays: Hdf5Arrays, group: "GroupID", path: str) -> _Found:
        """Return how many conformers a group has, and the bytes of one."""
        try:
            stored = arrays.find(group, self.keys().positions)
        except Refused:
            stored = None  # it will be refused when it is read
        shape = stored.shape if stored else ()
        if len(shape) == 2:
            shape = (1, *shape)
        if not math.prod(shape) and shape and shape[0] > BLOCK_STRUCTURES:
            shape = ()  # conformers without atoms cost no bytes, and yet would be refused one by one
        return _Found(path, shape[0] if shape else 0, 24 * math.prod(shape[1:2]) + 8)

    def _gather(self, file: Path, stretches: list[tuple[str, int, int, int]], part_bytes: int) -> list[Part]:
        """Join neighbouring stretches up to the size of a part; start and stop count conformers of the file."""
        parts: list[Part] = []
        groups: list[list[Any]] = []
        start = rows = size = 0
        for index, (path, first, stop, nbytes) in enumerate(stretches):
            groups.append([path, first, stop])
            rows += stop - first
            size += nbytes
            last = index == len(stretches) - 1
            if last or size + stretches[index + 1][3] > part_bytes:
                label = f"{file.name} conformers {start}..{start + rows}"
                parts.append(Part(self.NAME, str(file), start, start + rows, size, label, {"groups": groups}))
                groups, start, rows, size = [], start + rows, 0, 0
        return parts

    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part.

        Raises:
            CorruptDataError: The file cannot be opened.
        """
        builder = BlockBuilder()
        gatherer = self.gatherer(builder)
        for path, reason, value in part.extra.get("refused", ()):
            builder.reject(f"{part.path}:/{path}", reason, value)
        with open_hdf5(part.path) as h5:
            arrays = Hdf5Arrays(h5)
            for path, first, stop in part.extra["groups"]:
                for row in range(first, max(stop, first + 1), BLOCK_STRUCTURES):
                    end = min(row + BLOCK_STRUCTURES, stop)
                    # A group without any conformer has no record to name, and yet it must not vanish.
                    place = f"{part.path}:/{path}"
                    sources = [f"{place}[{index}]" for index in range(row, end)]
                    try:
                        gatherer.add(self._conformers(arrays, Path(part.path), path, row, end, sources))
                    except Refused as refused:
                        for source in sources or [place]:
                            builder.refuse(source, refused)
                    if builder.full:
                        yield builder.take()
        gatherer.settle()
        if builder:
            yield builder.take()

    def _conformers(
        self, arrays: Hdf5Arrays, file: Path, path: str, first: int, stop: int, sources: list[str]
    ) -> Conformers:
        """Read conformers ``first`` to ``stop`` of a group.

        Raises:
            Refused: All of them lack something, or have it in a shape that does not fit.
        """
        group = arrays.group(path)
        self.check_group(arrays, group, path)
        space = f"{self.name_space(file)}{path}/"
        conformers = read_group(arrays, group, self.keys(), first, stop, self.require_forces)
        conformers.sources = sources
        conformers.keys = [hash_id(f"{space}{row}") for row in range(first, stop)]
        conformers.group = self.group_hash(file, path)
        for name, value in self.constants().items():
            if getattr(conformers, name) is None:
                setattr(conformers, name, np.full(stop - first, value))
        return conformers
