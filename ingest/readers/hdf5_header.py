"""The header of an HDF5 array, where it has the plain form: version 1, numbers, one run of bytes.

Chunks, compression, other byte orders, other versions of the header, parts of it that lie elsewhere: all that
is left to the library.

Source: HDF5 File Format Specification 3.0, sections IV.A.1.a (object headers), IV.A.2.b, d and i (messages for
dataspace, datatype and layout).
"""

from struct import Struct
from typing import Any

import numpy as np

__all__ = ["HEADER_BYTES", "parse_header", "plain_dtypes"]

HEADER_BYTES = 512  # in which a plain header has all that is looked for
_PREFIX = Struct("<BxHII4x")
_MESSAGE = Struct("<HHB3x")
_LAYOUT = Struct("<BBQQ")
_SIZES = tuple(Struct(f"<{rank}Q") for rank in range(5))
_SHARED = 2  # a message that lies elsewhere
_DATASPACE, _DATATYPE, _CONTIGUOUS = 1, 3, 8


def parse_header(
    window: bytes, at: int, dtypes: dict[bytes, np.dtype[Any]]
) -> tuple[tuple[int, ...], np.dtype[Any], int, int] | None:
    """Return shape, dtype, address and size in bytes of an array; None if its header has another form.

    Args:
        window: Bytes of the file.
        at: Where in them the header begins.
        dtypes: What `plain_dtypes` returns.
    """
    end = min(at + HEADER_BYTES, len(window))
    shape = dtype = place = None
    if end - at < _PREFIX.size:
        return None
    version, _, _, size = _PREFIX.unpack_from(window, at)
    at += _PREFIX.size
    end = min(end, at + size)
    if version != 1:
        return None
    while at + _MESSAGE.size <= end and (shape is None or dtype is None or place is None):
        kind, length, flags = _MESSAGE.unpack_from(window, at)
        at += _MESSAGE.size
        if at + length > end or (flags & _SHARED and kind in (_DATASPACE, _DATATYPE, _CONTIGUOUS)):
            return None
        if kind == _DATASPACE:
            shape = _shape(window, at, length)
        elif kind == _DATATYPE:
            dtype = dtypes.get(window[at : at + (20 if window[at] & 15 else 12)])
        elif kind == _CONTIGUOUS and length >= _LAYOUT.size:
            form, layout, *place = _LAYOUT.unpack_from(window, at)
            if form not in (3, 4) or layout != 1:
                return None
        at += length
    if shape is None or dtype is None or place is None:
        return None
    return shape, dtype, place[0], place[1]


def _shape(window: bytes, at: int, length: int) -> tuple[int, ...] | None:
    """Return the shape that a dataspace message holds; None if it is of another form."""
    if length < 8:
        return None
    version, rank = window[at], window[at + 1]
    first = {1: 8, 2: 4}.get(version)
    if (
        first is None
        or rank >= len(_SIZES)
        or length < first + 8 * rank
        or (version == 2 and window[at + 3] > 1)
    ):
        return None
    return _SIZES[rank].unpack_from(window, at + first)


def plain_dtypes() -> dict[bytes, np.dtype[Any]]:
    """Return the little-endian numbers by the datatype message that stands for them."""
    from h5py import h5t

    names = ("<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8")
    return {h5t.py_create(np.dtype(name)).encode()[2:]: np.dtype(name) for name in names}
