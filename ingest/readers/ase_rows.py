"""One row of an ASE database as numbers and arrays, without Atoms objects and without running anything.

Three encodings occur. JSON text: arrays are ``{"__ndarray__": [shape, dtype, flat list]}``, or nested lists
where orjson wrote them. SQLite columns: little-endian blobs. The binary ``data`` column: 8 bytes of offset,
array bytes, then JSON in which arrays are ``{"__ndarray__": [shape, dtype, offset]}``. None needs unpickling.

Source: ``ase/io/jsonio.py``, ``ase/db/core.py`` and ``ase/db/sqlite.py`` in gitlab.com/ase/ase.
"""

import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ingest.readers.records import Refused

__all__ = ["SQLITE_COLUMNS", "Row", "inflate", "parse_json", "row_from_sqlite"]

_LARGEST = 1 << 28  # bytes of one record, unpacked: a zlib stream may stand for a thousand times its size
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool")
}
# Own properties of a row, as far as they are read here; of SQLite the columns of the same names.
SQLITE_COLUMNS = (
    "id", "unique_id", "numbers", "positions", "cell", "pbc", "constraints", "energy", "free_energy", "forces",
    "stress", "key_value_pairs", "data",
)  # fmt: skip
_BLOBS = {
    "numbers": ("<i4", (-1,)), "positions": ("<f8", (-1, 3)), "cell": ("<f8", (3, 3)),
    "forces": ("<f8", (-1, 3)), "stress": ("<f8", (-1,)),
}  # fmt: skip


def inflate(packed: bytes) -> bytes:
    """Return what a zlib stream holds.

    Raises:
        Refused: It is damaged, cut short, or larger than any record.
    """
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(packed, _LARGEST)
    except zlib.error as error:
        raise Refused("bad-zlib", error) from None
    if stream.unconsumed_tail:
        raise Refused("bad-zlib", f"more than {_LARGEST} bytes in one record")
    if not stream.eof:
        raise Refused("bad-zlib", f"cut short after {len(packed)} bytes")
    return text


def parse_json(text: bytes | str) -> Any:
    """Return a JSON value; NaN and Infinity, which Python's writer puts down, are numbers here.

    Raises:
        Refused: It is none.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("bad-json", reason) from None


class Row:
    """One row: its own properties, then ``key_value_pairs`` and ``data``, decoded when they are asked for."""

    def __init__(self, values: Any) -> None:
        """Take the decoded record.

        Raises:
            Refused: It is no mapping.
        """
        if not isinstance(values, dict):
            raise Refused("bad-record", f"a {type(values).__name__}, expected an object")
        self._values = values
        self._decoded: dict[str, tuple[dict[str, Any], bytes | None]] = {}

    def find(self, key: str, *, own: bool = True) -> tuple[Any, bytes | None]:
        """Return the value of a key, and the bytes its arrays may point into; None where there is none.

        Looked for among the row's own properties (``own``), then in ``key_value_pairs``, then in ``data``;
        ``data.KEY`` and ``key_value_pairs.KEY`` say the place.
        """
        place, _, rest = key.partition(".")
        if rest and place in ("data", "key_value_pairs"):
            mapping, buffer = self._mapping(place)
            return mapping.get(rest), buffer
        if own and self._values.get(key) is not None:
            return self._values[key], None
        for place in ("key_value_pairs", "data"):
            mapping, buffer = self._mapping(place)
            if mapping.get(key) is not None:
                return mapping[key], buffer
        return None, None

    def own(self, key: str) -> NDArray[Any] | None:
        """Return an array among the row's own properties.

        Raises:
            Refused: It is something else.
        """
        value = self._values.get(key)
        return None if value is None else _array(value, key)

    def array(self, key: str, name: str) -> NDArray[Any] | None:
        """Return an array of numbers; ``name`` is what a reason calls it.

        Raises:
            Refused: It is something else.
        """
        value, buffer = self.find(key)
        return None if value is None else _array(value, name, buffer)

    def number(self, key: str, name: str, *, own: bool = True) -> float | int | None:
        """Return one number, also where it is written as an array of one.

        Raises:
            Refused: It is something else.
        """
        value, buffer = self.find(key, own=own)
        if value is None or type(value) is float or (type(value) is int and abs(value) < 1 << 63):
            return value
        array = _array(value, name, buffer)
        if array.size != 1 or array.dtype.kind == "b":
            raise Refused(
                f"bad-{name}", f"{key} is a {array.dtype} of shape {array.shape}, expected one number"
            )
        return array.reshape(-1)[0].item()  # type: ignore[no-any-return]

    def text(self, key: str, name: str) -> str:
        """Return a text or a number as text.

        Raises:
            Refused: It is not there, or something else.
        """
        value, _ = self.find(key)
        if value is None:
            raise Refused(f"missing-{name}", f"no {key} in the row")
        if not isinstance(value, str | int | float):
            raise Refused(f"bad-{name}", f"{key} is a {type(value).__name__}, expected a text or a number")
        return str(value)

    def fixed(self, num_atoms: int) -> NDArray[np.bool_] | None:
        """Return which atoms a ``FixAtoms`` holds (N,); None where there is none.

        Raises:
            Refused: An index is none of an atom.
        """
        constraints = self._values.get("constraints")
        if isinstance(constraints, str):
            constraints = parse_json(constraints) if constraints else None
        if constraints is None:
            return None
        if not isinstance(constraints, list):
            raise Refused("bad-constraints", f"a {type(constraints).__name__}, expected a list")
        mask = None
        for constraint in constraints:
            indices = _fixed_indices(constraint)
            if indices is None:
                continue
            mask = np.zeros(num_atoms, dtype=bool) if mask is None else mask
            if indices.size and (indices.dtype.kind not in "iu" or not _within(indices, num_atoms)):
                raise Refused("bad-constraints", f"FixAtoms of {indices.tolist()} in {num_atoms} atoms")
            mask[indices.astype(np.int64)] = True
        return mask

    def _mapping(self, place: str) -> tuple[dict[str, Any], bytes | None]:
        """Return ``key_value_pairs`` or ``data``, and the bytes that arrays in it point into.

        Raises:
            Refused: It cannot be read.
        """
        if place not in self._decoded:
            value, buffer = self._values.get(place), None
            if isinstance(value, bytes):
                value, buffer = _binary_json(value, place), value
            elif isinstance(value, str):
                value = parse_json(value) if value else None
            if not isinstance(value, dict | None):
                raise Refused(f"bad-{place.replace('_', '-')}", f"a {type(value).__name__}, expected an object")
            self._decoded[place] = (value or {}, buffer)
        return self._decoded[place]


def row_from_sqlite(columns: tuple[Any, ...]) -> Row:
    """Return the row of one line of the table ``systems``, columns as in `SQLITE_COLUMNS`.

    Raises:
        Refused: A blob has no whole number of entries.
    """
    values = dict(zip(SQLITE_COLUMNS, columns, strict=True))
    for name, (dtype, shape) in _BLOBS.items():
        blob = values[name]
        if blob is None:
            continue
        try:
            values[name] = np.frombuffer(blob, dtype).reshape(shape)
        except (TypeError, ValueError):
            size = f"{len(blob)} bytes" if isinstance(blob, bytes) else f"a {type(blob).__name__}"
            raise Refused(f"bad-{name}", f"{size}, expected {dtype} of shape {shape}") from None
    bits = values["pbc"] or 0
    if not isinstance(bits, int) or not 0 <= bits < 8:
        raise Refused("bad-pbc", f"{bits!r}, expected 0 to 7")
    values["pbc"] = np.array([bits & 1, bits & 2, bits & 4], dtype=bool)
    return Row(values)


def _array(value: Any, name: str, buffer: bytes | None = None) -> NDArray[Any]:
    """Return an encoded array, whatever the encoding.

    Raises:
        Refused: It is none of numbers, or its shape is not that of its content.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict):
        if "__ase_objtype__" in value:  # a cell
            return _array(value.get("array"), name, buffer)
        content = value.get("__ndarray__")
        if not (isinstance(content, list) and len(content) == 3):
            raise Refused(f"bad-{name}", f"an object of {', '.join(map(str, value))[:100]}, expected an array")
        shape, dtype, numbers = content
        return _ndarray(shape, dtype, numbers, name, buffer)
    if not isinstance(value, list | int | float):
        raise Refused(f"bad-{name}", f"a {type(value).__name__}, expected an array")
    return _numbers(value, name)


