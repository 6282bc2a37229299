"""Pickled torch_geometric ``Data`` read as plain values: nothing is unpickled, no code of the file can run.

A pickle is a program. This is an interpreter of the few instructions that a record of tensors needs: it calls
only the functions in the table below, all its own, and refuses every other name. Tensors (torch's legacy stream
inside the pickle) become numpy arrays, with neither torch nor torch_geometric installed; records of
torch_geometric 1.x and 2.x come out alike. Unlike `pickle`, it never allocates more than the record's own size
asks for.

Source: opcodes as documented in CPython's ``pickletools``; the stream of ``torch.save(...,
_use_new_zipfile_serialization=False)``.
"""

import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.readers.records import Refused

__all__ = ["read_pickle", "read_record"]

_MAX_EXPANDED = 10_000_000  # elements of a tensor that repeats its storage (stride 0)
_NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
# The two pickles that torch writes between a stream's header and its numbers, memo or none: what a storage is
# (class, key, device, size, no view), and the list of its key. What looks otherwise is interpreted.
_USUAL = re.compile(
    rb"\x80\x02\(X\x07\0\0\0storage(?:q.)?ctorch\n([A-Za-z0-9]+)\n(?:q.)?X(.)\0\0\0([0-9]+)(?:q.)?"
    rb"X\x03\0\0\0cpu(?:q.)?(?:K.|M..|J....)Nt(?:q.)?Q\.\x80\x02\](?:q.)?X\2\0\0\0\3(?:q.)?a\.",
    re.DOTALL,
)
# What follows the bytes in the record: the storage is read; offset 0, shape, stride, no gradient, no hooks.
_TENSOR = re.compile(
    rb"\x94\x85\x94R\x94K\0((?:K.|M..)+)([\x85-\x87])\x94((?:K.|M..)+)([\x85-\x87])\x94"
    rb"\x89h(.)\)R\x94t\x94R\x94",
    re.DOTALL,
)
_COUNT = struct.Struct("<q")

