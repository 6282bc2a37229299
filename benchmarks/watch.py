"""Memory, CPU time and progress of a command and all it starts, sampled from outside of it."""

import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["ROOT", "Sample", "Watched", "watch"]

ROOT = "client and scheduler"  # a local cluster has both in the process of the command


@dataclass(frozen=True)
class Sample:
    """One look: seconds since the start, what was finished, resident bytes of each process."""

    seconds: float
    finished: float
    memory: dict[str, int]


@dataclass
class Watched:
    """A command that ended well.

    Attributes:
        samples: In the order of time.
        wall: Seconds from start to end.
        cpu: CPU seconds of the command and of all its children that it waited for.
    """

    samples: list[Sample] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0

    def peak(self, role: str) -> int:
        """Return the most resident bytes of a process, or of any whose name begins so."""
        return max(
            (
                memory
                for sample in self.samples
                for name, memory in sample.memory.items()
                if name.startswith(role)
            ),
            default=0,
        )


def watch(
    command: Sequence[str], finished: Callable[[], float], *, log: Path, interval: float = 1.0
) -> Watched:
    """Run a command to its end and sample it.

    Args:
        command: Program and arguments.
        finished: Says how much of the work is done.
        log: Where stdout and stderr go.
        interval: Seconds between two looks.

    Raises:
        RuntimeError: It failed; the text has the end of its log.
    """
    watched = Watched()
    roles: dict[int, str] = {}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with (
        log.open("w") as stream,
        subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                memory = _memory(process.pid, roles)
                watched.samples.append(Sample(time.monotonic() - began, finished(), memory))
                time.sleep(interval)
        except BaseException:
            process.terminate()
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    watched.wall = time.monotonic() - began
    watched.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return watched


def _memory(root: int, roles: dict[int, str]) -> dict[str, int]:
    """Return resident bytes by role; a process keeps the role that it was given when it was first seen."""
    found: dict[str, int] = {}
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in processes:
        try:
            if process.pid not in roles:
                roles[process.pid] = _role(process, root, roles)
            # One that ended and was not waited for yet has nothing left.
            if size := process.memory_info().rss:
                found[roles[process.pid]] = size
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _role(process: psutil.Process, root: int, roles: dict[int, str]) -> str:
    if process.pid == root:
        return ROOT
    # Python starts the processes of a local cluster with this function.
    if any("spawn_main" in word for word in process.cmdline()):
        return f"worker {1 + sum(role.startswith('worker') for role in roles.values())}"
    return f"helper {process.pid}"
