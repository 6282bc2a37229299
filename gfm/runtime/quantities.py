"""Quantities as people read them: numbers with few digits, bytes, joules, durations."""

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["byte_count", "duration", "joule_count", "listed", "number", "setting"]


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration in words."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def setting(value: Any) -> str:
    """Return the value of a setting, real numbers with three digits."""
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def byte_count(count: int) -> str:
    """Return bytes with a decimal unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def joule_count(joules: float) -> str:
    """Return joules with a unit."""
    for unit, size in (("MJ", 1e6), ("kJ", 1e3)):
        if joules >= size:
            return f"{joules / size:.1f} {unit}"
    return f"{joules:.0f} J"


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
