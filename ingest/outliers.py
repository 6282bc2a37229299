"""Robust outlier limits, per dataset, from histograms that merge: nobody holds all structures.

A robust standard deviation is 1.4826 x the median absolute deviation from the median, the standard deviation of
a normal distribution and blind to what outliers say. Energies per atom are judged after the linear reference,
which is itself fitted without the outliers that it finds. Largest force, largest stress and shortest distance
are judged by their logarithms, with the deviations of the side that is limited: forces of relaxed structures go
down to nothing. Deviations have floors, so that a dataset of near-equal structures is not cut to its core.

Source: Rousseeuw and Croux, doi:10.1080/01621459.1993.10476408.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from gfm.data.references import MAX_Z, NormalEquations
from gfm.runtime.config import Config
from ingest.duplicates import dropped_rows
from ingest.plan import part_name
from ingest.recipe import Outliers
from ingest.sums import ENERGY, SIZE, GridCounts
from ingest.tables import Table

__all__ = [
    "DISTANCE_LIMIT",
    "ENERGY_LIMIT",
    "FORCE_LIMIT",
    "REASONS",
    "STRESS_LIMIT",
    "Chunk",
    "Fit",
    "Limit",
    "References",
    "Screen",
    "Survey",
    "energy_limit",
    "fit_kept",
    "refusals",
    "residual_energies",
    "residuals",
    "size_limits",
    "survey",
]

# By the code that `refusals` gives: kept, and what a structure is refused as.
REASONS = ("", "duplicate", "force-outlier", "stress-outlier", "distance-outlier", "energy-outlier")
ENERGY_LIMIT, FORCE_LIMIT = "energy-residual", "largest-force"
STRESS_LIMIT, DISTANCE_LIMIT = "largest-stress", "shortest-distance"
_FEWEST = 100  # structures; fewer do not tell what is usual
_ENERGY_FLOOR = 0.05  # eV/atom
_ENERGY_BIN = 0.05  # a bin's width, by its distance from zero: what the grid cannot resolve
_SIZE_FLOOR = 1.0  # doublings of force or stress
_DISTANCE_FLOOR = 0.15  # doublings of distance
# With fewer compositions a reference energy is not that of an element, but of what it happened to be seen with.
_COMPOSITIONS_PER_ELEMENT = 5
_SLICE = 1 << 14


class Limit(Config):
    """Between which values a dataset's structures may lie.

    Attributes:
        low: Lowest value allowed; None for no limit.
        high: Highest value allowed; None for no limit.
        unit: Unit of the values.
        median: Their median.
        spread: Their robust standard deviation (of their logarithm: the factor of one deviation).
    """

    low: float | None = None
    high: float | None = None
    unit: str
    median: float
    spread: float


class References(Config):
    """Reference energies of one dataset.

    Attributes:
        values: By atomic number (MAX_Z + 1), eV.
        seen: Atomic numbers of the elements that the fit knew.
        known: Digests of the compositions that it knew, where those are too few to tell of others; None for all
            compositions of the elements seen.
    """

    values: list[float] = pydantic.Field(default_factory=lambda: [0.0] * (MAX_Z + 1))
    seen: list[int] = pydantic.Field(default_factory=list)
    known: list[int] | None = pydantic.Field(default_factory=list)

    @classmethod
    def of(cls, equations: NormalEquations, known: frozenset[int] | None) -> Self:
        """Fit them; ``known`` are the compositions of the training split, None for more than are needed."""
        fit = equations.solve()
        seen = np.flatnonzero(fit.seen).tolist()
        if known is not None and len(known) >= _COMPOSITIONS_PER_ELEMENT * len(seen):
            known = None
        return cls(values=fit.values.tolist(), seen=seen, known=None if known is None else sorted(known))


class Screen(Config):
    """What decides about the structures of one dataset once all are read.

    Attributes:
        reference: Reference energies that energies are judged by.
        stored: Those that the manifest states: fitted to what is kept.
        limits: Robust limits by name.
        duplicates: Files of `ingest.duplicates` that name duplicates, relative to the output.
    """

    reference: References
    stored: References
    limits: dict[str, Limit] = pydantic.Field(default_factory=dict)
    duplicates: list[str] = pydantic.Field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """Some parts of one dataset that one task screens, by their numbers in the plan."""

    output: Path
    parts: Sequence[int]


@dataclass(frozen=True)
class Fit:
    """Normal equations of training structures that are kept, and how many structures are refused."""

    equations: NormalEquations
    refused: int

    def merge(self, other: "Fit") -> "Fit":
        """Return those of both together."""
        return Fit(self.equations.merge(other.equations), self.refused + other.refused)


@dataclass(frozen=True)
class Survey:
    """Counts on fixed bins, and what is known of the training split, before any limit.

    Attributes:
        forces: Structures by largest force.
        stresses: Structures by largest stress component.
        distances: Structures by shortest distance.
        equations: Normal equations of the training split.
        known: Digests of its compositions; None for more than any reference needs.
    """

    forces: GridCounts
    stresses: GridCounts
    distances: GridCounts
    equations: NormalEquations
    known: frozenset[int] | None

    def merge(self, other: "Survey") -> "Survey":
        """Return those of both together."""
        return Survey(
            self.forces.merge(other.forces),
            self.stresses.merge(other.stresses),
            self.distances.merge(other.distances),
            self.equations.merge(other.equations),
            _joined(self.known, other.known),
        )


def survey(chunk: Chunk, screen: Screen) -> Survey:
    """Count what a chunk holds that is no duplicate."""
    names = ("largest_force", "largest_stress", "shortest_distance")
    counts = [np.zeros(SIZE.size, dtype=np.int64) for _ in names]
    equations = NormalEquations()
    known: frozenset[int] | None = frozenset()
    for index in chunk.parts:
        table = Table.load(chunk.output, part_name(index))
        kept = refusals(table, chunk.output, index, screen) == 0
        for total, field in zip(counts, names, strict=True):
            values = table.rows[field][kept]
            total += SIZE.count(values[np.isfinite(values)])
        equations = equations.merge(_equations(table, kept))
        if known is not None:
            used = np.unique(table.rows["formula"][_fitted(table, kept)])
            known = _joined(known, frozenset(table.composition_digests[used].tolist()))
    forces, stresses, distances = map(GridCounts, counts)
    return Survey(forces, stresses, distances, equations, known)


def residuals(chunk: Chunk, screen: Screen) -> GridCounts:
    """Count energies per atom after the reference, of structures that the screen lets pass."""
    counts = np.zeros(ENERGY.size, dtype=np.int64)
    for index in chunk.parts:
        table = Table.load(chunk.output, part_name(index))
        kept = refusals(table, chunk.output, index, screen) == 0
        values = residual_energies(table, screen.reference)[kept]
        counts += ENERGY.count(values[np.isfinite(values)])
    return GridCounts(counts)


def fit_kept(chunk: Chunk, screen: Screen) -> Fit:
    """Return the normal equations of training structures that the screen lets pass, and how many it refuses."""
    equations, refused = NormalEquations(), 0
    for index in chunk.parts:
        table = Table.load(chunk.output, part_name(index))
        kept = refusals(table, chunk.output, index, screen) == 0
        refused += int((~kept).sum())
        equations = equations.merge(_equations(table, kept))
    return Fit(equations, refused)


def refusals(table: Table, output: Path, index: int, screen: Screen) -> NDArray[np.uint8]:
    """Return why each structure of a part is refused (G,): an index into `REASONS`, 0 for those kept.

    Args:
        table: The part's table.
        output: The dataset's directory.
        index: The part's number in the plan.
        screen: What decides.
    """
    codes = np.zeros(len(table.rows), dtype=np.uint8)
    if ENERGY_LIMIT in screen.limits:
        codes[_outside(residual_energies(table, screen.reference), screen.limits[ENERGY_LIMIT])] = 5
    for code, name, field in (
        (4, DISTANCE_LIMIT, "shortest_distance"),
        (3, STRESS_LIMIT, "largest_stress"),
        (2, FORCE_LIMIT, "largest_force"),
    ):
        if name in screen.limits:
            codes[_outside(table.rows[field], screen.limits[name])] = code
    codes[dropped_rows(output, screen.duplicates, index)["row"]] = 1
    return codes


def residual_energies(table: Table, reference: References) -> NDArray[np.float64]:
    """Return energy per atom after the reference (G,), eV/atom.

    It is NaN without an energy, and where the reference says nothing: for elements that it has not seen, and
    for compositions that it cannot be extended to.
    """
    seen = np.zeros(MAX_Z + 1, dtype=bool)
    seen[reference.seen] = True
    formulas = table.formulas @ np.array(reference.values)
    formulas[(table.formulas[:, ~seen] > 0).any(axis=1)] = np.nan
    if reference.known is not None:
        known = np.array(reference.known, dtype=np.uint64)
        formulas[~np.isin(table.composition_digests, known)] = np.nan
    values: NDArray[np.float64] = (table.rows["energy"] - formulas[table.rows["formula"]]) / table.rows[
        "num_atoms"
    ]
    return values


def size_limits(counted: Survey, outliers: Outliers) -> dict[str, Limit]:
    """Return the limits of force, stress and distance that a survey supports."""
    wanted = (
        (FORCE_LIMIT, counted.forces, outliers.force, _SIZE_FLOOR, "eV/angstrom"),
        (STRESS_LIMIT, counted.stresses, outliers.stress, _SIZE_FLOOR, "eV/angstrom^3"),
        (DISTANCE_LIMIT, counted.distances, outliers.distance, _DISTANCE_FLOOR, "angstrom"),
    )
    return {
        name: _log_limit(counts, deviations, floor, unit, upper=name != DISTANCE_LIMIT)
        for name, counts, deviations, floor, unit in wanted
        if deviations is not None and counts.values.sum() >= _FEWEST
    }


def energy_limit(counts: GridCounts, deviations: float) -> Limit | None:
    """Return the limit of energies per atom after the reference; None for too few structures."""
    if counts.values.sum() < _FEWEST:
        return None
    centres = ENERGY.centre(np.arange(ENERGY.size))
    median = _median(centres, counts.values)
    deviation = 1.4826 * _median(np.abs(centres - median), counts.values)
    spread = max(deviation, _ENERGY_FLOOR, _ENERGY_BIN * abs(median))
    reach = deviations * spread
    return Limit(low=median - reach, high=median + reach, unit="eV/atom", median=median, spread=spread)


def _log_limit(counts: GridCounts, deviations: float, floor: float, unit: str, *, upper: bool) -> Limit:
    octaves = np.log2(SIZE.centre(np.arange(SIZE.size)))
    median = _median(octaves, counts.values)
    side = octaves >= median if upper else octaves <= median
    spread = max(1.4826 * _median(np.abs(octaves - median)[side], counts.values[side]), floor)
    edge = float(2.0 ** (median + deviations * spread * (1 if upper else -1)))
    low, high = (None, edge) if upper else (edge, None)
    return Limit(low=low, high=high, unit=unit, median=float(2.0**median), spread=float(2.0**spread))


def _median(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    order = np.argsort(values, kind="stable")
    running = np.cumsum(counts[order])
    return float(values[order[np.searchsorted(running, (running[-1] + 1) // 2)]])


def _outside(values: NDArray[np.floating], limit: Limit) -> NDArray[np.bool_]:
    """Return which values (G,) are refused; NaN compares as false, and infinite is above all."""
    outside = np.zeros(len(values), dtype=bool)
    if limit.low is not None:
        outside |= values < limit.low
    if limit.high is not None:
        outside |= values > limit.high
    return outside


def _equations(table: Table, kept: NDArray[np.bool_]) -> NormalEquations:
    """Return the normal equations of a part's training structures that are kept and have an energy."""
    chosen = np.flatnonzero(_fitted(table, kept))
    equations = NormalEquations()
    for first in range(0, len(chosen), _SLICE):
        some = table.rows[chosen[first : first + _SLICE]]
        equations = equations.merge(
            NormalEquations.of(table.formulas[some["formula"]].astype(np.float64), some["energy"])
        )
    return equations


def _fitted(table: Table, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which structures (G,) the reference is fitted to."""
    fitted: NDArray[np.bool_] = kept & (table.rows["split"] == 0) & np.isfinite(table.rows["energy"])
    return fitted


def _joined(one: frozenset[int] | None, other: frozenset[int] | None) -> frozenset[int] | None:
    """Return compositions of both, None once they are more than any reference needs."""
    if one is None or other is None:
        return None
    both = one | other
    return both if len(both) <= _COMPOSITIONS_PER_ELEMENT * MAX_Z else None
