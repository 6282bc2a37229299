"""Verifying a dataset as a whole: every file, every byte, and that the structures are those it was made of."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gfm.data.ragged import RaggedBatch
from gfm.errors import DataError, GfmError
from store.content import combine, content_hash
from store.dataset import Dataset
from store.integrity import check_checksums
from store.manifest import ShardReceipt
from store.writer import SHARDS

__all__ = ["verify_dataset"]


def verify_dataset(
    path: str | Path, on_shard: Callable[[ShardReceipt], None] | None = None
) -> tuple[Dataset, list[str]]:
    """Check a dataset: sizes, checksums, foreign files, and content read through the format's own library.

    Args:
        path: The dataset's directory.
        on_shard: Called after each shard.

    Returns:
        The dataset, and what is wrong with it, a sentence each; an empty list if nothing is.

    Raises:
        DataError: The manifest or sizes.npy cannot be used, so that there is nothing to compare with.
    """
    dataset = Dataset(path, verify=True)
    problems = list(_foreign_files(dataset))
    manifest = dataset.manifest
    if combine(shard.content_hash for shard in manifest.shards) != manifest.content_hash:
        problems.append("the content hash of the manifest is not the sum of its shards'")
    for index, receipt in enumerate(manifest.shards):
        try:
            check_checksums(dataset.path, receipt.files)
            problems += _content_problems(dataset, index)
        except (GfmError, OSError) as error:
            problems.append(f"shard {receipt.name}: {error}")
        if on_shard is not None:
            on_shard(receipt)
    return dataset, problems


def _foreign_files(dataset: Dataset) -> Iterator[str]:
    """Yield a sentence for each file among the shards that the manifest does not know."""
    known = {file.path for receipt in dataset.manifest.shards for file in receipt.files}
    for path in sorted((dataset.path / SHARDS).rglob("*")):
        name = path.relative_to(dataset.path).as_posix()
        if path.is_file() and name not in known:
            yield f"{name}: the manifest does not know this file; it is of another run, remove it"


def _content_problems(dataset: Dataset, index: int) -> Iterator[str]:
    """Yield a sentence for each way in which a shard's structures are not what they should be."""
    receipt = dataset.manifest.shards[index]
    rows = slice(int(dataset.shard_starts[index]), int(dataset.shard_starts[index + 1]))
    batch: RaggedBatch
    for mapped in (False, True):
        shard = dataset.open_shard(index, verify=False, mapped=mapped)
        batch = shard.read(0, len(shard))
        try:
            found = content_hash(batch, dataset.dataset_names)
        except DataError as error:
            yield f"shard {receipt.name}: {error}"
            return
        if found != receipt.content_hash:
            how = "memory-mapped" if mapped else f"read by the {dataset.manifest.format} library"
            yield f"shard {receipt.name}: content hash {found} {how}, {receipt.content_hash} was written"
    if not np.array_equal(batch.num_atoms, dataset.num_atoms[rows]):
        yield f"shard {receipt.name}: its numbers of atoms are not those of sizes.npy"
    if not np.array_equal(batch.columns["dataset"], dataset.dataset_index[rows]):
        yield f"shard {receipt.name}: its dataset indices are not those of sizes.npy"
