"""Writing a dataset: any number of tasks write one whole shard each, then one process commits them.

Nothing is visible half-made: files get a temporary name, are flushed, then renamed; the manifest comes last.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.fields import FIELDS, schema_of
from gfm.data.ragged import RaggedBatch
from gfm.data.splits import SPLITS
from gfm.errors import DataError
from store.content import combine, content_hash
from store.integrity import check_checksums, check_sizes, receipts_of, replacing, sweep
from store.manifest import (
    SIZES,
    SIZES_DTYPE,
    ColumnPlace,
    DatasetEntry,
    Manifest,
    ShardReceipt,
    Splits,
)
from store.shards import FORMATS, columns_of

__all__ = ["commit_dataset", "write_shard"]

SHARDS = "shards"


def write_shard(
    directory: str | Path,
    name: str,
    batch: RaggedBatch,
    *,
    num_edges: NDArray[np.integer],
    split: NDArray[np.integer],
    dataset_names: Sequence[str],
    format: str,
    durable: bool = True,
) -> ShardReceipt:
    """Write one whole shard; a shard of the same name is replaced.

    Args:
        directory: The dataset's directory; made if it is not there.
        name: Name of the shard: letters, digits, ``.``, ``_``, ``-``.
        batch: Its structures.
        num_edges: Edges of each structure at the dataset's cutoff (G,).
        split: Index of each structure's split in `SPLITS` (G,).
        dataset_names: What the field ``dataset`` is an index into.
        format: ``adios`` or ``zarr``.
        durable: Whether it must outlive a power cut; a shard for the time being need not.

    Returns:
        The receipt `commit_dataset` asks for; small, and goes through JSON.

    Raises:
        DataError: An argument does not fit the batch.
        ConfigError: There is no such format.
    """
    directory = Path(directory)
    sizes = _sizes(name, batch, num_edges, split)
    backend = FORMATS.get(format)
    digest = content_hash(batch, dataset_names)
    columns = columns_of(batch)
    (directory / SHARDS).mkdir(parents=True, exist_ok=True)
    sizes_path, shard_path = sizes_file(directory, name), shard_directory(directory, name, format)
    with replacing(sizes_path, durable=durable) as temporary, temporary.open("wb") as file:
        np.save(file, sizes)
    with replacing(shard_path, durable=durable) as temporary:
        offsets = backend.write(temporary, columns)
        # Receipts are of what was just written, not of what later lies under the final name.
        files = receipts_of(temporary, temporary)
    place = shard_path.relative_to(directory).as_posix()
    files = [file.model_copy(update={"path": f"{place}/{file.path}"}) for file in files]
    files += receipts_of(directory, sizes_path)
    return ShardReceipt(
        name=name,
        structures=len(batch),
        atoms=int(batch.offsets[-1]),
        edges=int(sizes["num_edges"].sum(dtype=np.int64)),
        bytes=sum(file.bytes for file in files),
        fields=[field for field in FIELDS if field in columns],
        columns={
            key: ColumnPlace(dtype=column.dtype.name, shape=column.shape, offset=offsets.get(key))
            for key, column in columns.items()
        },
        files=files,
        content_hash=digest,
    )


def commit_dataset(
    directory: str | Path,
    receipts: Sequence[ShardReceipt],
    *,
    format: str,
    datasets: Sequence[DatasetEntry],
    edges_cutoff: float,
    splits: Splits,
    statistics: dict[str, Any],
    provenance: dict[str, Any],
) -> Manifest:
    """Make a dataset of written shards: sizes.npy, then manifest.json. Call once no task writes any more.

    Counts of structures and atoms in ``datasets`` and ``splits`` are filled in from the shards.

    Args:
        directory: The dataset's directory.
        receipts: Of the shards, in the order of rows.
        format: Format of the shards.
        datasets: What the field ``dataset`` is an index into.
        edges_cutoff: Cutoff at which edges were counted, angstrom.
        splits: How structures were divided.
        statistics: Merged statistics (a JSON value).
        provenance: Recipe and code version (a JSON value).

    Returns:
        The manifest written.

    Raises:
        DataError: A shard is missing or not what its receipt says, or counts given contradict the shards.
    """
    directory = Path(directory)
    names = [receipt.name for receipt in receipts]
    if len(set(names)) < len(names):
        raise DataError(f"{directory}: two receipts for the same shard: {sorted(names)}")
    for receipt in receipts:
        check_sizes(directory, receipt.files)
    counts = np.zeros((len(datasets), 2), dtype=np.int64)
    split_counts = np.zeros(len(SPLITS), dtype=np.int64)
    structures = sum(receipt.structures for receipt in receipts)
    with replacing(directory / SIZES) as temporary, temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(SIZES_DTYPE), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (structures,)})
        for receipt in receipts:
            path = sizes_file(directory, receipt.name)
            check_checksums(directory, [file_ for file_ in receipt.files if directory / file_.path == path])
            sizes = np.load(path)
            if len(sizes) and sizes["dataset"].max() >= len(datasets):
                raise DataError(f"{path}: dataset index {sizes['dataset'].max()} of {len(datasets)} datasets")
            np.add.at(counts[:, 0], sizes["dataset"], 1)
            np.add.at(counts[:, 1], sizes["dataset"], sizes["num_atoms"])
            split_counts += np.bincount(sizes["split"], minlength=len(SPLITS))
            file.write(sizes.tobytes())
        entries = [_counted(entry, *map(int, row)) for entry, row in zip(datasets, counts, strict=True)]
    manifest = Manifest(
        format=format,
        fields=list(schema_of(name for receipt in receipts for name in receipt.fields)),
        structures=structures,
        atoms=sum(receipt.atoms for receipt in receipts),
        edges=sum(receipt.edges for receipt in receipts),
        edges_cutoff=edges_cutoff,
        datasets=entries,
        shards=list(receipts),
        sizes=receipts_of(directory, directory / SIZES)[0],
        splits=splits.model_copy(update={"counts": dict(zip(SPLITS, map(int, split_counts), strict=True))}),
        statistics=statistics,
        provenance=provenance,
        content_hash=combine(receipt.content_hash for receipt in receipts),
    )
    manifest.save(directory)
    sweep(directory)
    sweep(directory / SHARDS)
    return manifest


def shard_directory(directory: Path, name: str, format: str) -> Path:
    """Return where a shard's columns lie."""
    return directory / SHARDS / f"{name}{FORMATS.get(format).suffix}"


