"""Shards as Zarr v3 groups: one array a column, one file an array, compressed (Blosc, zstd, byte shuffle).

The only file that knows zarr. A missing chunk reads as the fill value without a word, so every chunk is written
even where it holds nothing else, and every file is in the shard's receipt, which is checked before opening.

Source: Zarr core specification version 3, https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfm.errors import CorruptDataError
from store.manifest import ColumnPlace

__all__ = ["ZarrShards"]

# Bytes of a chunk before compression: what has to be decoded to read one structure.
_CHUNK_NBYTES = 256 << 10


class ZarrShards:
    """Zarr v3 groups; see `store.shards.ShardFormat`."""

    suffix: ClassVar[str] = ".zarr"

    @staticmethod
    def write(path: Path, columns: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Write every column as one array, whose chunks lie in one file.

        Returns:
            Nothing: compressed columns cannot be memory-mapped.
        """
        import zarr
        from zarr.codecs import BloscCodec

        group = zarr.create_group(path, zarr_format=3)
        for name, column in columns.items():
            if not column.size:
                continue
            rows = _chunk_rows(column.dtype, column.shape)
            array = group.create_array(
                name,
                shape=column.shape,
                dtype=column.dtype,
                chunks=(rows, *column.shape[1:]),
                shards=(-(-len(column) // rows) * rows, *column.shape[1:]),
                compressors=BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
                fill_value=0,
                config={"write_empty_chunks": True},
            )
            array[...] = column
        return {}

    @staticmethod
    def open(path: Path, places: Mapping[str, ColumnPlace], *, mapped: bool = True) -> "_ZarrColumns":
        """Open for reading; ``mapped`` changes nothing."""
        return _ZarrColumns(path, {name: place for name, place in places.items() if 0 not in place.shape})


class _ZarrColumns:
    """Columns as arrays of a group; scattered rows go through a cache of decoded chunks."""

    def __init__(self, path: Path, places: Mapping[str, ColumnPlace]) -> None:
        import zarr

        group = zarr.open_group(path, mode="r")
        self._arrays: dict[str, Any] = {}
        for name, place in places.items():
            array = group.get(name)
            if not isinstance(array, zarr.Array) or (array.shape, array.dtype.name) != (
                place.shape,
                place.dtype,
            ):
                raise CorruptDataError(f"{path}: no column {name} of {place.dtype} {place.shape} in the group")
            self._arrays[name] = array

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(self._arrays[name][start:stop])

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        array = self._arrays[name]
        size = array.chunks[0]
        column = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
        chunk_index = rows // size
        for index in np.unique(chunk_index).tolist():
            here = chunk_index == index
            column[here] = self._chunk(name, index, size)[rows[here] - index * size]
        return column

    def _chunk(self, name: str, index: int, size: int) -> NDArray[Any]:
        key = (id(self._arrays[name]), index)
        chunk = _CACHE.get(key)
        if chunk is None:
            chunk = np.asarray(self._arrays[name][index * size : (index + 1) * size])
            _CACHE.put(key, self._arrays[name], chunk)
        return chunk


class _ChunkCache:
    """Decoded chunks of this process, the least recently used given up beyond a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._nbytes = 0
        # The array is kept beside its chunk, so that its id is not given to another one meanwhile.
        self._chunks: OrderedDict[tuple[int, int], tuple[Any, NDArray[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> NDArray[Any] | None:
        with self._lock:
            if key not in self._chunks:
                return None
            self._chunks.move_to_end(key)
            return self._chunks[key][1]

    def put(self, key: tuple[int, int], array: Any, chunk: NDArray[Any]) -> None:
        with self._lock:
            if key in self._chunks:
                return
            self._chunks[key] = (array, chunk)
            self._nbytes += chunk.nbytes
            while self._nbytes > self._limit:
                self._nbytes -= self._chunks.popitem(last=False)[1][1].nbytes


_CACHE = _ChunkCache(256 << 20)


def _chunk_rows(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Return the rows of a chunk of about `_CHUNK_NBYTES`, at most the whole column."""
    row_nbytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    return max(1, min(shape[0], _CHUNK_NBYTES // row_nbytes))
