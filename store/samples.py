"""SampleStore: what training reads structures from; here the two that need no MPI.

The same protocol stands before packed records in this process's memory (`LocalStore`), the files themselves
(`DiskStore`), and the memory of all ranks together (`store.window.WindowStore`).
"""

import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import ConfigError, DataError
from gfm.runtime.registry import suggest
from store.dataset import Dataset
from store.index import RowIndex
from store.memory import require_memory
from store.preload import load_records

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["DiskStore", "LocalStore", "SampleStore", "open_samples"]

Kind = Literal["auto", "rma", "local", "disk"]


class SampleStore(Protocol):
    """Structures by row of the dataset, from wherever they are.

    Attributes:
        kind: ``local``, ``disk`` or ``rma``.
        schema: Fields of the batches.
    """

    kind: str
    schema: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of structures that can be asked for."""
        ...

    def get(self, ids: NDArray[np.integer]) -> RaggedBatch:
        """Return the structures at these rows of the dataset, in this order, repeats included."""
        ...

    @property
    def stats(self) -> dict[str, int]:
        """Counts since opening: ``records`` and ``bytes`` asked for; where they came from."""
        ...

    def close(self) -> None:
        """Give everything back; on all ranks together where there are several."""
        ...


class LocalStore:
    """Packed records in this process's memory."""

    kind = "local"

    def __init__(self, dataset: Dataset, ids: NDArray[np.integer] | None = None) -> None:
        """Check that it fits, then load.

        Args:
            dataset: Where structures come from; checksums of the files read are compared.
            ids: Rows to load; all by default.

        Raises:
            ResourceError: Memory would not suffice.
            CorruptDataError: A file is not what was written.
        """
        self.schema = dataset.schema
        self._index = RowIndex.of(dataset, ids)
        require_memory(int(self._index.starts[-1]))
        self._records: NDArray[np.uint8] | None = np.empty(self._index.starts[-1], dtype=np.uint8)
        load_records(dataset, self._index, 0, len(self._index), self._records)
        self._counts = {"records": 0, "bytes": 0, "local": 0}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of structures loaded."""
        return len(self._index)

    def get(self, ids: NDArray[np.integer]) -> RaggedBatch:
        """Return the structures at these rows of the dataset, in this order, repeats included.

        Raises:
            DataError: A row was not loaded, or the store is closed.
        """
        if self._records is None:
            raise DataError("this sample store is closed")
        positions = self._index.positions(ids)
        starts = self._index.starts[positions]
        with self._lock:
            self._counts["records"] += len(positions)
            self._counts["local"] += len(positions)
            self._counts["bytes"] += int((self._index.starts[positions + 1] - starts).sum())
        return RaggedBatch.unpack(self._records, starts, self.schema)

    @property
    def stats(self) -> dict[str, int]:
        """Counts since opening: ``records`` and ``bytes`` asked for, ``local`` records."""
        return dict(self._counts)

    def close(self) -> None:
        """Free the memory."""
        self._records = None

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the store."""
        self.close()


class DiskStore:
    """The files themselves: memory-mapped where the format allows it, no preloading."""

    kind = "disk"

    def __init__(self, dataset: Dataset, ids: NDArray[np.integer] | None = None) -> None:
        """Take a dataset, or the part of it that ``ids`` names."""
        self.schema = dataset.schema
        self._dataset = dataset
        self._index = RowIndex.of(dataset, ids)
        self._counts = {"records": 0, "bytes": 0, "disk": 0}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of structures that can be asked for."""
        return len(self._index)

    def get(self, ids: NDArray[np.integer]) -> RaggedBatch:
        """Return the structures at these rows of the dataset, in this order, repeats included.

        Raises:
            DataError: A row is not among those the store was opened for.
        """
        positions = self._index.positions(ids)
        with self._lock:
            self._counts["records"] += len(positions)
            self._counts["disk"] += len(positions)
            self._counts["bytes"] += int(
                (self._index.starts[positions + 1] - self._index.starts[positions]).sum()
            )
        return self._dataset.batch(np.asarray(ids, dtype=np.int64))

    @property
    def stats(self) -> dict[str, int]:
        """Counts since opening: ``records`` and ``bytes`` (as packed records) asked for, ``disk`` records."""
        return dict(self._counts)

    def close(self) -> None:
        """Do nothing; the dataset stays open."""

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the store."""
        self.close()


def open_samples(
    dataset: Dataset,
    kind: Kind = "auto",
    comm: "Intracomm | None" = None,
    ids: NDArray[np.integer] | None = None,
) -> SampleStore:
    """Open a dataset for training; collective over ``comm`` where there is one.

    Args:
        dataset: The dataset.
        kind: ``rma``: the memory of all ranks together; ``local``: this process's own memory, the whole
            in every rank; ``disk``: the files; ``auto``: ``rma`` where there are several ranks, else ``local``.
        comm: The ranks.
        ids: Rows that will be asked for; all by default. The same on every rank.

    Raises:
        ResourceError: Memory would not suffice; the text says how much is needed and what would do.
        CorruptDataError: A file is not what was written; raised on all ranks.
        ConfigError: There is no such store, or ``rma`` without a communicator.
    """
    kinds = get_args(Kind)
    if kind not in kinds:
        raise ConfigError(f"no store is called {kind!r}.{suggest(kind, kinds)} Stores: {', '.join(kinds)}")
    several = comm is not None and comm.Get_size() > 1
    if kind == "rma" or (kind == "auto" and several):
        if comm is None:
            raise ConfigError(
                "store 'rma' needs ranks: start with mpiexec or srun, or choose 'local' or 'disk'"
            )
        from store.window import WindowStore

        return WindowStore(dataset, comm, ids)
    if kind in ("auto", "local"):
        return LocalStore(dataset, ids)
    return DiskStore(dataset, ids)
