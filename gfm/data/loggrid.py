"""LogGrid: logarithmic bins of fixed edges, so that quantiles and ranks come from counts that merge.

A million structures have 10^8 force components; their quantiles must not need them all in one place. Counts on
fixed edges add up in any order to the same integers, and a quantile is then known to within one bin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LogGrid", "SignedLogGrid"]


@dataclass(frozen=True)
class LogGrid:
    """Bins with edges at powers of two divided evenly; what lies outside falls into the first or last bin.

    Attributes:
        low: Exponent of two of the lowest edge.
        octaves: Doublings covered.
        per_octave: Bins in each doubling; a bin is wide by a factor ``2 ** (1 / per_octave)``.
    """

    low: int
    octaves: int
    per_octave: int

    @property
    def size(self) -> int:
        """Number of bins."""
        return self.octaves * self.per_octave

    def index(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the bin of each value; zero and what is smaller than the lowest edge go into bin 0."""
        exponents = np.log2(np.maximum(values, 2.0**self.low)) - self.low
        bins: NDArray[np.int64] = np.minimum(exponents * self.per_octave, self.size - 1).astype(np.int64)
        return bins

    def count(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return how many values fall into each bin (size,)."""
        return np.bincount(self.index(values), minlength=self.size)

    def edges(self) -> NDArray[np.float64]:
        """Return all edges (size + 1,), ascending."""
        edges: NDArray[np.float64] = np.exp2(self.low + np.arange(self.size + 1) / self.per_octave)
        return edges

    def upper(self, bins: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return the upper edges of bins."""
        edges: NDArray[np.float64] = np.exp2(self.low + (np.asarray(bins) + 1.0) / self.per_octave)
        return edges

    def centre(self, bins: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return the geometric centres of bins."""
        centres: NDArray[np.float64] = np.exp2(self.low + (np.asarray(bins) + 0.5) / self.per_octave)
        return centres

    def quantile(self, counts: NDArray[np.int64], rank: int) -> float:
        """Return an upper bound of the ``rank``-th smallest value (1-based), at most one bin above it."""
        place = int(np.searchsorted(np.cumsum(counts), rank))
        return float(self.upper(min(place, self.size - 1)))


@dataclass(frozen=True)
class SignedLogGrid:
    """The bins of a `LogGrid` on both sides of zero, ascending: most negative first.

    Attributes:
        side: The bins of the sizes; sizes below its lowest edge share the bin next to zero of their side.
    """

    side: LogGrid

    @property
    def size(self) -> int:
        """Number of bins."""
        return 2 * self.side.size

    def count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many values fall into each bin (size,)."""
        bins = self.side.index(np.abs(values))
        half = self.side.size
        return np.bincount(np.where(values < 0, half - 1 - bins, half + bins), minlength=self.size)

    def edges(self) -> NDArray[np.float64]:
        """Return all edges (size + 1,), ascending; zero is the middle one."""
        positive = self.side.edges()[1:]
        return np.concatenate([-positive[::-1], [0.0], positive])

    def centre(self, bins: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return the middles of bins: geometric, with their sign."""
        place = np.asarray(bins)
        half = self.side.size
        negative = place < half
        sizes = self.side.centre(np.where(negative, half - 1 - place, place - half))
        return np.where(negative, -sizes, sizes)
