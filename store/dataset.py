"""Dataset: what a directory with a manifest holds, read lazily by row, by batch, by shard."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import schema_of
from gfm.data.ragged import RaggedBatch
from gfm.data.splits import SPLITS
from gfm.data.structure import Structure
from gfm.errors import CorruptDataError, DataError
from gfm.runtime.registry import suggest
from store.integrity import check_checksums, check_sizes
from store.manifest import SIZES, SIZES_DTYPE, Manifest
from store.shards import FORMATS, Shard
from store.writer import shard_directory

__all__ = ["Dataset", "open_dataset"]

# Opened shards kept: a mapped one costs address space only, a Zarr one a few small objects a column.
_MAX_OPEN = 256


def open_dataset(path: str | Path, *, verify: bool = False) -> "Dataset":
    """Open a dataset.

    Args:
        path: Directory with a manifest.json.
        verify: Compare checksums, beside the sizes, of every file before it is first read.

    Raises:
        MissingDataError: There is no dataset there, or one of its files is missing.
        CorruptDataError: A file is not what was written.
        DataError: It was made by a newer version.

    Example:
        >>> dataset = open_dataset("out/dataset")  # doctest: +SKIP
        >>> dataset[0].energy, dataset.batch([3, 1, 2]).columns["forces"].shape  # doctest: +SKIP
    """
    return Dataset(path, verify=verify)


class Dataset:
    """A dataset on disk. Nothing but the manifest is read before it is asked for.

    It goes through pickle (as its path), and any thread may read.

    Attributes:
        path: Its directory.
        manifest: Its manifest.
        schema: Fields of the batches it gives, in the table's order: the union over its structures.
        verify: Whether checksums are compared, beside sizes, before a shard is first read.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        """Read the manifest and check that sizes.npy is whole; see `open_dataset`."""
        self.path = Path(path).resolve()
        self.verify = verify
        self.manifest = Manifest.load(self.path)
        self.schema = schema_of(self.manifest.fields)
        (check_checksums if verify else check_sizes)(self.path, [self.manifest.sizes])
        self._starts = np.cumsum([0, *(shard.structures for shard in self.manifest.shards)], dtype=np.int64)
        self._format: Any = FORMATS.get(self.manifest.format)
        self._lock = threading.Lock()
        self._opened: OrderedDict[int, Shard] = OrderedDict()

    def __getstate__(self) -> tuple[Path, bool]:
        """Travel as the path; the receiver opens it anew."""
        return self.path, self.verify

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        """Open the dataset at the path."""
        path, verify = state
        self.__init__(path, verify=verify)  # type: ignore[misc]

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Dataset {self.path}: {len(self)} structures, {manifest.atoms} atoms, {manifest.format}>"

    def __len__(self) -> int:
        """Return the number of structures."""
        return self.manifest.structures

    def __getitem__(self, index: int) -> Structure:
        """Return one structure; a negative index counts from the end."""
        row = range(len(self))[index]
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.opened(shard).take(np.array([row - self._starts[shard]]))[0]

    def __iter__(self) -> Iterator[Structure]:
        """Yield all structures, shard by shard."""
        for shard in range(self.num_shards):
            yield from self.shard(shard)

    def batch(self, ids: NDArray[np.integer] | list[int]) -> RaggedBatch:
        """Return the structures at these rows, in this order, repeats included, with all fields of `schema`.

        Raises:
            DataError: A row does not exist.
        """
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise DataError(f"{self.path}: rows are 0..{len(self) - 1}, asked for {rows.min()}..{rows.max()}")
        shard_index = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(shard_index, kind="stable")
        shards, firsts = np.unique(shard_index[order], return_index=True)
        parts = [
            self.opened(int(shard)).take(rows[group] - self._starts[shard])
            for shard, group in zip(shards, np.split(order, firsts[1:]) if len(rows) else [], strict=True)
        ]
        joined = parts[0] if len(parts) == 1 else RaggedBatch.concatenate(parts)
        if (np.diff(order) != 1).any():
            joined = joined.take(np.argsort(order))
        return joined.select(self.schema)

    def shard(self, index: int) -> RaggedBatch:
        """Return all structures of one shard, with all fields of `schema`."""
        opened = self.opened(range(self.num_shards)[index])
        return opened.read(0, len(opened)).select(self.schema)

    def opened(self, index: int) -> Shard:
        """Return one shard, opened; its files are checked first.

        Raises:
            MissingDataError: A file is missing.
            CorruptDataError: A file has another size or, with ``verify``, another checksum.
        """
        with self._lock:
            if index in self._opened:
                self._opened.move_to_end(index)
                return self._opened[index]
        shard = self.open_shard(index, verify=self.verify)
        with self._lock:
            # Threads that were as fast read the same files; the last one is kept.
            self._opened[index] = shard
            if len(self._opened) > _MAX_OPEN:
                self._opened.popitem(last=False)
        return shard

    def open_shard(self, index: int, *, verify: bool, mapped: bool = True) -> Shard:
        """Check and open one shard anew; ``mapped`` False reads through the format's own library only."""
        receipt = self.manifest.shards[index]
        (check_checksums if verify else check_sizes)(self.path, receipt.files)
        path = shard_directory(self.path, receipt.name, self.manifest.format)
        return Shard(self._format.open(path, receipt.columns, mapped=mapped), receipt, str(path))

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.manifest.shards)

    @property
    def shard_starts(self) -> NDArray[np.int64]:
        """Row pointer of the shards (num_shards + 1,)."""
        return self._starts

    @property
    def dataset_names(self) -> list[str]:
        """Names of the datasets inside; the field ``dataset`` is an index into them."""
        return [entry.name for entry in self.manifest.datasets]

    @cached_property
    def _sizes(self) -> NDArray[np.void]:
        sizes: NDArray[np.void] = np.load(self.path / SIZES, mmap_mode="r" if len(self) else None)
        if sizes.dtype != SIZES_DTYPE or sizes.shape != (len(self),):
            raise CorruptDataError(
                f"{self.path / SIZES}: {sizes.dtype} {sizes.shape} for {len(self)} structures"
            )
        return sizes

    @property
    def num_atoms(self) -> NDArray[np.int32]:
        """Atoms of every structure (n,), memory-mapped."""
        return self._sizes["num_atoms"]

    @property
    def num_edges(self) -> NDArray[np.int32]:
        """Edges of every structure at the manifest's ``edges_cutoff`` (n,), memory-mapped."""
        return self._sizes["num_edges"]

    @property
    def dataset_index(self) -> NDArray[np.uint8]:
        """Index of every structure's dataset in `dataset_names` (n,), memory-mapped."""
        return self._sizes["dataset"]

    @property
    def split(self) -> NDArray[np.uint8]:
        """Index of every structure's split in `gfm.data.splits.SPLITS` (n,), memory-mapped."""
        return self._sizes["split"]

    def split_ids(self, name: str, dataset: str | None = None) -> NDArray[np.int64]:
        """Return the rows of one split, ascending; of one dataset only if it is named.

        Raises:
            DataError: There is no such split or dataset.
        """
        if name not in SPLITS:
            raise DataError(f"no split is called {name!r}.{suggest(name, SPLITS)} Splits: {', '.join(SPLITS)}")
        chosen = self.split == SPLITS.index(name)
        if dataset is not None:
            names = self.dataset_names
            if dataset not in names:
                raise DataError(
                    f"{self.path}: no dataset is called {dataset!r}.{suggest(dataset, names)} "
                    f"Datasets: {', '.join(names)}"
                )
            chosen &= self.dataset_index == names.index(dataset)
        return np.flatnonzero(chosen).astype(np.int64)

    @property
    def references(self) -> NDArray[np.float64]:
        """Linear energy references by dataset and atomic number (D, 119), eV; zero where there is none."""
        from ase.data import atomic_numbers

        references = np.zeros((len(self.manifest.datasets), 119))
        for row, entry in zip(references, self.manifest.datasets, strict=True):
            for symbol, value in entry.reference.values.items():
                row[atomic_numbers[symbol]] = value
        return references
