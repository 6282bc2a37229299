"""RowIndex: where the packed record of every row begins, from the sizes alone, without opening a sample."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import record_layout
from gfm.errors import DataError
from store.dataset import Dataset

__all__ = ["RowIndex"]


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
