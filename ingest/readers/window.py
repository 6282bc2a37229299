"""A stretch of a stream's text in memory: grows at its end, is given up at its begin, hands out lines.

What was unpacked before a stream breaks off stays readable; the error comes when more is asked for.
"""

import gzip
import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import cast

from gfm.errors import CorruptDataError, DataError, MissingDataError
from ingest.readers.base import find_files
from ingest.readers.scan import MAX_LINE

__all__ = ["STREAM_ERRORS", "ZIP_ERRORS", "Window", "damaged", "find_text", "is_packed", "open_text"]

# Errors that unpacking a damaged or shortened file ends in.
STREAM_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
# Errors that the directory of a damaged zip ends in.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)
_PACKED = (".xz", ".gz", ".zip")
_STRETCH = 1 << 19  # bytes read at a time: some hundred frames
_PIECE = 1 << 13  # bytes unpacked at a time: so many may be lost in front of a damaged place
_ARCHIVES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.zst")
_TAR_MAGIC = slice(257, 262)  # "ustar"


def find_text(path: str, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Return the files at a path, as `find_files` does.

    Raises:
        MissingDataError: There are none; where archives lie instead, the text says so.
        DataError: One is a tar archive.
    """
    try:
        files = find_files(path, suffixes, what)
    except MissingDataError as error:
        place = Path(path)
        archives = sorted(file.name for file in place.iterdir() if _is_archive(file)) if place.is_dir() else []
        if not archives:
            raise
        raise MissingDataError(f"{error}; {archives[0]} is an archive: unpack it first (tar -xf)") from None
    for file in files:
        if _is_archive(file):
            raise DataError(
                f"{file}: an archive, expected {what}: unpack it first (tar -xf) and give the folder"
            )
    return files


def _is_archive(file: Path) -> bool:
    return file.name.lower().endswith(_ARCHIVES)


def is_packed(path: Path) -> bool:
    """Say whether a file is packed (.xz, .gz, .zip), by what its first bytes say."""
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\xfd7zXZ", b"\x1f\x8b", b"PK\x03\x04"))


def open_text(path: Path, member: str | None = None) -> io.BufferedIOBase:
    """Open a file that is plain or packed (.xz, .gz, .zip), by what its first bytes say.

    Raises:
        CorruptDataError: It is a zip that cannot be opened, or is packed by its name and not by its bytes.
    """
    with path.open("rb") as stream:
        magic = stream.read(6)
    if magic.startswith(b"PK\x03\x04") or member is not None:
        try:
            archive = zipfile.ZipFile(path)
            return cast("io.BufferedIOBase", archive.open(member or archive.namelist()[0]))
        except ZIP_ERRORS as error:
            raise CorruptDataError(f"{path}: not readable as zip: {error}") from error
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(path)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(path)
    if path.suffix.lower() in _PACKED:
        raise CorruptDataError(f"{path}: begins with {magic!r}, which is not how {path.suffix} files begin")
    return path.open("rb")


def damaged(error: Exception) -> CorruptDataError:
    """Return what is said of a stream that broke off with an error other than being cut short."""
    return CorruptDataError(
        f"damaged ({type(error).__name__}: {error}); what it seems to hold cannot be trusted, the text before "
        "that place included"
    )


class Window:
    """The text of a stream from some byte on, as far as it was read.

    Attributes:
        data: The bytes in memory.
        at: Where in them the reader is; what lies before is given up when more is read.
        whole: Whether the text ends where ``data`` does.
    """

    def __init__(self, stream: io.BufferedIOBase, start: int) -> None:
        """Take a stream that is open at byte ``start``."""
        self.data = b""
        self.at = 0
        self.whole = False
        self._stream = stream
        self._before = start  # bytes of the text before ``data``
        self._error: EOFError | None = None

    @property
    def offset(self) -> int:
        """Byte of the text at which the reader is."""
        return self._before + self.at

    @property
    def is_archive(self) -> bool:
        """Whether these are the first bytes of a tar archive instead of text."""
        return self.offset == 0 and self.data[_TAR_MAGIC] == b"ustar"

    def more(self) -> None:
        """Read on, by at least as much as there is: a long frame is not looked at too often.

        Raises:
            EOFError: A packed stream was cut off; nothing more can be read.
            CorruptDataError: It is damaged. That comes out behind the damage, where sums do not fit or nothing
                makes sense any more: numbers that were read before may be wrong.
        """
        if self._error is not None:
            raise self._error
        pieces = [self.data[self.at :]]
        wanted = max(_STRETCH, len(pieces[0]))
        while wanted > 0:
            try:
                # A packed stream loses what it had unpacked in a call that fails, so calls ask for little.
                piece = self._stream.read1(_PIECE)
            except EOFError as error:
                self._error = error
                break
            except STREAM_ERRORS as error:
                raise damaged(error) from error
            if not piece:
                self.whole = True
                break
            pieces.append(piece)
            wanted -= len(piece)
        self._before += self.at
        self.at = 0
        self.data = b"".join(pieces)
        if self._error is not None and len(pieces) == 1:
            raise self._error

    def peek(self) -> bytes:
        """Return the next line with its end, or nothing behind the last; a very long one breaks off."""
        begin = self.at
        end = self.data.find(b"\n", begin, begin + MAX_LINE)
        while end < 0 and len(self.data) - begin < MAX_LINE and not self.whole:
            self.more()
            begin = self.at
            end = self.data.find(b"\n", begin, begin + MAX_LINE)
        return self.data[begin : begin + MAX_LINE if end < 0 else end + 1]

    def line(self) -> bytes:
        """Return the next line and go behind it."""
        line = self.peek()
        self.at += len(line)
        return line
