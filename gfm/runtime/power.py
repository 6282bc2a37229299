"""Joules of a piece of work, always with the method by which they were found.

In this order: NVML's energy counter of the GPU that is used; RAPL's counter of the CPU packages; otherwise an
estimate from the CPU seconds of this process, which says that it is one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["WATTS_PER_CORE", "EnergyMeter"]

# Assumed power of one busy core, with its share of the package and memory: servers of 2019-2024 have thermal
# design powers of 180-360 W for 24-64 cores, 4-8 W a core, and laptops 15-45 W for 4-8 cores.
WATTS_PER_CORE = 7.0

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Context manager that counts the joules between entering and now (or leaving).

    Attributes:
        method: "nvml", "rapl" (with the share where a node is shared) or "estimate: ..."; never empty.
    """

    def __init__(self, *, gpu: int | None = None, share: float = 1.0, powercap: Path = _POWERCAP) -> None:
        """Choose the best method there is.

        Args:
            gpu: Index of the GPU the work runs on, None for CPU work.
            share: This process's share of the node's CPUs (1 / ranks on it), for counters of whole packages.
            powercap: Folder of the kernel's RAPL counters.
        """
        self._read, self.method = _nvml(gpu) or _rapl(powercap, share) or _estimate()
        self._joules = 0.0
        self._seconds = 0.0
        self._running = False

    def __enter__(self) -> Self:
        """Start counting from zero."""
        self._joules, self._running = 0.0, True
        self._began, self._last = time.perf_counter(), self._read(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting; `joules` and `seconds` keep their last value."""
        self._update()
        self._running = False

    def _update(self) -> None:
        if self._running:
            previous, self._last = self._last, self._read(self._last)
            self._joules += sum(now - before for now, before in zip(self._last, previous, strict=True))
            self._seconds = time.perf_counter() - self._began

    @property
    def joules(self) -> float:
        """Joules so far. RAPL counters wrap: ask at least every few minutes."""
        self._update()
        return self._joules

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        self._update()
        return self._seconds


# A reader returns monotonic counters in joules, given those of the last time (to unwrap them).
_Reader = Callable[[tuple[float, ...] | None], tuple[float, ...]]


def _nvml(gpu: int | None) -> tuple[_Reader, str] | None:
    """Read the energy counter of one GPU, where NVML has one."""
    if gpu is None:
        return None
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None  # no driver, or a GPU without the counter: the next method says so in its name
    return lambda last: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,), "nvml"


def _rapl(powercap: Path, share: float) -> tuple[_Reader, str] | None:
    """Read the package counters of powercap, where there are any and they may be read."""
    zones = [zone for zone in sorted(powercap.glob("*-rapl:*")) if zone.name.count(":") == 1]
    try:
        sizes = [int((zone / "max_energy_range_uj").read_text()) / 1e6 for zone in zones]
        for zone in zones:
            (zone / "energy_uj").read_text()
    except OSError:
        return None  # counters are readable by root only on most systems
    if not zones:
        return None

    def read(last: tuple[float, ...] | None) -> tuple[float, ...]:
        values = []
        for place, (zone, size) in enumerate(zip(zones, sizes, strict=True)):
            value = int((zone / "energy_uj").read_text()) / 1e6
            if last is not None:
                before = last[place] / share
                value += size * max(0, -(-(before - value) // size))
            values.append(value * share)
        return tuple(values)

    return read, "rapl" if share == 1.0 else f"rapl: packages of the node x {share:.3g}"


def _estimate() -> tuple[_Reader, str]:
    """Estimate from the CPU seconds of this process and all its threads."""
    method = f"estimate: {WATTS_PER_CORE:g} W per core x CPU seconds"
    return lambda last: (time.process_time() * WATTS_PER_CORE,), method
