"""Does it fit: memory and /dev/shm, compared with what is needed before anything is loaded."""

from pathlib import Path

import psutil

from gfm.errors import ResourceError

__all__ = ["available_memory", "require_memory", "sized"]

# Left free for the program itself.
_RESERVE = 256 << 20


def available_memory() -> int:
    """Return the bytes this process may still take: free memory of the machine, less what a cgroup forbids."""
    available = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()) != "max":
            available = min(available, int(text) - int(Path(used).read_text()))
    return max(available, 0)


def require_memory(needed: int) -> None:
    """Check that a store of this many bytes fits into this process's memory.

    Raises:
        ResourceError: It does not; the text says what would do.
    """
    available = available_memory()
    if needed + _RESERVE > available:
        raise ResourceError(
            f"the structures need {sized(needed)} of memory and {sized(available)} are available; "
            "use store 'rma' over more ranks and nodes, store 'disk', or fewer structures"
        )


def sized(nbytes: float) -> str:
    """Return a number of bytes as a person reads it, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
