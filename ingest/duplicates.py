"""Exact duplicates across parts, files and datasets, in bounded memory: digests are sorted out into buckets.

Each part left its digests sorted, so a bucket (a range of digests) is a slice of each; equal digests are in the
same bucket, and one task looks at one bucket. Of equal structures that one is kept whose dataset's name, then
key, comes first: the choice depends on the structures, not on the order of sources, parts or tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.plan import part_name
from ingest.tables import open_digests
from store.integrity import replacing

__all__ = ["FOLDER", "Bucket", "buckets_of", "dropped_rows", "find_duplicates"]

FOLDER = "build/duplicates"
_PER_BUCKET = 2_000_000  # structures, about; what a task sorts in some 200 MB
# One structure that is dropped, and the one it equals.
DROPPED = np.dtype([("part", "<u4"), ("row", "<u4"), ("kept_part", "<u4"), ("kept_row", "<u4")])
_ENTRY = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("key", "<u8"),
        ("dataset", "<u2"),
        ("part", "<u4"),
        ("row", "<u4"),
    ]
)


@dataclass(frozen=True)
class Bucket:
    """A range of digests that one task looks through.

    Attributes:
        output: The dataset's directory.
        number: Which of the buckets.
        total: How many there are.
        parts: Number in the plan, and rank of the dataset's name, of each part that has structures.
    """

    output: Path
    number: int
    total: int
    parts: Sequence[tuple[int, int]]


def buckets_of(output: Path, parts: Sequence[tuple[int, int]], structures: int) -> list[Bucket]:
    """Divide all digests into buckets of about `_PER_BUCKET` structures."""
    total = max(1, -(-structures // _PER_BUCKET))
    return [Bucket(output, number, total, parts) for number in range(total)]


def find_duplicates(bucket: Bucket) -> str | None:
    """Write down which structures of a bucket are dropped; return the file (below the output) if any are."""
    entries = _entries(bucket)
    names = ("high", "low", "dataset", "key", "part", "row")
    entries = entries[np.lexsort([entries[name] for name in reversed(names)])]
    again = np.zeros(len(entries), dtype=bool)
    again[1:] = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    path = f"{FOLDER}/{bucket.number:06d}.npy"
    if not again.any():
        return None
    # The first of each run of equal digests is kept.
    kept = entries[np.maximum.accumulate(np.where(again, 0, np.arange(len(entries))))[again]]
    dropped = np.zeros(int(again.sum()), dtype=DROPPED)
    dropped["part"], dropped["row"] = entries["part"][again], entries["row"][again]
    dropped["kept_part"], dropped["kept_row"] = kept["part"], kept["row"]
    (bucket.output / FOLDER).mkdir(parents=True, exist_ok=True)
    with replacing(bucket.output / path) as temporary, temporary.open("wb") as file:
        np.save(file, np.sort(dropped, order=["part", "row"]))
    return path


def dropped_rows(output: Path, files: Sequence[str], part: int) -> NDArray[np.void]:
    """Return what is dropped of a part, entries of `DROPPED` in the order of rows, from `find_duplicates`."""
    found = []
    for file in files:
        dropped = np.load(output / file, mmap_mode="r")
        first, last = np.searchsorted(dropped["part"], [part, part + 1])
        found.append(np.array(dropped[first:last]))
    joined = np.concatenate(found) if found else np.zeros(0, dtype=DROPPED)
    return joined[np.argsort(joined["row"], kind="stable")]


def _entries(bucket: Bucket) -> NDArray[np.void]:
    """Gather the digests of a bucket from all parts."""
    # Digests are spread evenly; in 2**64 the bounds are exact integers.
    low = (bucket.number << 64) // bucket.total
    high = ((bucket.number + 1) << 64) // bucket.total - 1
    found = []
    for index, dataset in bucket.parts:
        digests = open_digests(bucket.output, part_name(index))
        column = digests["high"]
        first = int(np.searchsorted(column, np.uint64(low), side="left"))
        last = int(np.searchsorted(column, np.uint64(high), side="right"))
        entries = np.zeros(last - first, dtype=_ENTRY)
        for field in ("high", "low", "key", "row"):
            entries[field] = digests[field][first:last]
        entries["dataset"], entries["part"] = dataset, index
        found.append(entries)
    return np.concatenate(found) if found else np.zeros(0, dtype=_ENTRY)
