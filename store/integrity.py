"""Files that are whole or not there, and can be checked: sizes, crc32c checksums, atomic replacement.

ADIOS reads flipped bits silently and hangs on truncated data; Zarr fills a missing chunk with zeros. So what
was written is written down here, and compared before a backend opens anything.
"""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import pydantic

from gfm.errors import CorruptDataError, MissingDataError

__all__ = [
    "FileReceipt",
    "check_checksums",
    "check_sizes",
    "checksum_of",
    "receipts_of",
    "replacing",
    "sweep",
]

_TEMPORARY = ".tmp"
_BLOCK = 4 << 20


class FileReceipt(pydantic.BaseModel):
    """What one file must look like.

    Attributes:
        path: Path relative to the dataset's directory, with forward slashes.
        bytes: Size.
        crc32c: CRC-32C of the content, 8 hex digits.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    crc32c: str


def checksum_of(path: Path) -> str:
    """Return the CRC-32C of a file's content as 8 hex digits."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = google_crc32c.extend(checksum, block)
    return f"{checksum:08x}"


def receipts_of(root: Path, *tops: Path) -> list[FileReceipt]:
    """Return receipts of files, and of all files below directories, sorted by path.

    Args:
        root: What the paths in the receipts are relative to.
        *tops: Files or directories below ``root``.
    """
    files = [file for top in tops for file in ([top] if top.is_file() else _files_below(top))]
    receipts = [
        FileReceipt(path=file.relative_to(root).as_posix(), bytes=file.stat().st_size, crc32c=checksum_of(file))
        for file in files
    ]
    return sorted(receipts, key=lambda receipt: receipt.path)


def check_sizes(root: Path, files: Iterable[FileReceipt]) -> None:
    """Check that every file is there with the size that was written down.

    Raises:
        MissingDataError: A file is not there.
        CorruptDataError: A file has another size.
    """
    for file in files:
        path = root / file.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise MissingDataError(
                f"{path}: this file is missing; restore it from a copy, or make the dataset again"
            ) from None
        if size != file.bytes:
            raise CorruptDataError(
                f"{path}: {size} bytes, but {file.bytes} were written; it was cut off or changed. "
                "Restore it from a copy, or make the dataset again"
            )


def check_checksums(root: Path, files: Iterable[FileReceipt]) -> None:
    """Check that every file still has the content that was written.

    Raises:
        MissingDataError: A file is not there.
        CorruptDataError: A file has another size or checksum.
    """
    files = list(files)
    check_sizes(root, files)
    for file in files:
        found = checksum_of(root / file.path)
        if found != file.crc32c:
            raise CorruptDataError(
                f"{root / file.path}: crc32c {found}, but {file.crc32c} was written; its bytes changed. "
                "Restore it from a copy, or make the dataset again"
            )


@contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; when the block ends well, make it durable and rename it.

    The block makes a file or a directory at the path. A reader sees the old state or the new, never a part; a
    failing block leaves nothing, a killed one a name ending in ``.tmp`` that `sweep` removes.

    Args:
        target: What is replaced.
        durable: Whether it outlives a power cut; without, its content must be checked before it is used.
    """
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        _rename(temporary, target)
        if durable:
            _sync_one(target.parent)
    finally:
        _remove(temporary)


def sweep(directory: Path) -> None:
    """Remove what killed writers left in a directory."""
    for leftover in directory.glob(f"*{_TEMPORARY}"):
        _remove(leftover)


def _rename(temporary: Path, target: Path) -> None:
    """Rename over what is there; a directory is moved aside first, since rename does not replace it."""
    if not target.is_dir():
        temporary.replace(target)
        return
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{_TEMPORARY}")
    target.rename(aside)
    temporary.rename(target)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or a directory with all below it, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
