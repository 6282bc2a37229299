"""RaggedBatch: many structures as columns with one row pointer, and as packed records.

Columns are what files hold and what numpy works on. A packed record is one structure in one run of bytes: a
header with every per-structure field, then each per-atom field, padded to 8 bytes; it is what travels between
ranks. Only the schema and the number of atoms are needed to know where everything lies.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self, overload

import numba
import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import FIELDS, OPTIONAL, Field, absent_value, presence_bit, schema_of
from gfm.data.structure import Structure
from gfm.errors import DataError

__all__ = ["RaggedBatch", "RecordLayout", "record_layout"]


@dataclass(frozen=True)
class RecordLayout:
    """Where the fields of a schema lie inside a packed record.

    Attributes:
        schema: The fields carried, in the table's order.
        header: Structured dtype of the per-structure part; its size is a multiple of 8.
        atom_fields: Per-atom fields in the order they lie, widest element first so that all are aligned.
        atom_nbytes: Bytes of one atom over all per-atom fields.
    """

    schema: tuple[str, ...]
    header: np.dtype[np.void]
    atom_fields: tuple[str, ...]
    atom_nbytes: int

    def record_nbytes(self, num_atoms: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the size in bytes of the records of structures with these numbers of atoms."""
        sizes = self.header.itemsize + num_atoms.astype(np.int64) * self.atom_nbytes
        return (sizes + 7) & ~np.int64(7)


@lru_cache(maxsize=64)
def record_layout(schema: tuple[str, ...]) -> RecordLayout:
    """Return the packed layout of a schema (the names that `schema_of` returns)."""
    entries: list[tuple[str, str, tuple[int, ...]]] = [("num_atoms", "int32", ()), ("present", "uint32", ())]
    structure_fields = [FIELDS[name] for name in schema if FIELDS[name].per == "structure"]
    structure_fields.sort(key=lambda field: -np.dtype(field.dtype).itemsize)
    entries += [(field.name, field.dtype, field.shape) for field in structure_fields]
    size = np.dtype(entries).itemsize
    if size % 8:
        entries.append(("padding", "uint8", (8 - size % 8,)))
    atom_fields = [FIELDS[name] for name in schema if FIELDS[name].per == "atom"]
    atom_fields.sort(key=lambda field: -np.dtype(field.dtype).itemsize)
    return RecordLayout(
        schema=schema,
        header=np.dtype(entries),
        atom_fields=tuple(field.name for field in atom_fields),
        atom_nbytes=sum(field.nbytes for field in atom_fields),
    )


