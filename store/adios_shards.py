"""Shards as ADIOS2 BP5 files: uncompressed, one block a column, so that columns can be memory-mapped.

The only file that knows adios2; its serial wheel is enough, since one task writes one whole file. An
uncompressed single block lies in ``data.0`` exactly as in memory: the writer looks, byte by byte, and notes
where. What has no noted place is read through ADIOS.

Source: Godoy et al. 2020, SoftwareX 12, 100561, doi:10.1016/j.softx.2020.100561.
"""

import contextlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gfm.errors import CorruptDataError
from store.manifest import ColumnPlace

__all__ = ["AdiosShards"]

# The library keeps state of its own beside the objects it hands out; one thread at a time calls it.
_LOCK = threading.RLock()


class AdiosShards:
    """BP5 files; see `store.shards.ShardFormat`."""

    suffix: ClassVar[str] = ".bp"

    @staticmethod
    def write(path: Path, columns: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Write all columns in one step, each as one block.

        Returns:
            Where each column begins in ``data.0``.
        """
        with _LOCK:
            adios2 = _import_adios2()
            io = adios2.Adios().declare_io("write")
            io.set_engine("BP5")
            # Without statistics a file depends on the columns' values only where it holds them.
            io.set_parameters({"StatsLevel": "0", "NumAggregators": "1"})
            engine = io.open(str(path), adios2.bindings.Mode.Write)
            try:
                engine.begin_step()
                for name, column in columns.items():
                    if column.size:
                        shape = list(column.shape)
                        variable = io.define_variable(name, column, shape, [0] * column.ndim, shape, True)
                        engine.put(variable, column, adios2.bindings.Mode.Deferred)
                engine.end_step()
                engine.close()
            except RuntimeError as error:
                _give_up(path, engine)
                # ADIOS2 names the system's error in its text only.
                if (number := re.search(r"errno = (\d+)", str(error))) is not None:
                    raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
                raise
        # It holds the times of this run, and nothing reads it.
        (path / "profiling.json").unlink(missing_ok=True)
        return _find_columns(path / "data.0", columns)

    @staticmethod
    def open(
        path: Path, places: Mapping[str, ColumnPlace], *, mapped: bool = True
    ) -> "_MappedColumns | _AdiosColumns":
        """Open for reading: memory-mapped where every column's place is known, else through ADIOS."""
        written = {name: place for name, place in places.items() if 0 not in place.shape}
        if mapped and all(place.offset is not None for place in written.values()):
            return _MappedColumns(path / "data.0", written)
        return _AdiosColumns(path, written)


class _MappedColumns:
    """Columns as views of the mapped data file."""

    def __init__(self, path: Path, places: Mapping[str, ColumnPlace]) -> None:
        data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        self._views: dict[str, NDArray[Any]] = {}
        for name, place in places.items():
            assert place.offset is not None
            dtype = np.dtype(place.dtype).newbyteorder("<")
            stop = place.offset + dtype.itemsize * int(np.prod(place.shape, dtype=np.int64))
            if stop > len(data):
                raise CorruptDataError(f"{path}: column {name} should end at byte {stop} of {len(data)}")
            self._views[name] = data[place.offset : stop].view(dtype).reshape(place.shape)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return self._views[name][start:stop].copy()

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self._views[name].take(rows, axis=0)


class _AdiosColumns:
    """Columns read by selections, through ADIOS itself."""

    def __init__(self, path: Path, places: Mapping[str, ColumnPlace]) -> None:
        self._path = path
        self._places = places
        with _LOCK:
            adios2 = _import_adios2()
            adios = adios2.Adios()
            self._io = adios.declare_io("read")
            self._io.set_engine("BP5")
            self._engine = self._io.open(str(path), adios2.bindings.Mode.ReadRandomAccess)
            # Closed with its last reader, or at exit.
            weakref.finalize(self, _close, self._engine, self._io, adios)
            self._sync = adios2.bindings.Mode.Sync
            for name, place in places.items():
                variable = self._io.inquire_variable(name)
                if variable is None or tuple(variable.shape()) != place.shape:
                    raise CorruptDataError(f"{path}: no column {name} of shape {place.shape} in the file")

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        place = self._places[name]
        column = np.empty((stop - start, *place.shape[1:]), dtype=place.dtype)
        self._fill(name, column, start)
        return column

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        place = self._places[name]
        column = np.empty((len(rows), *place.shape[1:]), dtype=place.dtype)
        # One selection for every run of rows that follow each other.
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        begin = 0
        for end in ends:
            self._fill(name, column[begin:end], int(rows[begin]))
            begin = end
        return column

    def _fill(self, name: str, column: NDArray[Any], start: int) -> None:
        with _LOCK:
            variable = self._io.inquire_variable(name)
            variable.set_selection([[start] + [0] * (column.ndim - 1), list(column.shape)])
            self._engine.get(variable, column, self._sync)


def _give_up(path: Path, engine: Any) -> None:
    """Close a file that could not be written: an engine destroyed open ends the process on a full disk."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path / "data.0", 0)  # room for what closing writes
    with contextlib.suppress(RuntimeError):
        engine.close()


def _close(engine: Any, *_: Any) -> None:
    """Close a file; the objects it was opened with come along, since they must outlive it."""
    with _LOCK:
        engine.close()


def _find_columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return where each column begins in the data file; empty if one is not where it is expected."""
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    offsets: dict[str, int] = {}
    position = 0
    for name, column in columns.items():
        if not column.size:
            continue
        position += -position % column.itemsize
        stop = position + column.nbytes
        if not np.array_equal(data[position:stop], column.reshape(-1).view(np.uint8)):
            return {}
        offsets[name] = position
        position = stop
    return offsets


def _import_adios2() -> Any:
    """Import adios2 without the torch it would pull in for a feature not used here (seconds, 200 MB)."""
    if "adios2" not in sys.modules and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            import adios2
        finally:
            del sys.modules["torch"]
    import adios2

    return adios2
