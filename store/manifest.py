"""manifest.json: what a dataset holds, where it lies, what it must look like; what plans an epoch.

It is written last, atomically: a directory without it is not a dataset. It carries a checksum of itself.
"""

import json
import math
from pathlib import Path
from typing import Any, Self

import google_crc32c
import numpy as np
import pydantic

from gfm.data.fields import FIELDS
from gfm.errors import CorruptDataError, DataError, MissingDataError
from store.integrity import FileReceipt, replacing

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "SIZES",
    "SIZES_DTYPE",
    "ColumnPlace",
    "DatasetEntry",
    "Manifest",
    "Reference",
    "ShardReceipt",
    "Splits",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SIZES = "sizes.npy"
# What samplers need of every structure without opening a sample; 12 bytes, aligned.
SIZES_DTYPE = np.dtype(
    [("num_atoms", "<i4"), ("num_edges", "<i4"), ("dataset", "u1"), ("split", "u1"), ("reserved", "<u2")]
)


class _Entry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Reference(_Entry):
    """Linear energy reference of one dataset, fitted on its training split.

    Attributes:
        values: Energy per atom by chemical symbol, eV.
        rank: Rank of the fit.
        num_elements: Elements in the training split; more than the rank means values are not unique.
        unseen: Symbols of elements in the dataset but not in its training split.
        residual_std: Standard deviation of what the reference leaves, eV/atom.
        count: Structures fitted.
    """

    values: dict[str, float] = {}
    rank: int = 0
    num_elements: int = 0
    unseen: list[str] = []
    residual_std: float | None = None
    count: int = 0


class DatasetEntry(_Entry):
    """One of the datasets inside: where it comes from, and what became of its records.

    Attributes:
        name: Its name; the field ``dataset`` of a structure is the index of this entry.
        theory: Level of theory of the labels.
        licence: Licence of the published data.
        doi: Where it is published.
        source: What was read.
        energy_kind: What the energy is, such as ``total`` or ``adsorption``.
        structures: Structures stored (filled in by `store.writer.commit_dataset`).
        atoms: Atoms stored (likewise).
        rejected: Refused records by reason.
        reference: Linear energy reference.
    """

    name: str
    theory: str = ""
    licence: str = ""
    doi: str = ""
    source: str = ""
    energy_kind: str = "total"
    structures: int = 0
    atoms: int = 0
    rejected: dict[str, int] = {}
    reference: Reference = Reference()


class ColumnPlace(_Entry):
    """One column of a shard.

    Attributes:
        dtype: Numpy dtype on disk, little-endian; bool is stored as uint8.
        shape: Shape.
        offset: Byte where it begins in the format's data file, where that holds it as it is in memory; the
            writer has compared it byte by byte.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None


class ShardReceipt(_Entry):
    """What one written shard holds and must look like; all that a task hands back.

    Attributes:
        name: Name, unique in the dataset.
        structures: Number of structures.
        atoms: Number of atoms.
        edges: Number of edges at the dataset's cutoff.
        bytes: Bytes of all its files.
        fields: Fields that some structure has, in the table's order.
        columns: Every column on disk, row pointer and presence included.
        files: Every file, with size and checksum.
        content_hash: Hash of the content, independent of order and format (32 hex digits).
    """

    name: str
    structures: int
    atoms: int
    edges: int
    bytes: int
    fields: list[str]
    columns: dict[str, ColumnPlace]
    files: list[FileReceipt]
    content_hash: str

    @pydantic.field_validator("fields")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in FIELDS]:
            raise ValueError(f"unknown fields {unknown}; this version knows {list(FIELDS)}")
        return names


class Splits(_Entry):
    """How structures were divided, by hash of their group.

    Attributes:
        fractions: Share asked for, by split.
        seed: Seed of the hash.
        counts: Structures by split (filled in by `store.writer.commit_dataset`).
    """

    fractions: dict[str, float] = {}
    seed: int = 0
    counts: dict[str, int] = {}


class Manifest(_Entry):
    """The whole of manifest.json.

    Attributes:
        format_version: Version of the layout on disk.
        format: Backend of the shards (``adios`` or ``zarr``).
        fields: Fields that some structure has, in the table's order.
        structures: Number of structures.
        atoms: Number of atoms.
        edges: Number of edges at ``edges_cutoff``.
        edges_cutoff: Cutoff at which edges were counted, angstrom.
        datasets: The datasets inside.
        shards: The shards, in the order of rows.
        sizes: Receipt of sizes.npy.
        splits: How structures were divided.
        statistics: Merged moments and histograms, as ingestion made them.
        provenance: Recipe and code version.
        content_hash: Sum of the shards' content hashes.
    """

    format_version: int = FORMAT_VERSION
    format: str
    fields: list[str]
    structures: int
    atoms: int
    edges: int
    edges_cutoff: float
    datasets: list[DatasetEntry]
    shards: list[ShardReceipt]
    sizes: FileReceipt
    splits: Splits
    statistics: dict[str, Any]
    provenance: dict[str, Any]
    content_hash: str

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def rejects(self) -> dict[str, int]:
        """Refused records by reason, over all datasets."""
        total: dict[str, int] = {}
        for entry in self.datasets:
            for reason, count in entry.rejected.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def save(self, directory: Path) -> None:
        """Write manifest.json atomically."""
        data = _finite(self.model_dump(mode="json"))
        data["checksum"] = _checksum(data)
        with replacing(directory / MANIFEST) as temporary:
            temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read and check manifest.json.

        Raises:
            MissingDataError: There is none: not a dataset, or its ingestion has not finished.
            CorruptDataError: It is not what was written.
            DataError: It is of a newer version, or does not fit the layout.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise MissingDataError(
                f"{directory}: no {MANIFEST} here; this is not a dataset, or its ingestion has not finished"
            )
        try:
            data = json.loads(path.read_bytes())
            version = data["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{path}: not readable as a manifest: {error!r}") from error
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version}, and this gfm reads version {FORMAT_VERSION}; "
                + ("upgrade gfm-atoms" if version > FORMAT_VERSION else "make the dataset again")
            )
        written, found = data.pop("checksum", None), None
        if written != (found := _checksum(data)):
            raise CorruptDataError(f"{path}: checksum {found}, but {written} was written; the file was changed")
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]]
            raise DataError(f"{path}: " + "; ".join(lines)) from None


def _checksum(data: dict[str, Any]) -> str:
    """Return the CRC-32C of a JSON value, independent of the order of keys and of white space."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{google_crc32c.value(text.encode()):08x}"


def _finite(value: Any) -> Any:
    """Return a JSON value with null for every NaN and infinity, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