class RaggedBatch:
    """G structures with N atoms in all: one array per field and one row pointer.

    Attributes:
        columns: Field name to array: (N, ...) for per-atom fields, (G, ...) for per-structure ones. Fields that
            no structure has may be left out.
        offsets: Row pointer (G + 1,) int64: atoms of structure i are ``offsets[i]:offsets[i + 1]``.
        present: Which optional fields each structure has (G,) uint32, bits of `presence_bit`.
    """

    __slots__ = ("__dict__", "columns", "offsets", "present")

    def __init__(
        self,
        columns: dict[str, NDArray[Any]],
        offsets: NDArray[np.int64],
        present: NDArray[np.uint32] | None = None,
    ) -> None:
        """Take columns as they are; without ``present`` every optional column is present everywhere.

        Raises:
            DataError: A mandatory column is missing, or a column has another length, dtype or shape than the
                table and the row pointer ask for.
        """
        self.columns = columns
        self.offsets = np.asarray(offsets, dtype=np.int64)
        num_structures = len(self.offsets) - 1
        if present is None:
            mask = sum(presence_bit(name) for name in OPTIONAL if name in columns)
            present = np.full(num_structures, mask, dtype=np.uint32)
        self.present = present
        lengths = {"atom": int(self.offsets[-1]), "structure": num_structures}
        for name in schema_of(columns):
            field = FIELDS[name]
            if name not in columns:
                raise DataError(f"the column {name} is missing; every structure must have one")
            column, shape = columns[name], (lengths[field.per], *field.shape)
            if column.shape != shape or column.dtype != np.dtype(field.dtype):
                raise DataError(
                    f"column {name} is {column.dtype} {column.shape}, expected {field.dtype} {shape}"
                )
        if present.shape != (num_structures,) or present.dtype != np.uint32:
            raise DataError(f"present is {present.dtype} {present.shape}, expected uint32 ({num_structures},)")

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.offsets) - 1

    @property
    def schema(self) -> tuple[str, ...]:
        """The fields it has columns for, in the table's order."""
        return schema_of(self.columns)

    @cached_property
    def num_atoms(self) -> NDArray[np.int64]:
        """Atoms per structure (G,)."""
        return np.diff(self.offsets)

    def has(self, name: str) -> NDArray[np.bool_]:
        """Return which structures have an optional field (G,)."""
        if name not in self.columns:
            return np.zeros(len(self), dtype=bool)
        mask: NDArray[np.bool_] = (self.present & np.uint32(presence_bit(name))) != 0
        return mask

    @overload
    def __getitem__(self, index: int) -> Structure: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "Structure | RaggedBatch":
        """Return one structure, or a contiguous part as views (step 1 only)."""
        if isinstance(index, slice):
            return self._part(*index.indices(len(self)))
        row = range(len(self))[index]
        atoms = slice(self.offsets[row], self.offsets[row + 1])
        values: dict[str, Any] = {}
        for name in self.columns:
            field = FIELDS[name]
            if field.optional and not self.present[row] & presence_bit(name):
                continue
            value = self.columns[name][atoms if field.per == "atom" else row]
            values[name] = value if value.ndim else value.item()
        return Structure(**values)

    def __iter__(self) -> Iterator[Structure]:
        """Yield the structures one by one."""
        return (self[row] for row in range(len(self)))

    def _part(self, start: int, stop: int, step: int) -> "RaggedBatch":
        if step != 1:
            raise DataError(f"a part of a batch is contiguous, got a step of {step}; use take(ids)")
        stop = max(start, stop)
        first, last = self.offsets[start], self.offsets[stop]
        columns = {
            name: column[first:last] if FIELDS[name].per == "atom" else column[start:stop]
            for name, column in self.columns.items()
        }
        return type(self)(columns, self.offsets[start : stop + 1] - first, self.present[start:stop])

    def take(self, ids: NDArray[np.integer] | Sequence[int]) -> Self:
        """Return the structures at these rows, in this order (a copy)."""
        rows = np.asarray(ids, dtype=np.int64)
        counts = self.num_atoms[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        atoms = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        columns = {
            name: column.take(atoms if FIELDS[name].per == "atom" else rows, axis=0)
            for name, column in self.columns.items()
        }
        return type(self)(columns, offsets, self.present[rows])

    def select(self, names: Iterable[str]) -> Self:
        """Return the batch with these fields and the mandatory ones; absent columns are added as absent."""
        columns = {}
        mask = 0
        for name in schema_of(names):
            field = FIELDS[name]
            mask |= presence_bit(name) if field.optional and name in self.columns else 0
            if name in self.columns:
                columns[name] = self.columns[name]
            else:
                rows = int(self.offsets[-1]) if field.per == "atom" else len(self)
                columns[name] = np.full((rows, *field.shape), absent_value(field), dtype=field.dtype)
        return type(self)(columns, self.offsets, self.present & np.uint32(mask))

    @classmethod
    def from_structures(cls, structures: Sequence[Structure]) -> Self:
        """Gather structures into columns, casting to the table's dtypes.

        Raises:
            DataError: An array does not fit its structure's number of atoms.
        """
        counts = [len(structure) for structure in structures]
        offsets = np.zeros(len(structures) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        present = np.zeros(len(structures), dtype=np.uint32)
        columns: dict[str, NDArray[Any]] = {}
        for name, field in FIELDS.items():
            values = [getattr(structure, name) for structure in structures]
            if field.optional:
                absent = [row for row, value in enumerate(values) if value is None]
                if len(absent) == len(values):
                    continue
                mask = np.full(len(values), presence_bit(name), dtype=np.uint32)
                mask[absent] = 0
                present |= mask
                for row in absent:
                    shape = (counts[row], *field.shape) if field.per == "atom" else field.shape
                    values[row] = np.full(shape, absent_value(field))
            try:
                columns[name] = _joined(values, field, counts)
            except (TypeError, ValueError):
                for structure in structures:
                    structure.check_shapes()
                raise
        return cls(columns, offsets, present)

    @classmethod
    def concatenate(cls, batches: Sequence["RaggedBatch"]) -> Self:
        """Join batches one after the other; the schema is the union of theirs."""
        if not batches:
            return cls.from_structures([])
        names = {name for batch in batches for name in batch.columns}
        full = [batch if batch.columns.keys() == names else batch.select(names) for batch in batches]
        columns = {name: np.concatenate([batch.columns[name] for batch in full]) for name in schema_of(names)}
        starts = np.cumsum([0, *(batch.offsets[-1] for batch in full)])
        offsets = np.concatenate(
            [[0], *(batch.offsets[1:] + start for batch, start in zip(full, starts[:-1], strict=True))]
        )
        return cls(columns, offsets, np.concatenate([batch.present for batch in full]))

    def pack(self, schema: tuple[str, ...] | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the packed records one after the other, and their row pointer in bytes (G + 1,).

        Args:
            schema: Fields of the records, as `schema_of` returns them; by default those of the batch.
        """
        batch = self if schema is None or schema == self.schema else self.select(schema)
        layout = record_layout(batch.schema)
        starts = np.zeros(len(batch) + 1, dtype=np.int64)
        np.cumsum(layout.record_nbytes(batch.num_atoms), out=starts[1:])
        records = np.zeros(starts[-1], dtype=np.uint8)
        header = np.zeros(len(batch), dtype=layout.header)
        header["num_atoms"] = batch.num_atoms
        header["present"] = batch.present
        for name in batch.columns:
            if FIELDS[name].per == "structure":
                header[name] = batch.columns[name]
        _copy_headers(records, starts, _as_bytes(header), False)
        before = 0
        for name in layout.atom_fields:
            width = FIELDS[name].nbytes
            _copy_atoms(
                records, starts, batch.offsets, _as_bytes(batch.columns[name]), width,
                layout.header.itemsize, before, False,
            )  # fmt: skip
            before += width
        return records, starts

    @classmethod
    def unpack(cls, records: NDArray[np.uint8], starts: NDArray[np.int64], schema: tuple[str, ...]) -> Self:
        """Return the batch held by packed records that begin at these bytes (a copy).

        Args:
            records: Bytes of the records.
            starts: Where each record begins (G,), or the row pointer of `pack` (G + 1,).
            schema: The schema they were packed with.

        Raises:
            DataError: A record does not lie inside ``records``.
        """
        layout = record_layout(schema)
        if len(starts) and starts[-1] == len(records):
            starts = starts[:-1]
        size = layout.header.itemsize
        if len(starts) and (starts.min() < 0 or starts.max() + size > len(records)):
            raise DataError("a record begins outside of the bytes given; wrong offsets or another schema")
        header = np.empty(len(starts), dtype=layout.header)
        _copy_headers(records, starts, _as_bytes(header), True)
        counts = header["num_atoms"].astype(np.int64)
        if len(starts) and (counts.min() < 0 or (starts + layout.record_nbytes(counts)).max() > len(records)):
            raise DataError("a record ends outside of the bytes given; wrong offsets or another schema")
        offsets = np.zeros(len(starts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        columns: dict[str, NDArray[Any]] = {}
        before = 0
        for name in layout.atom_fields:
            field = FIELDS[name]
            columns[name] = np.empty((offsets[-1], *field.shape), dtype=field.dtype)
            _copy_atoms(
                records, starts, offsets, _as_bytes(columns[name]), field.nbytes,
                layout.header.itemsize, before, True,
            )  # fmt: skip
            before += field.nbytes
        for name in schema:
            if FIELDS[name].per == "structure":
                columns[name] = np.ascontiguousarray(header[name])
        return cls(columns, offsets, np.ascontiguousarray(header["present"]))


def _joined(values: list[Any], field: Field, counts: list[int]) -> NDArray[Any]:
    """Return the column of a field, in its dtype, from its values of structures with these numbers of atoms.

    Raises:
        ValueError: A value has another shape than its structure asks for.
    """
    dtype = np.dtype(field.dtype)
    if field.per == "structure" and not field.shape:
        return np.array(values, dtype=dtype).reshape(len(values))
    if field.per == "atom":
        lengths, shape = counts, (sum(counts), *field.shape)
    else:
        lengths, shape = [field.shape[0]] * len(values), (len(values) * field.shape[0], *field.shape[1:])
    if not values:
        return np.empty((0, *field.shape), dtype=dtype)
    column: NDArray[Any] = np.concatenate(values, dtype=dtype, casting="unsafe")
    if column.shape != shape or [len(value) for value in values] != lengths:
        raise ValueError(f"{field.name}: shapes that do not fit the numbers of atoms")
    return column if field.per == "atom" else column.reshape(len(values), *field.shape)


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """View a contiguous array as flat bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@numba.njit(nogil=True, cache=True)
def _copy_headers(
    records: NDArray[np.uint8], starts: NDArray[np.int64], headers: NDArray[np.uint8], out: bool
) -> None:
    """Copy headers into the records, or (``out``) out of them; ``starts`` may have one entry more."""
    if len(headers) == 0:
        return
    num = len(starts) - 1 if not out else len(starts)
    size = len(headers) // num
    for i in range(num):
        a, b = starts[i], i * size
        if out:
            headers[b : b + size] = records[a : a + size]
        else:
            records[a : a + size] = headers[b : b + size]


@numba.njit(nogil=True, cache=True)
def _copy_atoms(
    records: NDArray[np.uint8],
    starts: NDArray[np.int64],
    offsets: NDArray[np.int64],
    column: NDArray[np.uint8],
    width: int,
    header_size: int,
    before: int,
    out: bool,
) -> None:
    """Copy one per-atom column into the records, or (``out``) out of them."""
    for i in range(len(offsets) - 1):
        count = offsets[i + 1] - offsets[i]
        a = starts[i] + header_size + before * count
        b = offsets[i] * width
        size = count * width
        if out:
            column[b : b + size] = records[a : a + size]
        else:
            records[a : a + size] = column[b : b + size]
