"""A shard: ragged columns and one row pointer on disk, behind one protocol for all formats.

On disk a shard is the columns of a `RaggedBatch` and two more: ``row_pointer`` (G + 1,) int64 and ``present``
(G,) uint32. Columns without a row are not written. A format only moves columns; what they mean is said here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import FIELDS, absent_value
from gfm.data.ragged import RaggedBatch
from gfm.errors import CorruptDataError
from gfm.runtime.registry import Registry
from store.manifest import ColumnPlace, ShardReceipt

__all__ = ["FORMATS", "Columns", "Shard", "ShardFormat", "columns_of"]

FORMATS = Registry(
    "format", {"adios": "store.adios_shards:AdiosShards", "zarr": "store.zarr_shards:ZarrShards"}
)


class Columns(Protocol):
    """The opened columns of one shard. Any thread may read."""

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start:stop`` of a column, a copy."""
        ...

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return these rows of a column, in this order."""
        ...


class ShardFormat(Protocol):
    """One way to keep columns in files."""

    suffix: ClassVar[str]

    @staticmethod
    def write(path: Path, columns: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Write all columns to a path that does not exist, the same bytes whenever it is called.

        Returns:
            Where columns begin in the data file, for those that can be memory-mapped.
        """
        ...

    @staticmethod
    def open(path: Path, places: Mapping[str, ColumnPlace], *, mapped: bool = True) -> Columns:
        """Open for reading; ``mapped`` False goes through the format's own library only."""
        ...


def columns_of(batch: RaggedBatch) -> dict[str, NDArray[Any]]:
    """Return the columns to write: canonical, so that the same structures make the same bytes.

    Optional columns that no structure has are dropped; entries of structures without them get the filler.
    """
    columns: dict[str, NDArray[Any]] = {"row_pointer": batch.offsets, "present": batch.present}
    for name in batch.schema:
        field, column = FIELDS[name], batch.columns[name]
        if field.optional:
            has = batch.has(name)
            if not has.any():
                continue
            if not has.all():
                lacking = ~has if field.per == "structure" else np.repeat(~has, batch.num_atoms)
                column = column.copy()
                column[lacking] = absent_value(field)
        columns[name] = column
    return {
        name: np.ascontiguousarray(column.view(np.uint8) if column.dtype == np.bool_ else column)
        for name, column in columns.items()
    }


class Shard:
    """One opened shard; its rows as batches. Any thread may read."""

    def __init__(self, columns: Columns, receipt: ShardReceipt, where: str) -> None:
        """Read the row pointer and check it.

        Raises:
            CorruptDataError: The row pointer is not the one of the receipt's structures and atoms.
        """
        self._columns = columns
        self._receipt = receipt
        self._row_pointer = columns.read("row_pointer", 0, receipt.structures + 1)
        pointer = self._row_pointer
        if pointer[0] != 0 or pointer[-1] != receipt.atoms or (np.diff(pointer) < 0).any():
            raise CorruptDataError(f"{where}: the row pointer does not describe {receipt.atoms} atoms")

    def __len__(self) -> int:
        """Return the number of structures."""
        return self._receipt.structures

    def read(self, start: int, stop: int) -> RaggedBatch:
        """Return the structures ``start:stop``."""
        first, last = int(self._row_pointer[start]), int(self._row_pointer[stop])
        columns = {}
        for name in self._receipt.fields:
            bounds = (first, last) if FIELDS[name].per == "atom" else (start, stop)
            columns[name] = self._restore(
                name, self._columns.read(name, *bounds) if bounds[1] > bounds[0] else None
            )
        present = self._columns.read("present", start, stop) if stop > start else np.empty(0, dtype=np.uint32)
        return RaggedBatch(columns, self._row_pointer[start : stop + 1] - first, present)

    def take(self, rows: NDArray[np.int64]) -> RaggedBatch:
        """Return the structures at these rows, in this order, repeats included."""
        counts = self._row_pointer[rows + 1] - self._row_pointer[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        atoms = np.repeat(self._row_pointer[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        columns = {}
        for name in self._receipt.fields:
            index = atoms if FIELDS[name].per == "atom" else rows
            columns[name] = self._restore(name, self._columns.take(name, index) if len(index) else None)
        present = self._columns.take("present", rows) if len(rows) else np.empty(0, dtype=np.uint32)
        return RaggedBatch(columns, offsets, present)

    @staticmethod
    def _restore(name: str, column: NDArray[Any] | None) -> NDArray[Any]:
        """Give a column from disk the table's dtype; None stands for no rows."""
        field = FIELDS[name]
        if column is None:
            return np.empty((0, *field.shape), dtype=field.dtype)
        return column.view(np.bool_) if field.dtype == "bool" else column
