"""Statistics that merge: each part of a dataset keeps a few numbers, and their merger is that of the whole.

Merging is deterministic, so merging parts in the order of the plan gives the same bits whoever computed them.

Source: pairwise update of Chan, Golub and LeVeque, doi:10.1080/00031305.1983.10483115.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.errors import DataError

__all__ = ["Histogram", "Moments"]


@dataclass(frozen=True)
class Moments:
    """Count, mean, spread and range of some values, in the values' own unit.

    Attributes:
        count: Number of values.
        mean: Their mean; 0 where there are none.
        m2: Sum of squared deviations from the mean.
        minimum: Smallest value; infinite where there are none.
        maximum: Largest value; minus infinite where there are none.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Return the moments of an array of any shape.

        Raises:
            DataError: A value is not finite, which would spoil every merger.
        """
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        if len(flat) == 0:
            return cls()
        if not np.isfinite(flat).all():
            raise DataError(f"{int((~np.isfinite(flat)).sum())} of {len(flat)} values are not finite")
        mean = float(flat.mean())
        return cls(len(flat), mean, float(((flat - mean) ** 2).sum()), float(flat.min()), float(flat.max()))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + delta * delta * (self.count * (other.count / count)),
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    @property
    def std(self) -> float:
        """Standard deviation over the values themselves (not of a sample); 0 where there are none."""
        return float(np.sqrt(self.m2 / self.count)) if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values (None for no range), with the standard deviation for the reader's eye."""
        return {
            "count": self.count,
            "mean": self.mean,
            "std": self.std,
            "m2": self.m2,
            "minimum": self.minimum if self.count else None,
            "maximum": self.maximum if self.count else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        if not data["count"]:
            return cls()
        return cls(data["count"], data["mean"], data["m2"], data["minimum"], data["maximum"])


@dataclass(frozen=True)
class Histogram:
    """Counts of values between fixed edges, and of those below and above them.

    Attributes:
        edges: Ascending edges (B + 1,), in the values' unit; a bin includes its left edge.
        counts: Values in each bin (B,).
        below: Values below the first edge.
        above: Values at or above the last edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int = 0
    above: int = 0

    @classmethod
    def of(cls, values: NDArray[Any], edges: Sequence[float]) -> Self:
        """Count an array of any shape between these edges."""
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        bins = np.bincount(np.searchsorted(edges, flat, side="right"), minlength=len(edges) + 1)
        return cls(
            tuple(float(edge) for edge in edges),
            tuple(int(count) for count in bins[1:-1]),
            int(bins[0]),
            int(bins[-1]),
        )

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both sets of values together.

        Raises:
            DataError: The edges differ.
        """
        if self.edges != other.edges:
            raise DataError(f"histograms of different edges do not merge: {self.edges} and {other.edges}")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.edges, counts, self.below + other.below, self.above + other.above)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "edges": list(self.edges),
            "counts": list(self.counts),
            "below": self.below,
            "above": self.above,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls(tuple(data["edges"]), tuple(data["counts"]), data["below"], data["above"])