# What reading instructions that do not fit together ends in; MemoryError is a length that nothing backs.
_DAMAGE = (
    AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
_headers: list[bytes] = []  # headers of streams that were read in full and found sound


class _Bag:
    """What an object of an allowed class becomes: its state, nothing else."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def build(self, state: Any) -> None:
        """Take the state that the pickle gives an object after making it."""
        self.state = state


class _Dtype(_Bag):
    """A pickled numpy dtype: its state is the name; what the pickle adds is the byte order."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise Refused("bad-pickle", "a numpy dtype that is not little endian")


class _Name:
    """A global that the pickle mentions: a module and a name in it, looked up nowhere but in the tables."""

    __slots__ = ("module", "name")

    def __init__(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("bad-pickle", "a global whose name is no text")
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def read_record(data: bytes) -> dict[str, Any]:
    """Return the attributes of a pickled ``Data``: numpy arrays, numbers, strings; None where it says None.

    Raises:
        Refused: ``hostile-pickle`` if it calls anything outside of the allow-list, ``bad-pickle`` if it is
            damaged or not a ``Data``.
    """
    value = read_pickle(data)
    if not isinstance(value, _Bag) or not isinstance(value.state, dict):
        raise Refused("bad-pickle", f"holds a {type(value).__name__}, expected torch_geometric Data")
    if "_store" not in value.state:
        return dict(value.state)
    store = value.state["_store"]  # torch_geometric 2: the attributes lie one deeper
    mapping = store.state.get("_mapping") if isinstance(store, _Bag) and isinstance(store.state, dict) else None
    if not isinstance(mapping, dict):
        raise Refused("bad-pickle", "Data without a mapping in its store")
    return dict(mapping)


def read_pickle(data: bytes) -> Any:
    """Return the value of a pickle of plain values and tensors.

    Raises:
        Refused: As for `read_record`.
    """
    try:
        return _run(data, 0, None)[0]
    except Refused:
        raise
    except _DAMAGE as error:
        raise Refused("bad-pickle", f"{type(error).__name__}: {error}") from error


def _run(data: bytes, start: int, persistent: Callable[[Any], Any] | None) -> tuple[Any, int]:
    """Interpret one pickle that begins at ``start``; return its value and where it ends."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    at = start
    end = len(data)
    # The most frequent instructions of a record come first.
    while at < end:
        op = data[at]
        at += 1
        if op == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif op == 0x4B:  # BININT1
            stack.append(data[at])
            at += 1
        elif op == 0x8C:  # SHORT_BINUNICODE
            size = data[at]
            at += 1
            stack.append(_bytes(data, at, size).decode())
            at += size
        elif op == 0x68:  # BINGET
            stack.append(memo[data[at]])
            at += 1
        elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
            arguments = stack.pop()
            stack[-1] = _call(stack[-1], arguments)
        elif op == 0x4E:  # NONE
            stack.append(None)
        elif op == 0x28:  # MARK
            marks.append(len(stack))
        elif op == 0x74:  # TUPLE
            first = marks.pop()
            stack[first:] = [tuple(stack[first:])]
        elif 0x85 <= op <= 0x87:  # TUPLE1, 2, 3
            count = op - 0x84
            if count > len(stack):
                raise Refused("bad-pickle", f"stack too short at byte {at - 1}")
            stack[-count:] = [tuple(stack[-count:])]
        elif op == 0x71:  # BINPUT
            memo[data[at]] = stack[-1]
            at += 1
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op in _WIDE:
            read, width = _WIDE[op]
            (value,) = read(data, at)
            at += width
            if op == 0x42 or op == 0x8E:  # BINBYTES, BINBYTES8
                stack.append(_bytes(data, at, value))
                at = _rest_of_tensor(data, at + value, stack, marks, memo)
            elif op == 0x58 or op == 0x8D:  # BINUNICODE, BINUNICODE8
                stack.append(_bytes(data, at, value).decode())
                at += value
            elif op == 0x72:  # LONG_BINPUT
                memo[value] = stack[-1]
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[value])
            elif op != 0x95 and op != 0x80:  # BININT, BININT2, BINFLOAT; FRAME and PROTO say nothing
                stack.append(value)
        elif op == 0x93:  # STACK_GLOBAL
            name = stack.pop()
            stack[-1] = _Name(stack[-1], name)
        elif op == 0x63:  # GLOBAL
            first, second = data.index(b"\n", at), data.index(b"\n", data.index(b"\n", at) + 1)
            stack.append(_Name(data[at:first].decode(), data[first + 1 : second].decode()))
            at = second + 1
        elif op == 0x62:  # BUILD
            state = stack.pop()
            if not isinstance(stack[-1], _Bag):
                raise Refused("bad-pickle", f"state for a {type(stack[-1]).__name__}")
            stack[-1].build(state)
        elif op == 0x75 or op == 0x65:  # SETITEMS, APPENDS
            first = marks.pop()
            items = stack[first:]
            del stack[first:]
            if op == 0x65:
                _list(stack[-1]).extend(items)
            else:
                _set(stack[-1], items[::2], items[1::2])
        elif op == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key], [value])
        elif op == 0x61:  # APPEND
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif op == 0x43 or op == 0x8A:  # SHORT_BINBYTES, LONG1
            size = data[at]
            at += 1
            content = _bytes(data, at, size)
            stack.append(content if op == 0x43 else int.from_bytes(content, "little", signed=True))
            at += size
        elif op == 0x51 and persistent is not None:  # BINPERSID
            stack[-1] = persistent(stack[-1])
        elif op == 0x2E:  # STOP
            return stack.pop(), at
        else:
            raise Refused("bad-pickle", f"instruction 0x{op:02x} at byte {at - 1}")
    raise Refused("bad-pickle", "ends before its end mark")


_CONSTANTS: dict[int, Callable[[], Any]] = {
    0x88: lambda: True, 0x89: lambda: False, 0x7D: dict, 0x5D: list, 0x29: tuple,
}  # fmt: skip
_WIDE = {
    op: (struct.Struct(form).unpack_from, struct.calcsize(form))
    for op, form in {
        0x58: "<I", 0x8D: "<Q", 0x42: "<I", 0x8E: "<Q", 0x72: "<I", 0x6A: "<I", 0x4A: "<i", 0x4D: "<H",
        0x47: ">d", 0x95: "<Q", 0x80: "<B",
    }.items()
}  # fmt: skip


def _rest_of_tensor(data: bytes, at: int, stack: list[Any], marks: list[int], memo: dict[int, Any]) -> int:
    """Do what stands between a storage's bytes and the end of its tensor at once, if it is the usual.

    Two thirds of a record's instructions are these. Stack, marks and memo end as they would one by one; where
    they are others, nothing changes and ``at`` is returned.
    """
    usual = _TENSOR.match(data, at)
    # Below the bytes: the function that reads them, the mark of the arguments, and the function they are of.
    if usual is None or not marks or marks[-1] != len(stack) - 2 or not marks[-1]:
        return at
    shape, stride = _integers(usual[1]), _integers(usual[3])
    ordered_dict = memo.get(usual[5][0])
    if ordered_dict is None or (len(shape), len(stride)) != (usual[2][0] - 0x84, usual[4][0] - 0x84):
        return at
    content = (stack.pop(),)
    storage = _call(stack.pop(), content)
    hooks = _call(ordered_dict, ())
    arguments = (storage, 0, shape, stride, False, hooks)
    stack[-1] = _call(stack[-1], arguments)
    marks.pop()
    for value in (*content, content, storage, shape, stride, hooks, arguments, stack[-1]):
        memo[len(memo)] = value
    return usual.end()


@lru_cache(maxsize=4096)
def _integers(instructions: bytes) -> tuple[int, ...]:
    """Return the integers that a run of BININT1 and BININT2 puts on the stack."""
    found, at = [], 0
    while at < len(instructions):
        width = 1 if instructions[at] == 0x4B else 2
        found.append(int.from_bytes(instructions[at + 1 : at + 1 + width], "little"))
        at += 1 + width
    return tuple(found)


def _bytes(data: bytes, at: int, size: int) -> bytes:
    """Return ``size`` bytes, all of which must be there."""
    if at + size > len(data):
        raise Refused("bad-pickle", f"{size} bytes announced at byte {at}, {len(data) - at} are left")
    return data[at : at + size]


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise Refused("bad-pickle", f"append to a {type(value).__name__}")
    return value


def _set(target: Any, keys: list[Any], values: list[Any]) -> None:
    # Nested tuples as keys could be hashed for ever; records have names as keys.
    if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
        raise Refused("bad-pickle", f"item of a {type(target).__name__}")
    target.update(zip(keys, values, strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """Call an allowed function, or make an object of an allowed class."""
    if not isinstance(function, _Name) or type(arguments) is not tuple:
        raise Refused("bad-pickle", f"call of a {type(function).__name__}")
    known = _FUNCTIONS.get((function.module, function.name))
    if known is None:
        raise Refused("hostile-pickle", f"asks to call {function}")
    return known(*arguments)


def _storage(stream: bytes) -> NDArray[Any]:
    """Return the storage in torch's legacy stream as a flat array."""
    if type(stream) is not bytes:
        raise Refused("bad-pickle", "a tensor without bytes")
    at = _header_nbytes(stream)
    usual = _USUAL.match(stream, at)
    if usual is not None and usual[2][0] == len(usual[3]) and (name := usual[1].decode()) in _STORAGES:
        dtype, at = _STORAGES[name], usual.end()
    else:
        dtype, at = _run(stream, at, _storage_dtype)
        _, at = _run(stream, at, None)  # names of the storages; one here
    (count,) = _COUNT.unpack_from(stream, at)
    if type(dtype) is not str or dtype not in _STORAGES.values():
        raise Refused("bad-pickle", "a tensor without storage class")
    form = "<u2" if dtype == "bfloat16" else dtype
    if not 0 <= count <= (len(stream) - at - 8) // np.dtype(form).itemsize:
        raise Refused("bad-pickle", f"a tensor of {count} elements in {len(stream) - at - 8} bytes")
    array = np.frombuffer(stream, dtype=form, count=count, offset=at + 8)
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.view(np.uint8) != 0 if dtype == "?" else array


def _header_nbytes(stream: bytes) -> int:
    """Return the length of the stream's header; all tensors of one writer have the same."""
    for header in _headers:
        if stream.startswith(header):
            return len(header)
    magic, at = _run(stream, 0, None)
    protocol, at = _run(stream, at, None)
    system, at = _run(stream, at, None)
    if magic != _MAGIC or protocol != 1001 or system["little_endian"] is not True:
        raise Refused("bad-pickle", "a tensor whose stream is not torch's legacy format, little endian")
    if len(_headers) < 8:
        _headers.append(stream[:at])
    return at


def _storage_dtype(persistent: Any) -> str:
    """Return the dtype that a storage's persistent id ('storage', class, key, device, size, ...) names."""
    name = persistent[1]
    if persistent[0] != "storage" or not isinstance(name, _Name) or name.module != "torch":
        raise Refused("hostile-pickle", "a persistent id that is no torch storage")
    if name.name not in _STORAGES:
        raise Refused("bad-pickle", f"storage {name} is not supported")
    return _STORAGES[name.name]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """Return the tensor (not writeable) that lies in a storage with this offset, shape and stride."""
    whole = (offset, *shape, *stride)
    if not isinstance(storage, np.ndarray) or len(shape) != len(stride) or len(shape) > 8:
        raise Refused("bad-pickle", "a tensor without storage, or with another number of strides than axes")
    for number in whole:
        if type(number) is not int or not 0 <= number < 2**62:
            raise Refused("bad-pickle", "a tensor whose offset, shape or stride is no whole number")
    count, last, dense = 1, offset, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        dense = dense and step == count
        last += (size - 1) * step
        count *= size
    if count and (last >= storage.size or count > max(storage.size, _MAX_EXPANDED)):
        raise Refused("bad-pickle", f"a tensor of shape {shape} in a storage of {storage.size}")
    if not count:
        return np.empty(0, dtype=storage.dtype)
    if dense:
        return storage[offset : offset + count].reshape(shape)
    bytes_stride = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_stride, writeable=False).copy()


def _scalar(dtype: Any, data: Any) -> Any:
    """Return a pickled numpy scalar as a Python number."""
    if not isinstance(dtype, _Dtype) or type(data) is not bytes:
        raise Refused("bad-pickle", "a numpy scalar without dtype")
    return np.frombuffer(data, dtype=dtype.state).item()


def _dtype(name: Any, *_: Any) -> _Dtype:
    if type(name) is not str or name not in _NUMBERS:
        raise Refused("bad-pickle", "a numpy dtype that is no plain number")
    bag = _Dtype()
    bag.state = name
    return bag


def _ordered_dict(*_: Any) -> dict[Any, Any]:
    return {}


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_geometric.data.data", "Data"): _Bag,
    ("torch_geometric.data.data", "DataEdgeAttr"): _Bag,
    ("torch_geometric.data.data", "DataTensorAttr"): _Bag,
    ("torch_geometric.data.storage", "GlobalStorage"): _Bag,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
