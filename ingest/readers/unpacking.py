"""Archives that hold one HDF5 file: xz, tar, or a tar inside of xz, told by their first bytes.

They are read as a stream: memory is that of the xz dictionary and one block. The name that something has in an
archive is never a place to write to.
"""

import lzma
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

from gfm.errors import CorruptDataError, DataError, ResourceError, from_system
from gfm.runtime.quantities import byte_count
from store.integrity import replacing

__all__ = ["is_packed", "is_tar", "unpack_hdf5"]

_XZ = b"\xfd7zXZ\x00"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_BLOCK = 1 << 20


def is_packed(file: Path) -> bool:
    """Say whether a file is xz or a tar, by its first bytes."""
    with file.open("rb") as stream:
        return _is_packed(stream.read(512))


def is_tar(file: Path) -> bool:
    """Say whether a file is a tar that is not packed further."""
    with file.open("rb") as stream:
        return _is_tar(stream.read(512))


def unpack_hdf5(archive: Path, target: Path) -> None:
    """Write the HDF5 file that an archive holds; it is there whole, on the disk, or not at all.

    Raises:
        CorruptDataError: The archive is cut short, or its check sums do not fit.
        DataError: It holds no HDF5 file, or several.
        ResourceError: The disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as temporary, temporary.open("wb") as output, archive.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if not head.startswith(_XZ):
                _write(archive, file, head, output)
                return
            with lzma.LZMAFile(file) as stream:
                head = stream.read(512)
                stream.seek(0)
                _write(archive, cast("BinaryIO", stream), head, output)
                while stream.read(_BLOCK):  # what lies behind is checked too: the sums come last
                    pass
    except (EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise CorruptDataError(
            f"{archive}: the archive is damaged or cut short ({error}; {byte_count(archive.stat().st_size)}). "
            "Compare its size and md5 with the published ones, download it again and run the same command again"
        ) from error
    except OSError as error:
        if isinstance(error, DataError):
            raise
        known = from_system(error)
        if isinstance(known, ResourceError):
            free = byte_count(shutil.disk_usage(target.parent).free)
            raise ResourceError(
                f"{target.parent}: no room to unpack {archive} ({known}; {free} left). The unpacked file may "
                "be ten times as large; make room, or choose another folder, and run the same command again"
            ) from error
        raise known or error from error


def _write(archive: Path, stream: BinaryIO, head: bytes, output: BinaryIO) -> None:
    """Copy the HDF5 file that a stream is, or that is the only one in the tar it is.

    Args:
        archive: What the stream is of, for errors.
        stream: Open at its beginning; a tar is read to its end.
        head: Its first 512 bytes.
        output: Where to.

    Raises:
        DataError: There is none, or there are several.
    """
    if head.startswith(_HDF5):
        shutil.copyfileobj(stream, output, _BLOCK)
        return
    if not _is_tar(head):
        raise DataError(f"{archive}: holds neither an HDF5 file nor a tar, but {head[:8]!r}...")
    taken = ""
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as tar:
        for member in tar:
            # Holes cost no bytes in an archive; unpacked they could fill any disk.
            content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None or (begin := content.read(len(_HDF5))) != _HDF5:
                continue
            if taken:
                raise DataError(
                    f"{archive}: holds several HDF5 files ({taken}, {member.name}); unpack it by hand into a "
                    "folder of its own and name that folder as the path"
                )
            taken = member.name
            output.write(begin)
            shutil.copyfileobj(content, output, _BLOCK)
            if output.tell() != member.size:
                raise EOFError(f"{member.name} ends after {output.tell()} of {member.size} bytes")
    if not taken:
        raise DataError(f"{archive}: no HDF5 file in this tar")


def _is_packed(head: bytes) -> bool:
    return head.startswith(_XZ) or _is_tar(head)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"
