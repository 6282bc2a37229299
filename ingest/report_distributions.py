"""The report on distributions: energies, forces, stress, sizes, distances, and the limits of the filters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gfm.data.moments import Histogram
from gfm.runtime.pages import Group, Notice, Plot, Section, Table, Text
from gfm.runtime.quantities import listed
from ingest.report_facts import Facts, Part, quantile
from ingest.report_figures import Row, Scale, pooled, rows_plot

__all__ = ["distribution_sections"]

# Names of datasets told one by one.
_NAMED = 6
_UNITS = {"eV/angstrom": "eV/Å", "eV/angstrom^3": "eV/Å³", "angstrom": "Å"}
_ZEROS = "Zeros are in the leftmost bar."


@dataclass(frozen=True)
class _Shown:
    """One histogram of the statistics as a figure.

    Attributes:
        key: Its key.
        scale: How the axis runs.
        label: Label of the axis, with the unit; ``{cutoff}`` stands for the cutoff of neighbours.
        what: What is counted, for captions.
        title: Makes a sentence from the pooled histogram.
        fallback: Title where that sentence cannot be made.
        limit: Name of the filter whose limits are drawn.
        note: A sentence for the caption.
    """

    key: str
    scale: Scale
    label: str
    what: str
    title: Callable[[Histogram], str | None]
    fallback: str
    limit: str = ""
    note: str = ""


def _half(sentence: str) -> Callable[[Histogram], str | None]:
    """Return a maker of sentences that name the median."""

    def title(histogram: Histogram) -> str | None:
        middle = quantile(histogram, 0.5)
        return None if middle is None else sentence.format(_short(middle))

    return title


def _between(sentence: str, low: float, high: float) -> Callable[[Histogram], str | None]:
    """Return a maker of sentences that name two quantiles."""

    def title(histogram: Histogram) -> str | None:
        first, last = quantile(histogram, low), quantile(histogram, high)
        return None if first is None or last is None else sentence.format(_short(first), _short(last))

    return title


_SHOWN = (
    _Shown(
        "energy_per_atom_histogram", "signed", "energy per atom, as published (eV)", "structures",
        _between("As published, 90 % of energies lie in {} … {} eV/atom", 0.05, 0.95),
        "Energies per atom as published",
    ),
    _Shown(
        "energy_residual_histogram", "signed", "energy per atom less its linear reference (eV)", "structures",
        _between("After referencing, 90 % lie in {} … {} eV/atom", 0.05, 0.95),
        "Energies per atom after referencing", "energy-residual",
    ),
    _Shown(
        "force_histogram", "log", "|F| of an atom (eV/Å)", "atoms",
        _half("Half of all atoms feel less than {} eV/Å"), "Forces on atoms", note=_ZEROS,
    ),
    _Shown(
        "largest_force_histogram", "log", "largest |F| of a structure (eV/Å)", "structures",
        _half("Half of the structures stay below {} eV/Å on every atom"), "Largest forces", "largest-force",
        _ZEROS,
    ),
    _Shown(
        "num_atoms_histogram", "log", "atoms in a structure", "structures",
        _half("Half of the structures have at most {} atoms"), "Sizes of structures",
    ),
    _Shown(
        "neighbors_histogram", "linear", "neighbours of an atom within {cutoff:g} Å, mean of a structure",
        "structures",
        _half("An atom typically has {} neighbours"), "Neighbours per atom",
    ),
    _Shown(
        "shortest_distance_histogram", "linear", "shortest distance in a structure (Å)", "structures",
        _half("Half of the structures have no two atoms within {} Å"), "Shortest distances",
        "shortest-distance",
    ),
    _Shown(
        "stress_histogram", "log", "largest |component| of the stress (eV/Å³)", "structures",
        _half("Half of the stresses stay below {} eV/Å³"), "Stress", "largest-stress", _ZEROS,
    ),
)  # fmt: skip


def distribution_sections(facts: Facts) -> list[Section]:
    """Return the figures in pairs, and a sentence on what is missing."""
    plots: list[Plot] = []
    absent = []
    for shown in _SHOWN:
        plot = _plot(facts, shown)
        if plot is None:
            absent.append(shown.fallback.lower())
        else:
            plots.append(plot)
    blocks: list[Any] = []
    if plots:
        blocks.append(
            Text(
                "One row for each dataset, each scaled to its own highest bar. The line below the bars reaches "
                "as far as there is any value, the dot is the median, and thick vertical lines are limits of "
                "robust filters: what lay beyond was refused. Limits far from all values are in the table only."
            )
        )
        blocks += [Group(plots[i : i + 2]) for i in range(0, len(plots), 2)]
    if limits := _limit_rows(facts):
        columns = ["dataset", "filter", "lowest", "highest", "median", "robust deviation", "unit"]
        blocks.append(Table(columns, limits, "Limits of the robust filters", folded=True, pinned=True))
    if absent:
        blocks.append(
            Notice(
                f"Left out, because the dataset has no such values or was made before they were counted: "
                f"{listed(absent)}."
            )
        )
    return [Section("Distributions", blocks)]


def _plot(facts: Facts, shown: _Shown) -> Plot | None:
    rows, without = [], []
    for part in facts.parts:
        histogram = part.histogram(shown.key)
        # Where no reference was fitted, a residual is the energy as it was.
        fitted = part.entry.reference.num_elements or shown.limit != "energy-residual"
        if histogram is None or not fitted:
            without += [part.name] if part.entry.structures else []
        else:
            rows.append(Row(part.name, histogram, *_limits(part, shown.limit)))
    if not rows:
        return None
    every = pooled(rows)
    title = (shown.title(every) if every is not None else None) or shown.fallback
    return rows_plot(
        rows,
        scale=shown.scale,
        title=title,
        label=shown.label.format(cutoff=facts.manifest.edges_cutoff),
        caption=_caption(shown, rows, without, every),
    )


def _caption(shown: _Shown, rows: Sequence[Row], without: Sequence[str], every: Histogram | None) -> str:
    total = sum(row.total for row in rows)
    caption = f"{shown.fallback}: {total:,} {shown.what}.{shown.note and ' ' + shown.note}"
    if without:
        names = listed(without) if len(without) <= _NAMED else f"{len(without)} datasets"
        caption += f" Without: {names}."
    if every is not None and (outside := every.below + every.above):
        caption += f" {outside:,} values lie outside of the bins and are drawn in the outermost."
    return caption


def _limits(part: Part, name: str) -> tuple[float | None, float | None]:
    limits = (part.statistics.get("limits") or {}).get(name) or {}
    return limits.get("low"), limits.get("high")


def _limit_rows(facts: Facts) -> list[list[str]]:
    return [
        [part.name, name, *(_exact(limit.get(key)) for key in ("low", "high", "median", "spread")),
         _UNITS.get(limit.get("unit", ""), limit.get("unit", ""))]
        for part in facts.parts
        for name, limit in (part.statistics.get("limits") or {}).items()
    ]  # fmt: skip


def _exact(value: float | None) -> str:
    """Return a number with four digits, or all of a large one; a dash for no limit."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _short(value: float) -> str:
    """Return a number with few digits: titles say what is seen, tables say it exactly."""
    rounded = float(f"{value:.2g}") if abs(value) < 100 else float(f"{value:.3g}")
    return f"{rounded:,.12g}".replace("-", "−")
