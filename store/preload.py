"""Preloading: a run of rows from files into memory as packed records, a block at a time."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gfm.errors import CorruptDataError
from store.dataset import Dataset
from store.index import RowIndex

__all__ = ["BLOCK_NBYTES", "load_records"]

# Records unpacked and packed at a time, beside what is loaded; memory for it is counted in `store.memory`.
BLOCK_NBYTES = 32 << 20


def load_records(dataset: Dataset, index: RowIndex, start: int, stop: int, records: NDArray[np.uint8]) -> None:
    """Pack the records ``start:stop`` of an index into memory, reading only the shards they lie in.

    Args:
        dataset: Where they come from.
        index: Where each record goes.
        start: First record.
        stop: After the last record.
        records: Memory (bytes), the first of which is the first byte of record ``start``.

    Raises:
        CorruptDataError: A file is not what was written, checksums included; or a shard's numbers of atoms are
            not those of sizes.npy.
    """
    rows = index.dataset_rows(start, stop)
    bounds = np.searchsorted(rows, dataset.shard_starts)
    for shard, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        opened = dataset.open_shard(shard, verify=True)
        begin = int(first)
        while begin < last:
            limit = index.starts[start + begin] + BLOCK_NBYTES
            end = int(np.searchsorted(index.starts, limit, side="right")) - 1 - start
            end = min(max(end, begin + 1), int(last))
            block = rows[begin:end] - dataset.shard_starts[shard]
            whole = block[-1] - block[0] == len(block) - 1
            batch = opened.read(int(block[0]), int(block[-1]) + 1) if whole else opened.take(block)
            packed, starts = batch.pack(dataset.schema)
            expected = index.starts[start + begin : start + end + 1] - index.starts[start]
            if not np.array_equal(starts, expected - expected[0]):
                raise CorruptDataError(
                    f"{dataset.path}: shard {shard} and sizes.npy do not agree; verify the dataset"
                )
            records[expected[0] : expected[-1]] = packed
            begin = end
