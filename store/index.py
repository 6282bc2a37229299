"""RowIndex: where the packed record of every row begins, from the sizes alone, without opening a sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import record_layout
from gfm.errors import DataError
from store.agreement import together
from store.dataset import Dataset
from store.memory import require_window_memory

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

__all__ = ["RowIndex", "bytes_of", "node_index"]


@dataclass(frozen=True)
class RowIndex:
    """The rows a store holds, in ascending order, as one run of packed records.

    Attributes:
        rows: Rows of the dataset held, ascending (n,); None stands for all of them.
        starts: Byte where each record begins, and the end (n + 1,).
    """

    rows: NDArray[np.int64] | None
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, ids: NDArray[np.integer] | None) -> Self:
        """Lay out the records of these rows (all by default; repeats count once).

        Raises:
            DataError: A row does not exist.
        """
        rows = None if ids is None else np.unique(np.asarray(ids, dtype=np.int64))
        if rows is not None and len(rows) and (rows[0] < 0 or rows[-1] >= len(dataset)):
            raise DataError(f"{dataset.path}: rows are 0..{len(dataset) - 1}, asked for {rows[0]}..{rows[-1]}")
        num_atoms = dataset.num_atoms if rows is None else dataset.num_atoms[rows]
        starts = np.zeros(len(num_atoms) + 1, dtype=np.int64)
        np.cumsum(record_layout(dataset.schema).record_nbytes(num_atoms), out=starts[1:])
        return cls(rows, starts)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.starts) - 1

    def positions(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return which record each of these rows of the dataset is.

        Raises:
            DataError: A row is not held.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        if self.rows is None:
            if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
                raise DataError(f"rows are 0..{len(self) - 1}, asked for {wanted.min()}..{wanted.max()}")
            return wanted
        positions = np.searchsorted(self.rows, wanted)
        held = positions < len(self)
        held[held] = self.rows[positions[held]] == wanted[held]
        if not held.all():
            raise DataError(
                f"row {wanted[~held][0]} is not among the {len(self)} rows this store was opened for"
            )
        return positions

    def dataset_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the dataset's rows of the records ``start:stop``."""
        return np.arange(start, stop) if self.rows is None else self.rows[start:stop]


def node_index(
    dataset: Dataset, ids: NDArray[np.integer] | None, comm: "Comm", node: Any
) -> tuple[RowIndex, Any]:
    """Return the row index, kept once per node, and its window (None where a rank is alone); collective.

    Args:
        dataset: Whose rows.
        ids: Rows held; all by default.
        comm: All ranks.
        node: The ranks of this node.

    Raises:
        DataError: A row does not exist.
        ResourceError: A node has no room for the index.
    """
    from mpi4py import MPI

    index = together(comm, lambda: RowIndex.of(dataset, ids) if node.rank == 0 else None)
    num_rows, num_starts = node.bcast(
        None if index is None else (None if index.rows is None else len(index.rows), len(index.starts))
    )
    length = num_starts + (num_rows or 0)
    require_window_memory(8 * length if node.rank == 0 else 0, comm, node)
    if index is not None and node.size == 1:
        return index, None
    window = MPI.Win.Allocate_shared(8 * length if node.rank == 0 else 0, 8, comm=node)
    memory, _ = window.Shared_query(0)
    shared = bytes_of(memory)[: 8 * length].view(np.int64)
    window.Lock_all(MPI.MODE_NOCHECK)
    if index is not None:
        shared[:num_starts] = index.starts
        if index.rows is not None:
            shared[num_starts:] = index.rows
    window.Sync()
    node.Barrier()
    window.Sync()
    window.Unlock_all()
    shared.flags.writeable = False
    return RowIndex(None if num_rows is None else shared[num_starts:], shared[:num_starts]), window


def bytes_of(memory: Any) -> NDArray[np.uint8]:
    """View MPI's memory as an array."""
    return np.frombuffer(memory, dtype=np.uint8)