def sizes_file(directory: Path, name: str) -> Path:
    """Return where a shard's part of sizes.npy lies."""
    return directory / SHARDS / f"{name}.sizes.npy"


def _sizes(
    name: str, batch: RaggedBatch, num_edges: NDArray[np.integer], split: NDArray[np.integer]
) -> NDArray[np.void]:
    """Check the arguments of `write_shard` and return the shard's rows of sizes.npy."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(f"shard name {name!r}: letters, digits, '.', '_' and '-' only")
    for label, values in (("num_edges", num_edges), ("split", split)):
        if values.shape != (len(batch),):
            raise DataError(f"shard {name}: {label} has shape {values.shape}, expected ({len(batch)},)")
    if len(batch) and (split.min() < 0 or split.max() >= len(SPLITS)):
        raise DataError(f"shard {name}: split is an index into {SPLITS}, got {split.min()}..{split.max()}")
    if len(batch) and (num_edges.min() < 0 or num_edges.max() > np.iinfo(np.int32).max):
        raise DataError(f"shard {name}: num_edges must fit int32, got {num_edges.min()}..{num_edges.max()}")
    sizes = np.zeros(len(batch), dtype=SIZES_DTYPE)
    sizes["num_atoms"] = batch.num_atoms
    sizes["num_edges"] = num_edges
    sizes["dataset"] = batch.columns["dataset"]
    sizes["split"] = split
    return sizes


def _counted(entry: DatasetEntry, structures: int, atoms: int) -> DatasetEntry:
    """Fill in what the shards hold of one dataset."""
    if (entry.structures or structures, entry.atoms or atoms) != (structures, atoms):
        raise DataError(
            f"dataset {entry.name}: {entry.structures} structures and {entry.atoms} atoms were announced, "
            f"but the shards hold {structures} and {atoms}"
        )
    return entry.model_copy(update={"structures": structures, "atoms": atoms})
