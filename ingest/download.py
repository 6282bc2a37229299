"""Published archives: brought once, checked, and only then called by their names; tar files unpacked safely.

Beside a finished file lies ``NAME.receipt``, by which it is known again without reading it. A file with
another checksum than the published one is kept as ``NAME.bad`` until it is downloaded again.
"""

import contextlib
import fcntl
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pydantic

from gfm.errors import CorruptDataError, ResourceError
from ingest.archives import RemoteFile, folder_of
from ingest.disk import check_space
from ingest.transfer import Listener, Network, RefusedByServer, Transfer, hash_of, note_of, part_of
from store.integrity import replacing

__all__ = ["Receipt", "alone_in", "download", "remaining", "unpack"]


class Receipt(pydantic.BaseModel):
    """What a finished file was when it was checked."""

    model_config = pydantic.ConfigDict(frozen=True)

    bytes: int
    md5: str
    url: str


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; the system drops it with the process, however that ends.

    Raises:
        ResourceError: Another process downloads into it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".download.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"another gfm download is writing to {directory}; wait for it, or give another directory"
            ) from None
        yield


def remaining(file: RemoteFile, directory: Path, *, unpacked: bool) -> int:
    """Return about how many bytes of disk a file will still take, unpacked as well if that is asked for."""
    target = directory / file.name
    part = part_of(target)
    needed = 0 if target.exists() else file.nbytes - (part.stat().st_size if part.exists() else 0)
    if unpacked and folder_of(target) != target and not folder_of(target).exists():
        needed += file.unpacked or file.nbytes
    return needed


def download(
    file: RemoteFile,
    directory: Path,
    network: Network | None = None,
    listener: Listener | None = None,
    *,
    verify: bool = False,
) -> Path:
    """Bring one file into a directory, or find it there; go on where an earlier call broke off.

    Args:
        file: What to bring.
        directory: An existing directory that nobody else writes to (`alone_in`).
        network: How patient to be.
        listener: Who is told.
        verify: Whether a finished file is read again; by default its size and its receipt count.

    Raises:
        CorruptDataError: It has another checksum than the published one; it is kept as ``NAME.bad``.
        DataError: No server gives the file: wrong status, wrong size, a web page; the text says what to do.
        ResourceError: There is no room on the disk, or the servers cannot be reached.
    """
    network, listener = network or Network(), listener or Listener()
    target = directory / file.name
    if target.exists():
        _check_finished(file, target, listener, verify=verify)
        return target
    check_space(directory, remaining(file, directory, unpacked=False))
    for place, url in enumerate(file.urls, 1):
        try:
            _settle(file, part_of(target), target, Transfer(file, url, target, network, listener).run(), url)
        except RefusedByServer as refused:
            if place == len(file.urls):
                raise
            listener.said(f"{refused}\nTrying {file.urls[place]}")
        else:
            break
    return target


def _check_finished(file: RemoteFile, target: Path, listener: Listener, *, verify: bool) -> None:
    """Check a file that is there: by its receipt, or by its content where there is none or it is asked for.

    Raises:
        CorruptDataError: It is not the published one.
    """
    size = target.stat().st_size
    try:
        receipt: Receipt | None = Receipt.model_validate_json(_receipt_of(target).read_bytes())
    except (FileNotFoundError, pydantic.ValidationError):
        receipt = None
    if not verify and receipt is not None and receipt.md5 in file.md5 and receipt.bytes == size:
        listener.said(f"{target} is there already")
        return
    listener.said(f"{target} is there already; computing its checksum")
    _settle(file, target, target, hash_of(target, file.name, size, listener).hexdigest(), file.urls[0])


def _settle(file: RemoteFile, found: Path, target: Path, md5: str, url: str) -> None:
    """Give a complete file its name and a receipt, if its checksum is right.

    Raises:
        CorruptDataError: It is not; the file is kept aside.
    """
    size = found.stat().st_size
    if md5 not in file.md5:
        bad = target.with_name(f"{target.name}.bad")
        found.replace(bad)
        note_of(target).unlink(missing_ok=True)
        _receipt_of(target).unlink(missing_ok=True)
        raise CorruptDataError(
            f"{target}: {size:,} bytes with md5 {md5}, expected {' or '.join(file.md5)}; kept as {bad.name}. "
            "The same command downloads it anew; if that gives the same checksum again, the publisher has "
            "replaced the file"
        )
    descriptor = os.open(found, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    found.replace(target)
    note_of(target).unlink(missing_ok=True)
    target.with_name(f"{target.name}.bad").unlink(missing_ok=True)
    # The receipt comes last, and takes the directory's entries to the disk with it.
    with replacing(_receipt_of(target)) as temporary:
        temporary.write_text(Receipt(bytes=size, md5=md5, url=url).model_dump_json() + "\n")


def unpack(file: RemoteFile, packed: Path, listener: Listener | None = None) -> Path:
    """Unpack a tar file beside itself into a folder of its name, whole or not at all; once.

    Raises:
        CorruptDataError: It is damaged, or an entry would lie outside of the folder or be no plain file.
        ResourceError: There is no room on the disk.
    """
    listener = listener or Listener()
    folder = folder_of(packed)
    if folder == packed or folder.exists():
        return folder
    check_space(packed.parent, file.unpacked or packed.stat().st_size)
    name = f"{file.name}, unpacking"
    listener.begun(name, 0, packed.stat().st_size)
    try:
        with replacing(folder) as temporary, packed.open("rb") as stream:
            temporary.mkdir()
            # As a stream: the archive is read once, and never as a whole.
            with tarfile.open(fileobj=_Counted(stream, name, listener), mode="r|*") as archive:  # type: ignore[call-overload]
                archive.extractall(temporary, filter=_only_files)
    except tarfile.FilterError as error:
        raise CorruptDataError(
            f"{packed}: an entry is not safe to unpack: {error}; nothing was unpacked"
        ) from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise CorruptDataError(
            f"{packed}: not readable as a tar file: {error}; check it with gfm download --verify"
        ) from error
    return folder


def _only_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Let files and folders inside of the target pass; the published archives have nothing else."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


class _Counted:
    """A file that tells how far it has been read."""

    def __init__(self, stream: IO[bytes], name: str, listener: Listener) -> None:
        self.stream, self.name, self.listener = stream, name, listener

    def read(self, size: int) -> bytes:
        """Read on."""
        block = self.stream.read(size)
        self.listener.advanced(self.name, self.stream.tell())
        return block


def _receipt_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.receipt")
