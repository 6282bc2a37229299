"""Speed-up from one worker process to two, measured so that other work on the machine does not decide it.

Runs on one and on two workers alternate in pairs. During each pair the machine's counters (``/proc/stat``) say
how much of its CPU other processes took; pairs with more than 5 % are measured again, for a minute. Where no
quiet time comes, the quietest pairs count and the share that others took is told with the result.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Speedup", "measure_speedup", "spin"]

_QUIET = 0.05  # share of the CPU
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Speedup:
    """Medians over pairs: wall seconds on one worker and on two, their ratio, what others took of the CPU."""

    one: float
    two: float
    ratio: float
    others: float


def measure_speedup(run: Callable[[Any], object], one: Any, two: Any, *, pairs: int = 3) -> Speedup:
    """Call ``run(client)`` on one and on two workers in turn, after a call on each that warms them.

    Args:
        run: What is timed; it waits for its end.
        one: Client of a cluster with one worker.
        two: Client of a cluster with two.
        pairs: Quiet pairs wanted.
    """
    for client in (one, two):
        run(client)
    measured: list[tuple[float, float, float]] = []  # share of others, seconds on one, on two
    began = time.monotonic()
    while sum(others <= _QUIET for others, _, _ in measured) < pairs:
        if len(measured) >= pairs and time.monotonic() - began > _PATIENCE:
            break
        watched = OthersAtWork()
        seconds = _seconds(run, one), _seconds(run, two)
        measured.append((watched.share(), *seconds))
    chosen = sorted(measured)[:pairs]
    return Speedup(
        one=statistics.median(one for _, one, _ in chosen),
        two=statistics.median(two for _, _, two in chosen),
        ratio=statistics.median(one / two for _, one, two in chosen),
        others=statistics.median(others for others, _, _ in chosen),
    )


def _seconds(run: Callable[[Any], object], client: Any) -> float:
    started = time.monotonic()
    run(client)
    return time.monotonic() - started


def spin(steps: int) -> int:
    """Keep one core busy without memory: what two processes gain over one is the machine's own limit."""
    total = 0
    for step in range(steps):
        total = (total * 31 + step) % 1_000_003
    return total


class OthersAtWork:
    """The share of the machine's CPU that processes outside of this one's tree take from now on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """Return it, from 0 to 1; 0 where the system has no such counters."""
        passed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / passed))


def _busy_seconds() -> float:
    """Return CPU seconds of the whole machine, what a hypervisor stole included."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, counters.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / float(os.sysconf("SC_CLK_TCK"))


def _own_seconds() -> float:
    """Return CPU seconds of this process and of all that it started and that still run."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
