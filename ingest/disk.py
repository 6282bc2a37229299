"""Room on a disk, asked for before it is used up."""

import shutil
from pathlib import Path

from gfm.errors import ResourceError

__all__ = ["check_space"]

_SPARE = 64 << 20  # bytes left free


def check_space(directory: Path, needed: int) -> None:
    """Check that the disk of a directory has room for so many bytes.

    Raises:
        ResourceError: It has not; the text says how much is needed and free.
    """
    free = shutil.disk_usage(directory).free
    if needed > 0 and needed + _SPARE > free:
        raise ResourceError(
            f"{directory}: {(needed + _SPARE) / 1e9:.2f} GB are needed on this disk, {free / 1e9:.2f} GB are "
            "free; make room, or give a directory on another disk"
        )
