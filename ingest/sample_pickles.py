"""Pickles of torch_geometric ``Data`` objects as PyG 1.x made them, written without torch and without PyG.

The OC22 files hold such pickles: a flat ``__dict__`` of Python numbers and tensors, each tensor with its
storage in torch's legacy stream. The few opcodes that takes are emitted here one by one (``pickletools``
describes them), because pickling by the library would have to import the classes that are named.
"""

import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pyg1_pickle"]

# What torch's legacy serialisation writes first: magic number, protocol version, sizes of the C types.
_MAGIC = 0x1950A86A20F9469CFC6C
_PREFIX = b"".join(
    pickle.dumps(part, protocol=2)
    for part in (
        _MAGIC,
        1001,
        {
            "protocol_version": 1001,
            "little_endian": True,
            "type_sizes": {"short": 2, "int": 4, "long": 4},
        },
    )
)
_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
}
# The attributes that a PyG 1.x Data always has, in this order, before those it was given.
_ALWAYS = ("x", "edge_index", "edge_attr", "y", "pos", "normal", "face")


def pyg1_pickle(fields: Mapping[str, Any]) -> bytes:
    """Return the pickle of ``Data(**fields)``.

    Args:
        fields: Values by name: Python int, float or str, None, or a numpy array (float32, float64, int32 or
            int64), which becomes a tensor.

    Raises:
        TypeError: A value is of no such type.
    """
    ordered = {name: fields.get(name) for name in _ALWAYS} | dict(fields)
    parts = [b"\x80\x04", _global("torch_geometric.data.data", "Data"), b")\x81}("]
    for number, (name, value) in enumerate(ordered.items()):
        parts += [_scalar(name), _tensor(value, number) if isinstance(value, np.ndarray) else _scalar(value)]
    parts.append(b"ub.")
    return b"".join(parts)


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _scalar(value: Any) -> bytes:
    """Emit None, a number or a string."""
    if value is None:
        return b"N"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"a sample pickle holds numbers, strings and arrays, not {type(value).__name__}")
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = value.encode()
    return b"X" + struct.pack("<I", len(text)) + text


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _tensor(array: NDArray[Any], number: int) -> bytes:
    """Emit a call of ``torch._utils._rebuild_tensor_v2`` on the array's storage."""
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    stream = _storage(array, str(number))
    storage = (
        _global("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(stream)) + stream + b"\x85R"
    )
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = _tuple(*map(_scalar, array.shape))
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + _tuple(storage, _scalar(0), shape, _tuple(*map(_scalar, strides)), b"\x89", hooks)
        + b"R"
    )


def _storage(array: NDArray[Any], key: str) -> bytes:
    """Return the legacy stream of a storage: what ``torch.save(storage, legacy)`` writes."""
    kind = _STORAGES[array.dtype.name]
    persistent = _tuple(
        _scalar("storage"), _global("torch", kind), _scalar(key), _scalar("cpu"), _scalar(array.size), b"N"
    )
    return (
        _PREFIX
        + b"\x80\x02" + persistent + b"Q."
        + pickle.dumps([key], protocol=2)
        + struct.pack("<q", array.size)
        + np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    )  # fmt: skip
