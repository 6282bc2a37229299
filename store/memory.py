"""Does it fit: memory and /dev/shm, compared with what is needed before anything is loaded.

MPI gives a window that /dev/shm cannot hold and then dies by SIGBUS at the first touch; so it is asked before.
"""

import math
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from gfm.errors import ResourceError

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

__all__ = ["available_memory", "available_shared_memory", "require_memory", "require_window_memory", "sized"]

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


def available_shared_memory() -> int:
    """Return the free bytes of /dev/shm, where windows of several ranks on a node lie."""
    return shutil.disk_usage("/dev/shm").free


def require_window_memory(own: int, comm: "Comm", node: "Comm") -> None:
    """Check on every node that its ranks' parts of a window fit; collective, and all ranks come to one answer.

    Args:
        own: Bytes of this rank's part.
        comm: All ranks.
        node: The ranks of this node.

    Raises:
        ResourceError: A node has too little; the text says which, how much is needed and what would do.
    """
    needed = sum(node.allgather(own))
    # Memory first: each rank may be held by a cgroup of its own.
    available = min(node.allgather(available_memory())) - _RESERVE * node.size
    where = "memory"
    if node.size > 1 and (shared := min(node.allgather(available_shared_memory()))) < available:
        available, where = shared, "/dev/shm"
    nodes = comm.allgather((needed, max(available, 0), where, socket.gethostname()))
    for needed, available, where, host in nodes:
        if needed > available:
            total = sum(comm.allgather(own))
            count = math.ceil(total / available) if available else None
            advice = f"{count} such nodes" if count else "more memory"
            raise ResourceError(
                f"node {host}: the structures of its ranks need {sized(needed)} of {where}, {sized(available)} "
                f"are available. All structures together need {sized(total)}: {advice} would do, or store "
                "'disk', or fewer structures"
                + (" (a container's /dev/shm is set by --shm-size)" if where == "/dev/shm" else "")
            )


def sized(nbytes: float) -> str:
    """Return a number of bytes as a person reads it, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
