"""The errors this project raises on purpose; each text says what, where, what was expected, what to do.

Every class is also the builtin it resembles, so callers may catch either. The exit codes are those of the
``gfm`` command: 2 configuration, 3 data, 4 resources.
"""

import errno
from typing import Any, ClassVar, Self

__all__ = [
    "ConfigError",
    "CorruptDataError",
    "DataError",
    "GfmError",
    "MissingDataError",
    "ResourceError",
    "from_system",
]


class GfmError(Exception):
    """Root of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """Pickle as class and text: tblib, which Dask uses, fails on classes that resemble two builtins."""
        return type(self), self.args


class ConfigError(GfmError, ValueError):
    """A configuration, recipe, study or option that cannot be used as written."""

    exit_code = 2


class DataError(GfmError, ValueError):
    """Data that cannot be used: wrong layout, wrong shape, wrong units."""

    exit_code = 3


class MissingDataError(DataError, FileNotFoundError):
    """A file or dataset that should be there and is not."""


class CorruptDataError(DataError, OSError):
    """Data whose size or checksum is not what was written down when it was made."""


class ResourceError(GfmError, RuntimeError):
    """Not enough memory, disk, ranks or time; the text says how much is needed and what would do."""

    exit_code = 4


# What the operating system says where a path is wrong, not the program, by exit code of the error it is.
_PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_PATH_ERRORS |= {errno.ENAMETOOLONG, errno.ELOOP}
_SPENT = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def from_system(error: OSError) -> GfmError | None:
    """Return the error of this project for what the operating system refused: None if it is none of its kinds.

    A path that cannot be used becomes a `DataError`, a full disk or too many open files a `ResourceError`.
    """
    text = error.strerror or str(error)
    if error.filename is not None:
        text = f"{error.filename}: {text}"
    if error.errno in _SPENT:
        return ResourceError(text)
    return DataError(text) if error.errno in _PATH_ERRORS else None
