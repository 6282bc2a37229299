"""WindowStore: the memory of all ranks as one sample store, over MPI one-sided communication.

Every rank preloads a contiguous run of packed records into its part of one window. Ranks of the same node read
each other's parts as plain shared memory; parts on other nodes are fetched by one `Get` per run of records, and
one flush per batch. The window stays locked, shared, for the store's life: nothing is written after loading.

Source: MPI-4.1, chapter 12, One-Sided Communications, https://www.mpi-forum.org/docs/mpi-4.1/mpi41-report.pdf.
"""

import atexit
import threading
import warnings
from typing import TYPE_CHECKING, Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import DataError
from store.agreement import require_same, together
from store.dataset import Dataset
from store.index import RowIndex, bytes_of, node_index
from store.memory import require_window_memory
from store.preload import load_records

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["WindowStore"]

# Open MPI refuses 2 GiB and DDStore returns garbage for it; a quarter of that costs nothing.
_MAX_GET = 512 << 20
_PROGRESS_SECONDS = 1e-3


class WindowStore:
    """Packed records spread over the memory of all ranks; every rank may ask for any row.

    `get` is not collective: ranks ask for what they want, when they want, from any one thread at a time.
    Opening and closing are collective.
    """

    kind = "rma"

    def __init__(self, dataset: Dataset, comm: "Intracomm", ids: NDArray[np.integer] | None = None) -> None:
        """Check that it fits, then load; collective over ``comm``.

        Args:
            dataset: Where structures come from, the same on every rank; checksums of files read are compared.
            comm: The ranks whose memory is used.
            ids: Rows to load, the same on every rank; all by default.

        Raises:
            ResourceError: Memory of a node would not suffice; raised on all ranks, before loading.
            CorruptDataError: A file is not what was written; raised on all ranks.
            DataError: Ranks were given different rows or datasets; raised on all ranks.
        """
        from mpi4py import MPI

        self.schema = dataset.schema
        self._mpi = MPI
        self._comm = comm.Dup()
        self._node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        require_same(dataset, ids, self._comm)
        self._index, self._index_window = node_index(dataset, ids, self._comm, self._node)
        rank, size = self._comm.rank, self._comm.size
        shares = np.arange(size + 1) * (int(self._index.starts[-1]) / size)
        # First record of every rank: contiguous runs of about equal bytes.
        self._bounds = np.searchsorted(self._index.starts, shares)
        self._bounds[-1] = len(self._index)
        # First byte of every rank, in the run of all records.
        self._bases = self._index.starts[self._bounds]
        own = int(self._bases[rank + 1] - self._bases[rank])
        require_window_memory(own, self._comm, self._node)
        self._window = MPI.Win.Allocate(own, 1, comm=self._comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._closed = False
        self._load(dataset, own)
        self._origins = np.full(size, -1, dtype=np.int64)
        self._region = self._map_node()
        self._counts = {"records": 0, "bytes": 0, "local": 0, "node": 0, "remote": 0, "gets": 0}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._progress: threading.Thread | None = None
        # Every rank answers if any rank has to ask over the network.
        if self._comm.allreduce(int((self._origins < 0).any()), MPI.MAX):
            self._start_progress()

    def __len__(self) -> int:
        """Return the number of structures loaded, over all ranks."""
        return len(self._index)

    def get(self, ids: NDArray[np.integer]) -> RaggedBatch:
        """Return the structures at these rows of the dataset, in this order, repeats included.

        Raises:
            DataError: A row was not loaded, or the store is closed.
        """
        if self._closed:
            raise DataError("this sample store is closed")
        positions = self._index.positions(ids)
        starts = self._index.starts[positions]
        sizes = self._index.starts[positions + 1] - starts
        owners = np.searchsorted(self._bounds, positions, side="right") - 1
        displacements = starts - self._bases[owners]
        origins = self._origins[owners]
        far = np.flatnonzero(origins < 0)
        with self._lock:
            own = int((owners == self._comm.rank).sum())
            self._counts["records"] += len(positions)
            self._counts["bytes"] += int(sizes.sum())
            self._counts["local"] += own
            self._counts["node"] += len(positions) - own - len(far)
            self._counts["remote"] += len(far)
            if not len(far):
                # Straight from shared memory, with no copy in between.
                return RaggedBatch.unpack(self._region, origins + displacements, self.schema)
            begins = np.zeros(len(sizes) + 1, dtype=np.int64)
            np.cumsum(sizes, out=begins[1:])
            buffer = np.empty(begins[-1], dtype=np.uint8)
            self._fetch(buffer, begins[far], owners[far], displacements[far], sizes[far])
            near = np.flatnonzero(origins >= 0)
            _gather(self._region, (origins + displacements)[near], sizes[near], buffer, begins[near])
            self._window.Flush_all()
        return RaggedBatch.unpack(buffer, begins, self.schema)

    @property
    def stats(self) -> dict[str, int]:
        """Counts since opening, of this rank.

        ``records`` and ``bytes`` asked for; records that were this rank's own (``local``), in shared memory of
        its node (``node``) or fetched (``remote``); ``gets`` issued for the latter.
        """
        return dict(self._counts)

    def close(self) -> None:
        """Give the memory back; collective."""
        if self._closed:
            return
        self._closed = True
        self._stop_progress()
        self._region = np.empty(0, dtype=np.uint8)
        self._free()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the store."""
        self.close()

    def _load(self, dataset: Dataset, own: int) -> None:
        """Fill this rank's part; if one rank fails, all raise."""
        first, last = (int(bound) for bound in self._bounds[self._comm.rank : self._comm.rank + 2])

        def load() -> None:
            part = bytes_of(self._window.tomemory())[:own]
            load_records(dataset, self._index, first, last, part)

        try:
            together(self._comm, load)
        except Exception:
            self._closed = True
            self._free()
            raise
        # The fence between the last store by any rank and the first load or Get by another.
        self._window.Sync()
        self._comm.Barrier()
        self._window.Sync()

    def _map_node(self) -> NDArray[np.uint8]:
        """Map the parts of the node's ranks as one run of memory, and note where in it each begins.

        MPI implementations differ in whether they show an allocated window's memory to other ranks, and whether
        it lies in one run. Both are looked at, and what is seen is compared with what `Get` brings; ranks that
        do not pass are asked by `Get`.
        """
        nothing = np.empty(0, dtype=np.uint8)
        expected = np.diff(self._bases)
        parts: list[tuple[int, int, int]] = []
        for rank in self._node.allgather(self._comm.rank):
            if expected[rank] == 0:
                self._origins[rank] = 0
                continue
            try:
                own = rank == self._comm.rank
                memory = self._window.tomemory() if own else self._window.Shared_query(rank)[0]
            except self._mpi.Exception:
                continue
            if len(memory) >= expected[rank]:
                parts.append((memory.address, rank, int(expected[rank])))
        parts.sort()
        if not parts:
            return nothing
        begin, end = parts[0][0], parts[-1][0] + parts[-1][2]
        # One mapping, save for the padding that an implementation may put between parts.
        if end - begin > sum(size for *_, size in parts) + 4096 * len(parts):
            parts = [part for part in parts if part[1] == self._comm.rank]
            begin, end = parts[0][0], parts[0][0] + parts[0][2]
        region = bytes_of(self._mpi.buffer.fromaddress(begin, end - begin))
        for address, rank, size in parts:
            probe = np.empty(min(size, 4096), dtype=np.uint8)
            self._window.Get([probe, self._mpi.BYTE], rank, [size - len(probe), len(probe), self._mpi.BYTE])
            self._window.Flush(rank)
            stop = address - begin + size
            if np.array_equal(region[stop - len(probe) : stop], probe):
                self._origins[rank] = address - begin
        return region

    def _fetch(
        self,
        buffer: NDArray[np.uint8],
        begins: NDArray[np.int64],
        owners: NDArray[np.int64],
        displacements: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        """Begin to fetch records into a buffer; complete after the next flush.

        Records that follow each other both at their owner and in the buffer come as one.
        """
        follows = (owners[1:] == owners[:-1]) & (displacements[1:] == displacements[:-1] + sizes[:-1])
        follows &= begins[1:] == begins[:-1] + sizes[:-1]
        firsts = np.flatnonzero(np.concatenate([[True], ~follows]))
        runs = np.add.reduceat(sizes, firsts)
        byte, get = self._mpi.BYTE, self._window.Get
        for begin, owner, displacement, size in zip(
            begins[firsts].tolist(),
            owners[firsts].tolist(),
            displacements[firsts].tolist(),
            runs.tolist(),
            strict=True,
        ):
            for done in range(0, size, _MAX_GET):
                count = min(_MAX_GET, size - done)
                get([buffer, count, begin + done, byte], owner, [displacement + done, count, byte])
                self._counts["gets"] += 1

    def _start_progress(self) -> None:
        """Enter MPI regularly, so that other nodes' gets are served while this rank computes."""
        if self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE:
            warnings.warn(
                "this MPI has no THREAD_MULTIPLE: samples of other nodes wait until their owner enters MPI",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        comm, stop = self._comm, self._stop

        def probe() -> None:
            while not stop.wait(_PROGRESS_SECONDS):
                comm.Iprobe()

        self._progress = threading.Thread(target=probe, name="gfm-mpi-progress", daemon=True)
        self._progress.start()
        atexit.register(self._stop_progress)

    def _stop_progress(self) -> None:
        self._stop.set()
        if self._progress is not None:
            self._progress.join()
            self._progress = None
            atexit.unregister(self._stop_progress)

    def _free(self) -> None:
        """Free windows and communicators; collective."""
        self._window.Unlock_all()
        self._window.Free()
        self._index = RowIndex(None, np.zeros(1, dtype=np.int64))
        if self._index_window is not None:
            self._index_window.Free()
        self._node.Free()
        self._comm.Free()


@numba.njit(nogil=True, cache=True)
def _gather(
    region: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    buffer: NDArray[np.uint8],
    begins: NDArray[np.int64],
) -> None:
    """Copy records from mapped memory into a buffer."""
    for i in range(len(starts)):
        buffer[begins[i] : begins[i] + sizes[i]] = region[starts[i] : starts[i] + sizes[i]]
