"""MPI: whether this process is one of several ranks, their communicator, and failing without hanging.

A Python exception on one rank of an MPI job leaves the others waiting for ever. `world` therefore installs an
excepthook that aborts the job, and `failing_together` turns an expected error into one message and one exit
code, whether all ranks met it or only one.
"""

import os
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from gfm.errors import GfmError, ResourceError

__all__ = ["Rendezvous", "failing_together", "find_mpiexec", "launched", "rendezvous", "world"]

# Seconds that a failing rank waits for the others to fail as well, before it takes the job down.
_AGREEMENT_SECONDS = 3.0

# Seconds between an error's text and the abort, which would cut off what the launcher has not read yet.
_LAST_WORDS_SECONDS = 0.3

# One rank counts the ranks it finds in one of these: MPICH (hydra) and PMI-2, Open MPI.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

_state: dict[str, Any] = {}


def find_mpiexec() -> str | None:
    """Return the mpiexec of this environment, which fits its mpi4py, else the PATH's; None for neither."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def launched(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the launcher says there are; 0 where no launcher started this process.

    mpiexec sets PMI_SIZE (MPICH) or OMPI_COMM_WORLD_SIZE (Open MPI); srun sets SLURM_STEP_NUM_TASKS, which a
    batch script itself does not have.
    """
    for name in _SIZE_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environ:
        return int(environ["SLURM_STEP_NUM_TASKS"])
    return 0


def world() -> Any | None:
    """Return COMM_WORLD where a launcher started several ranks, else None.

    From then on an exception that nothing catches aborts all ranks.

    Raises:
        ResourceError: MPI sees another number of ranks than the launcher announced (as `srun --mpi=none` does:
            every process would silently train alone).
    """
    announced = launched()
    if announced <= 1:
        return None
    if "comm" not in _state:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        if comm.size != announced:
            raise ResourceError(
                f"the launcher started {announced} ranks but MPI sees {comm.size}: the launcher and the MPI "
                "library do not fit together. Use the mpiexec that belongs to this environment's MPI, or "
                "`srun --mpi=pmi2`."
            )
        _forget_segments(comm)
        # Its own communicator: ranks that fail must not meet collectives of those that go on.
        _state.update(comm=comm, errors=comm.Dup())
        sys.excepthook = _abort_all
        threading.excepthook = lambda info: _abort_all(
            info.exc_type, info.exc_value or info.exc_type(), info.exc_traceback
        )
    return _state["comm"]


def _forget_segments(comm: Any) -> None:
    """Remove the names of MPICH's own segments in /dev/shm; every rank that uses them has them mapped by now.

    MPICH removes them as it finalises, so a job that was killed or aborted would leave one behind, 2 MB each
    time. The memory itself goes with the last process that maps it.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    comm.Barrier()
    words = (line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines())
    for name in {word for word in words if word.startswith("/dev/shm/mpich_shm_")}:
        if not name.endswith("(deleted)"):
            Path(name).unlink(missing_ok=True)


def _abort_all(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print where it happened, then take all ranks down."""
    comm = _state["comm"]
    head = f"gfm: rank {comm.rank} of {comm.size} failed; stopping all ranks\n"
    _last_words(head + "".join(traceback.format_exception(kind, error, trace)))
    comm.Abort(1)


def _last_words(text: str) -> None:
    """Write to stderr before an abort: in one piece, and with a moment for the launcher to pass it on."""
    sys.stderr.write(text)
    sys.stderr.flush()
    time.sleep(_LAST_WORDS_SECONDS)


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an expected error end the job with one message and its exit code, on one rank or on all.

    When every rank fails (a wrong configuration), rank 0 raises it and the others leave with the same code.
    When only some do, the first of them prints the error with its rank and aborts the job with that code.
    In a single process this does nothing.
    """
    try:
        yield
    except GfmError as error:
        if "errors" not in _state:
            raise
        comm = _state["errors"]
        request = comm.Ibarrier()
        deadline = time.monotonic() + _AGREEMENT_SECONDS
        while not request.Test():
            if time.monotonic() > deadline:
                _last_words(f"gfm: rank {comm.rank} of {comm.size}: {error}\n")
                comm.Abort(error.exit_code)
            time.sleep(0.01)
        if comm.rank == 0:
            raise
        sys.exit(error.exit_code)


@dataclass
class Rendezvous:
    """Where the ranks of a communicator meet over TCP.

    Attributes:
        host: Address of rank 0: loopback when all ranks share a node, else its host name.
        port: A port that was free when asked for.
        one_node: Whether all ranks share a node.
        listener: On rank 0, the listening socket, already bound, so that nothing else can take the port.
    """

    host: str
    port: int
    one_node: bool
    listener: socket.socket | None = field(default=None, repr=False)


def rendezvous(comm: Any) -> Rendezvous:
    """Agree on an address of rank 0; collective over the communicator."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    one_node = node.size == comm.size
    node.Free()
    listener = None
    if comm.rank == 0:
        host = "127.0.0.1" if one_node else socket.getfqdn()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((host, 0))
        listener.listen(comm.size + 8)
        comm.bcast((host, listener.getsockname()[1]), root=0)
        port = listener.getsockname()[1]
    else:
        host, port = comm.bcast(None, root=0)
    return Rendezvous(host, port, one_node, listener)
