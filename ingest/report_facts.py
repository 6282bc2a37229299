"""What the report knows of a dataset: its manifest, parsed once, and readings that bear missing keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gfm.data.moments import Histogram, Moments
from gfm.runtime.quantities import listed, number
from store.manifest import DatasetEntry, Manifest

__all__ = ["Facts", "Part", "named", "percent", "quantile"]

# Names told one by one.
_NAMED = 10


@dataclass(frozen=True)
class Part:
    """One of the datasets inside: its entry, its statistics and its share of the work, either may be empty."""

    entry: DatasetEntry
    statistics: Mapping[str, Any]
    timing: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def rejected(self) -> int:
        """Records refused."""
        return sum(self.entry.rejected.values())

    @property
    def seen(self) -> int:
        """Records looked at: stored and refused."""
        return self.entry.structures + self.rejected

    def histogram(self, key: str) -> Histogram | None:
        """Return a histogram of the statistics; None where there is none, or nothing in it."""
        data = self.statistics.get(key)
        if not data:
            return None
        histogram = Histogram.from_json(data)
        return histogram if sum(histogram.counts) + histogram.below + histogram.above else None

    def moments(self, key: str) -> Moments | None:
        """Return moments of the statistics; None where there are none, or of no values."""
        data = self.statistics.get(key)
        return Moments.from_json(data) if data and data.get("count") else None

    @property
    def rate(self) -> float | None:
        """Structures per CPU second."""
        seconds = self.timing.get("cpu_seconds")
        return self.entry.structures / seconds if seconds else None


@dataclass(frozen=True)
class Facts:
    """A dataset as the report sees it.

    Attributes:
        path: Its directory.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    @cached_property
    def parts(self) -> list[Part]:
        """The datasets inside, in the manifest's order."""
        timing = self.provenance.get("timing") or {}
        statistics = self.manifest.statistics
        return [
            Part(entry, statistics.get(entry.name) or {}, timing.get(entry.name) or {})
            for entry in self.manifest.datasets
        ]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Recipe, code version, times."""
        return self.manifest.provenance

    @cached_property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return self.manifest.bytes

    @cached_property
    def rejected(self) -> int:
        """Records refused."""
        return sum(part.rejected for part in self.parts)

    @cached_property
    def elements(self) -> dict[str, int]:
        """Structures that contain each element, over all datasets."""
        counts: dict[str, int] = {}
        for part in self.parts:
            for symbol, count in (part.statistics.get("elements") or {}).items():
                counts[symbol] = counts.get(symbol, 0) + count["structures"]
        return counts

    @property
    def seconds(self) -> float | None:
        """Wall time of the ingestion."""
        return self.provenance.get("seconds") or None


def named(names: Sequence[str]) -> str:
    """Return names as an enumeration; of many the first and how many more."""
    if len(names) <= _NAMED:
        return listed(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def percent(count: float, whole: float) -> str:
    """Return a share in per cent, with more digits where it is small; a dash for a share of nothing."""
    if not whole:
        return "–"
    share = 100 * count / whole
    if 0 < share < 0.01:
        return "<0.01 %"
    return f"{number(share, 0 if share in (0.0, 100.0) else 1 if share >= 0.995 else 2)} %"


def quantile(histogram: Histogram, share: float) -> float | None:
    """Return the value below which this share lies, interpolated; None where it is outside of the edges."""
    wanted = share * (sum(histogram.counts) + histogram.below + histogram.above)
    passed: float = histogram.below
    if wanted < passed:
        return None
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        if count and passed + count >= wanted:
            return low + (high - low) * (wanted - passed) / count
        passed += count
    return None
