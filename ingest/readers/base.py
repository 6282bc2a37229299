"""What every reader is: a plan of fixed parts, then each part as blocks of structures and refused records.

A reader turns one published layout into structures in eV and angstrom. It refuses, with a reason, what cannot
be a labelled structure (no label, NaN, wrong shapes, damaged bytes); whether a sound record is wanted (its
largest force, its shortest distance) is decided later. Every record of a file ends up in a block or among its
rejects.
"""

import glob
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import xxhash

from gfm.data.ragged import RaggedBatch
from gfm.errors import CorruptDataError, MissingDataError
from gfm.runtime.config import Config

if TYPE_CHECKING:
    import h5py

__all__ = [
    "BLOCK_STRUCTURES",
    "HDF5_ERRORS",
    "Block",
    "Part",
    "Published",
    "Reader",
    "Reject",
    "find_files",
    "hash_id",
    "open_hdf5",
]

BLOCK_STRUCTURES = 1000  # a block is handed out at this many: what bounds a reader's memory
# What h5py raises when the bytes of a file are not what they should be; it has no error of its own.
HDF5_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    AttributeError,
)


@dataclass(frozen=True)
class Part:
    """One fixed unit of work: a stretch of one file; picklable and JSON-able.

    Attributes:
        reader: Name of the reader that made it.
        path: The file.
        start: First unit of the stretch; what a unit is (row, byte, record) is the reader's business.
        stop: One past the last unit.
        nbytes: Bytes it stands for, by which work is balanced.
        label: What people are shown: file name and stretch.
        extra: Whatever else the reader needs to find it again.
    """

    reader: str
    path: str
    start: int
    stop: int
    nbytes: int
    label: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """One record that was refused: where it is, why (a short slug), and the offending value as text."""

    source: str
    reason: str
    value: str


@dataclass
class Block:
    """Some structures of a part, where each came from, and what was refused on the way."""

    batch: RaggedBatch
    sources: list[str]
    rejects: list[Reject]


def open_hdf5(path: str) -> "h5py.File":
    """Open an HDF5 file for reading.

    Raises:
        CorruptDataError: The file cannot be opened.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise CorruptDataError(f"{path}: not readable as HDF5: {error}") from error


@dataclass(frozen=True)
class Published:
    """Where data come from.

    Attributes:
        theory: Level of theory of the labels.
        licence: Licence of the published data.
        doi: Where they are published.
        energy_kind: What the energy is: ``total``, ``adsorption``, ``total, corrected`` and the like.
    """

    theory: str = ""
    licence: str = ""
    doi: str = ""
    energy_kind: str = "total"


class Reader(Config):
    """Base of all readers; its fields are the options of one source in a recipe.

    Attributes:
        NAME: Its name in the registry.
        UNITS: For each source key: unit, sign and kind of what the file holds.
        FIELDS: Optional fields of a structure that it delivers.
    """

    NAME: ClassVar[str]
    UNITS: ClassVar[dict[str, str]]
    FIELDS: ClassVar[tuple[str, ...]]

    @abstractmethod
    def about(self) -> Published:
        """Return what the manifest says of the published data; a recipe may know better."""

    @abstractmethod
    def plan(self, path: str, part_bytes: int) -> list[Part]:
        """Cut what is at a path (file, folder, glob) into parts of about that many bytes, always the same.

        Raises:
            MissingDataError: There is nothing at the path.
            DataError: What is there is another layout.
        """

    def packed(self, path: str) -> list[Path]:
        """Return the files at a path that must be unpacked before parts can be planned: mostly none."""
        return []

    def unpacking_to(self, scratch: Path) -> Self:
        """Return the reader that unpacks into a folder and finds unpacked files there."""
        return self

    def unpack(self, file: Path) -> None:
        """Unpack one of `packed` into the folder, whole or not at all; nothing to do where it is there already.

        Raises:
            CorruptDataError: It is damaged.
            ResourceError: The disk is full.
        """
        raise NotImplementedError(f"{self.NAME} has no packed files")

    @abstractmethod
    def blocks(self, part: Part) -> Iterator[Block]:
        """Read one part; called by `read`."""

    def read(self, part: Part) -> Iterator[Block]:
        """Yield the part's blocks, of about `BLOCK_STRUCTURES` structures.

        Raises:
            CorruptDataError: The file is unreadable as a whole; the text names it and what is wrong.
            DataError: The file is another layout than the part was planned for.
        """
        if "unreadable" in part.extra:
            raise CorruptDataError(part.extra["unreadable"])
        yield from self.blocks(part)

    def unreadable(self, path: Path, why: str) -> Part:
        """Return the part that stands for a file which cannot even be opened; reading it raises ``why``."""
        size = path.stat().st_size
        return Part(
            self.NAME, str(path), 0, 0, size, f"{path.name} (unreadable)", {"unreadable": f"{path}: {why}"}
        )


def hash_id(text: str) -> int:
    """Return the 64-bit id of a source id or group name; the same in every run and on every machine."""
    return xxhash.xxh3_64_intdigest(text.encode())


def _natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which ``2.xz`` comes before ``10.xz``."""
    return [
        (0, int(word), "") if word.isdecimal() else (1, 0, word) for word in re.split(r"(\d+)", text) if word
    ]


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Return the files at a path (a file, a folder or a glob), in natural order.

    In a folder those that end with one of the suffixes count; where it holds none itself, those in all folders
    below it do.

    Raises:
        MissingDataError: There are none; the text says what was looked for.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [file for file in place.iterdir() if file.name.endswith(suffixes) and file.is_file()]
        if not found:
            found = [file for file in place.rglob("*") if file.name.endswith(suffixes) and file.is_file()]
        if not found:
            raise MissingDataError(f"{path}: no {what} in this folder (looked for *{', *'.join(suffixes)})")
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
        if not found:
            raise MissingDataError(f"{path}: there is no such file or folder, and no file fits it as a pattern")
    return sorted(found, key=lambda file: _natural_key(str(file)))
