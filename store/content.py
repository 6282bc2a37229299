"""Content hash: says whether two datasets hold the same structures, however they were made.

A structure's hash is XXH3-128 over its packed record, made of exactly the fields it has, with the ``dataset``
index zeroed (it depends on the order of the recipe); the seed is XXH3-64 of the dataset's name and the field
names. A collection's hash is the sum modulo 2**128: independent of order, shards and format, and mergeable.

Source: XXH3, https://github.com/Cyan4973/xxHash (specification in doc/xxhash_spec.md).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import xxhash

from gfm.data.fields import OPTIONAL, presence_bit, schema_of
from gfm.data.ragged import RaggedBatch
from gfm.errors import DataError

__all__ = ["combine", "content_hash"]

_MODULUS = 1 << 128


def content_hash(batch: RaggedBatch, dataset_names: Sequence[str]) -> str:
    """Return the hash of a batch's structures, 32 hex digits.

    Args:
        batch: The structures.
        dataset_names: What the field ``dataset`` is an index into.

    Raises:
        DataError: A structure's dataset has no name.
    """
    datasets = batch.columns["dataset"]
    if len(batch) and datasets.max() >= len(dataset_names):
        raise DataError(
            f"dataset index {datasets.max()}, but there are only the datasets {list(dataset_names)}"
        )
    total = 0
    for index in np.unique(datasets):
        for mask in np.unique(batch.present[datasets == index]):
            rows = np.flatnonzero((datasets == index) & (batch.present == mask))
            chosen = batch if len(rows) == len(batch) else batch.take(rows)
            schema = schema_of(name for name in OPTIONAL if mask & presence_bit(name))
            total += _sum(chosen, schema, dataset_names[index])
    return f"{total % _MODULUS:032x}"


def combine(hashes: Iterable[str]) -> str:
    """Return the hash of several collections together."""
    return f"{sum(int(digits, 16) for digits in hashes) % _MODULUS:032x}"


def _sum(batch: RaggedBatch, schema: tuple[str, ...], dataset_name: str) -> int:
    """Add the hashes of structures that share a dataset and have the same fields."""
    seed = xxhash.xxh3_64_intdigest("\0".join([dataset_name, *schema]).encode())
    columns = {**batch.columns, "dataset": np.zeros(len(batch), dtype=np.uint8)}
    records, starts = RaggedBatch(columns, batch.offsets, batch.present).pack(schema)
    view, bounds = records.data, starts.tolist()
    return sum(xxhash.xxh3_128_intdigest(view[first:last], seed=seed) for first, last in pairwise(bounds))
