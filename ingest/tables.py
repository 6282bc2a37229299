"""The screening table of a part: what duplicates and outliers are found from, without opening a shard.

Outliers and duplicates are known only once every part is read. So each part leaves a few tens of bytes per
structure beside its shard: label-free facts in rows, distinct compositions once, where each structure came
from, and sorted digests of everything that makes two structures the same. They are removed at the end.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gfm.data.fields import OPTIONAL, presence_bit, schema_of
from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z
from gfm.errors import CorruptDataError
from ingest.normalise import Kept
from store.integrity import FileReceipt, receipts_of, replacing

__all__ = ["DIGESTS", "Table", "digests_of", "open_digests", "write_table"]

TABLES = "build/tables"
ROWS = np.dtype(
    [
        ("energy", "<f8"),  # eV; NaN where absent, like the three below
        ("largest_force", "<f4"),  # eV/angstrom
        ("largest_stress", "<f4"),  # eV/angstrom^3
        ("shortest_distance", "<f4"),  # angstrom; infinite above the cutoff
        ("num_atoms", "<i4"),
        ("formula", "<u4"),  # index into the distinct compositions of the part
        ("split", "u1"),
        ("reserved", "u1", (3,)),
    ]
)
DIGESTS = np.dtype([("high", "<u8"), ("low", "<u8"), ("key", "<u8"), ("row", "<u4"), ("reserved", "<u4")])
# Fields that say where a structure comes from, not what it is.
_NOT_CONTENT = ("dataset", "group", "key")


@dataclass(frozen=True)
class Table:
    """What one part keeps of its structures for screening.

    Attributes:
        rows: One row of `ROWS` for each structure (G,).
        formulas: Atoms of each atomic number in each distinct composition (C, MAX_Z + 1).
        packed_sources: Where each structure came from, packed.
    """

    rows: NDArray[np.void]
    formulas: NDArray[np.int32]
    packed_sources: bytes

    @classmethod
    def load(cls, output: Path, name: str) -> "Table":
        """Read the table of a part.

        Raises:
            CorruptDataError: It is not readable.
        """
        path = output / TABLES / f"{name}.npz"
        try:
            with np.load(path) as arrays:
                formulas = np.zeros((int(arrays["num_formulas"]), MAX_Z + 1), dtype=np.int32)
                formulas[arrays["formula"], arrays["element"]] = arrays["count"]
                return cls(arrays["rows"], formulas, arrays["sources"].tobytes())
        except (ValueError, KeyError, IndexError, OSError, zlib.error) as error:
            raise CorruptDataError(f"{path}: {error}; remove it and run the same command again") from error

    @cached_property
    def composition_digests(self) -> NDArray[np.uint64]:
        """XXH3-64 of each distinct composition (C,): the same in every part."""
        rows = [row.tobytes() for row in self.formulas]
        return np.array([xxhash.xxh3_64_intdigest(row) for row in rows], dtype=np.uint64)

    @cached_property
    def sources(self) -> list[str]:
        """Where each structure came from (G)."""
        return zlib.decompress(self.packed_sources).decode().split("\n")


def write_table(output: Path, name: str, kept: Kept, split: NDArray[np.uint8]) -> list[FileReceipt]:
    """Write the table of a part and return the receipts of its files.

    Args:
        output: The dataset's directory.
        name: Name of the part.
        kept: Its structures (G).
        split: Split of each (G,).
    """
    batch = kept.batch
    rows = np.zeros(len(batch), dtype=ROWS)
    rows["energy"] = np.where(batch.has("energy"), batch.columns.get("energy", np.nan), np.nan)
    rows["largest_force"], rows["largest_stress"] = kept.largest_force, kept.largest_stress
    rows["shortest_distance"], rows["num_atoms"], rows["split"] = kept.shortest, batch.num_atoms, split
    formulas, rows["formula"] = _distinct_compositions(batch)
    formula, element = np.nonzero(formulas)
    folder = output / TABLES
    folder.mkdir(parents=True, exist_ok=True)
    table, digests = folder / f"{name}.npz", folder / f"{name}.digests.npy"
    packed = zlib.compress("\n".join(source.replace("\n", " ") for source in kept.sources).encode(), 1)
    with replacing(table, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(
            file, rows=rows, num_formulas=len(formulas), formula=formula.astype(np.uint32),
            element=element.astype(np.uint8), count=formulas[formula, element],
            sources=np.frombuffer(packed, dtype=np.uint8),
        )  # fmt: skip
    with replacing(digests, durable=False) as temporary, temporary.open("wb") as file:
        np.save(file, digests_of(batch))
    return receipts_of(output, table, digests)


def open_digests(output: Path, name: str) -> NDArray[np.void]:
    """Return the sorted digests of a part (G,), memory-mapped."""
    digests: NDArray[np.void] = np.load(output / TABLES / f"{name}.digests.npy", mmap_mode="r")
    return digests


def digests_of(batch: RaggedBatch) -> NDArray[np.void]:
    """Return one entry of `DIGESTS` for each structure (G,), sorted by digest.

    The digest is XXH3-128 over the packed record of the fields that a structure has, without those that say
    where it comes from; -0.0 counts as 0.0. Equal digests mean equal geometry and labels, to the last bit.

    Source: XXH3, https://github.com/Cyan4973/xxHash.
    """
    digests = np.zeros(len(batch), dtype=DIGESTS)
    columns: dict[str, NDArray[Any]] = {
        # Adding zero turns -0.0 into 0.0 and changes nothing else.
        name: column + column.dtype.type(0) if column.dtype.kind == "f" else column
        for name, column in batch.columns.items()
        if name not in _NOT_CONTENT
    }
    columns |= {name: np.zeros_like(batch.columns[name]) for name in _NOT_CONTENT}
    bare = RaggedBatch(columns, batch.offsets, batch.present)
    for mask in np.unique(batch.present).tolist():
        rows = np.flatnonzero(batch.present == mask)
        schema = schema_of(name for name in OPTIONAL if mask & presence_bit(name))
        same = bare if len(rows) == len(batch) else bare.take(rows)
        records, starts = same.pack(schema)
        view = records.data
        hashes = b"".join(
            xxhash.xxh3_128_digest(view[first:last], seed=mask) for first, last in pairwise(starts.tolist())
        )
        words = np.frombuffer(hashes, dtype=">u8").reshape(-1, 2)
        digests["high"][rows], digests["low"][rows] = words[:, 0], words[:, 1]
    digests["key"], digests["row"] = batch.columns["key"], np.arange(len(batch))
    return digests[np.lexsort((digests["low"], digests["high"]))]


def _distinct_compositions(batch: RaggedBatch) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the distinct compositions (C, MAX_Z + 1) and which one each structure has (G,)."""
    rows = np.repeat(np.arange(len(batch)), batch.num_atoms)
    counts = np.zeros((len(batch), MAX_Z + 1), dtype=np.int32)
    np.add.at(counts, (rows, batch.columns["numbers"]), 1)
    # Rows as single values of raw bytes: unique over them sorts once, not column by column.
    whole = counts.view(np.dtype((np.void, counts.dtype.itemsize * counts.shape[1]))).reshape(-1)
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    return counts[first], which.reshape(-1)
