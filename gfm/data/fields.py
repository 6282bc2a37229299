"""THE table of fields: what one labelled structure carries, per atom or per structure, with dtype and unit.

The writer, the reader, the memory store and collation follow this table. Rows are only ever appended: an
optional field's place among the optional ones is its bit in the ``present`` mask of files and records.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gfm.errors import DataError

__all__ = ["FIELDS", "OPTIONAL", "Field", "absent_value", "presence_bit", "schema_of"]


@dataclass(frozen=True)
class Field:
    """One field of a structure.

    Attributes:
        name: The field's name, also its attribute on `Structure` and its column on disk.
        per: Whether the first axis runs over atoms or over structures.
        dtype: Storage dtype (numpy name).
        shape: Shape of one entry: of one atom, or of one structure.
        unit: Physical unit, empty where there is none.
        optional: Whether a structure may lack it; then presence is recorded, never faked by a value.
        note: What a reader of the manual should know.
    """

    name: str
    per: Literal["atom", "structure"]
    dtype: str
    shape: tuple[int, ...]
    unit: str
    optional: bool
    note: str

    @property
    def nbytes(self) -> int:
        """Bytes of one entry."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("numbers", "atom", "uint8", (), "", False, "atomic numbers"),
        Field("positions", "atom", "float32", (3,), "angstrom", False, "Cartesian"),
        Field("cell", "structure", "float64", (3, 3), "angstrom", False, "rows are lattice vectors"),
        Field("pbc", "structure", "bool", (3,), "", False, "periodic along each lattice vector"),
        Field("energy", "structure", "float64", (), "eV", True, "total energy, as published"),
        Field("forces", "atom", "float32", (3,), "eV/angstrom", True, "minus the gradient of the energy"),
        Field("stress", "structure", "float32", (3, 3), "eV/angstrom^3", True, "tension positive"),
        Field("charge", "structure", "int8", (), "e", True, "total charge"),
        Field("spin", "structure", "int8", (), "", True, "multiplicity 2S+1"),
        Field("fixed", "atom", "bool", (), "", True, "held fixed in the relaxation it comes from"),
        Field("dataset", "structure", "uint8", (), "", False, "index into the manifest's datasets"),
        Field("group", "structure", "uint64", (), "", False, "hash of what a split must not tear apart"),
        Field("key", "structure", "uint64", (), "", False, "hash of the source id, stable across re-ingest"),
    )
}
OPTIONAL: tuple[str, ...] = tuple(name for name, field in FIELDS.items() if field.optional)


def presence_bit(name: str) -> int:
    """Return the bit of an optional field in the ``present`` mask (uint32)."""
    return 1 << OPTIONAL.index(name)


def absent_value(field: Field) -> float | int:
    """Return the filler of an absent optional entry: NaN for floats, 0 else; ``present`` is what counts."""
    return float("nan") if np.dtype(field.dtype).kind == "f" else 0


def schema_of(names: Iterable[str]) -> tuple[str, ...]:
    """Order field names as the table does, with all mandatory ones included.

    Raises:
        DataError: A name is not in the table.
    """
    wanted = set(names)
    if unknown := wanted - FIELDS.keys():
        raise DataError(f"unknown fields {sorted(unknown)}; known are {list(FIELDS)}")
    return tuple(name for name, field in FIELDS.items() if name in wanted or not field.optional)