def _ndarray(shape: Any, dtype: Any, content: Any, name: str, buffer: bytes | None) -> NDArray[Any]:
    """Return an array by its shape, dtype and content; the shape is compared before anything is allocated."""
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Refused(f"bad-{name}", f"shape {str(shape)[:100]}")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Refused(f"bad-{name}", f"dtype {str(dtype)[:100]}")
    count = math.prod(shape)
    if isinstance(content, list):
        array = _numbers(content, name)
        found = array.size
    elif buffer is not None and type(content) is int:
        found = max(len(buffer) - content, 0) // _DTYPES[dtype].itemsize if content >= 0 else 0
        found = min(found, count)
        array = np.frombuffer(buffer, _DTYPES[dtype], found, content if found else 0)
    else:
        raise Refused(f"bad-{name}", f"an array made of a {type(content).__name__}")
    if found != count or len(shape) > 32:
        raise Refused(f"bad-{name}", f"shape {str(shape)[:100]}, but {found} numbers")
    return array.reshape(shape)


def _numbers(values: Any, name: str) -> NDArray[Any]:
    """Return numbers, or nested lists of them, as an array."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Refused(f"bad-{name}", error) from None
    if array.dtype.kind not in "fiub" and array.size:
        raise Refused(f"bad-{name}", f"not all of it are numbers: {str(values)[:100]}")
    return array


def _binary_json(value: bytes, place: str) -> Any:
    """Return the JSON at the end of a binary ``data`` column; its arrays keep pointing into the bytes."""
    if len(value) < 8:
        raise Refused(f"bad-{place}", f"{len(value)} bytes")
    (offset,) = struct.unpack_from("<q", value)
    if not 8 <= offset <= len(value):
        raise Refused(f"bad-{place}", f"says that its JSON begins at {offset} of {len(value)} bytes")
    return parse_json(value[offset:])


def _fixed_indices(constraint: Any) -> NDArray[Any] | None:
    """Return the indices of a ``FixAtoms``, in its present and its old form; None for other constraints."""
    if not isinstance(constraint, dict):
        raise Refused("bad-constraints", f"a {type(constraint).__name__}, expected an object")
    name = constraint.get("name") or constraint.get("__name__")
    if not isinstance(name, str) or name.rpartition(".")[2] != "FixAtoms":
        return None
    arguments = constraint.get("kwargs", constraint)
    if not isinstance(arguments, dict) or "indices" not in arguments:
        raise Refused("bad-constraints", "FixAtoms without indices")
    return np.atleast_1d(_array(arguments["indices"], "constraints"))


def _within(indices: NDArray[Any], num_atoms: int) -> bool:
    return bool(indices.min() >= -num_atoms and indices.max() < num_atoms)
