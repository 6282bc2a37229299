"""The report on elements: a periodic table of how many structures contain each, for all and for one dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

from gfm.data.moments import Moments
from gfm.runtime.pages import ElementTable, Fragment, Notice, Section, Table, Text
from gfm.runtime.quantities import listed, number
from ingest.report_facts import Facts, Part, percent

__all__ = ["element_sections"]

_TEMPLATE = Path(__file__).with_name("report_elements.html")
_CLASSES = 10
# Datasets named in the text of one element.
_NAMED = 5


def element_sections(facts: Facts) -> list[Section]:
    """Return the periodic table and the same as a table of numbers."""
    counted = [part for part in facts.parts if part.statistics.get("elements")]
    if not counted:
        return [Section("Elements", [Notice("The dataset was made before elements were counted.")])]
    rare = [symbol for symbol, count in facts.elements.items() if count < 10]
    told = f"{len(facts.elements)} of 118 elements occur"
    if rare:
        told += (
            f"; fewer than ten structures contain {listed(rare) if len(rare) <= 12 else f'{len(rare)} of them'}"
        )
    table = Fragment(_TEMPLATE, _values(facts, counted))
    return [Section("Elements", [Text(f"{told}."), table, _numbers(facts, counted)])]


def _values(facts: Facts, counted: Sequence[Part]) -> dict[str, Any]:
    from ase.data import atomic_names, chemical_symbols

    bounds = _bounds(max(facts.elements.values()))
    cells = []
    for number_, place in enumerate(ElementTable(facts.elements, "").cells, start=1):
        symbol, count = place["symbol"], place["count"]
        cells.append(
            {
                "symbol": chemical_symbols[number_],
                "number": number_,
                "name": atomic_names[number_],
                "row": place["row"],
                "column": place["column"],
                "short": _short(count),
                "grade": _grade(count, bounds),
                "text": _text(facts, counted, symbol),
            }
        )
    return {
        "cells": cells,
        "bounds": bounds,
        "legend": _legend(bounds),
        "colours": _colours(len(bounds)),
        "names": [part.name for part in counted],
        "data": [
            {
                "structures": part.entry.structures,
                "elements": {
                    symbol: [entry["structures"], entry["atoms"], _mean_force([entry])]
                    for symbol, entry in part.statistics["elements"].items()
                },
            }
            for part in counted
        ],
        "caption": f"Structures that contain each element, of {facts.manifest.structures:,}",
    }


def _bounds(most: int) -> list[int]:
    """Return where the classes of the legend begin: decades, or half decades where those are enough."""
    halves = [factor * 10**step for step in range(_CLASSES) for factor in (1, 3)]
    for steps in (halves, [10**step for step in range(20)]):
        bounds = [step for step in steps if step <= most]
        if len(bounds) <= _CLASSES:
            return bounds
    return [10**step for step in range(_CLASSES)]


def _grade(count: int, bounds: Sequence[int]) -> int:
    """Return the class of a count: 0 for none."""
    return sum(count >= bound for bound in bounds)


def _legend(bounds: Sequence[int]) -> list[str]:
    ends = [f"{low:,}–{high - 1:,}" if high - 1 > low else f"{low:,}" for low, high in pairwise(bounds)]
    return [*ends, f"{bounds[-1]:,} and more"]


def _colours(count: int) -> list[dict[str, str]]:
    """Return background and ink of the classes on a light and on a dark page.

    Lightness falls (on a dark page: rises) evenly with the class, so that the order is seen without hues.
    """
    import matplotlib
    from matplotlib.colors import to_hex

    ramp = matplotlib.colormaps["YlGnBu"]
    colours = []
    for place in range(count):
        share = place / max(1, count - 1)
        light, dark = ramp(0.10 + 0.85 * share), ramp(0.93 - 0.85 * share)
        colours.append(
            {
                "light": to_hex(light),
                "light_ink": _ink(light),
                "dark": to_hex(dark),
                "dark_ink": _ink(dark),
            }
        )
    return colours


def _ink(colour: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111827" if luminance > 0.18 else "#ffffff"


def _text(facts: Facts, counted: Sequence[Part], symbol: str) -> str:
    """Return what is known of an element, line by line."""
    entries = _entries(counted, symbol)
    structures = sum(entry["structures"] for entry in entries.values())
    if not structures:
        return "in no structure"
    lines = [
        f"{structures:,} structures ({percent(structures, facts.manifest.structures)})",
        f"{sum(entry['atoms'] for entry in entries.values()):,} atoms",
    ]
    if (force := _mean_force(list(entries.values()))) is not None:
        lines.append(f"mean |F| {force:.3g} eV/Å")
    if len(counted) > 1:
        order = sorted(entries.items(), key=lambda item: -item[1]["structures"])
        shares = [f"{name} {percent(entry['structures'], structures)}" for name, entry in order[:_NAMED]]
        if more := len(order) - _NAMED:
            shares += [f"{more} more"] if more > 0 else []
        lines.append(f"in {', '.join(shares)}")
    return "\n".join(lines)


def _short(count: int) -> str:
    """Return a count in the few letters that a cell has room for; nothing for none."""
    for size, digits, letter in ((1_000_000, 1, "M"), (10_000, 0, "k"), (1_000, 1, "k")):
        if count >= size:
            return f"{count / (1e6 if letter == 'M' else 1e3):.{digits}f}{letter}"
    return str(count) if count else ""


def _entries(counted: Sequence[Part], symbol: str) -> dict[str, Mapping[str, Any]]:
    found = {part.name: part.statistics["elements"].get(symbol) for part in counted}
    return {name: entry for name, entry in found.items() if entry and entry["structures"]}


def _mean_force(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean force on an element's atoms, eV/angstrom; None where none are stated."""
    moments = [Moments.from_json(entry["force_norm"]) for entry in entries if entry.get("force_norm")]
    total = reduce(Moments.merge, moments, Moments())
    return float(f"{total.mean:.4g}") if total.count else None


def _numbers(facts: Facts, counted: Sequence[Part]) -> Table:
    from ase.data import atomic_names, atomic_numbers

    datasets = Counter(symbol for part in counted for symbol in part.statistics["elements"])
    rows = []
    for symbol, structures in sorted(facts.elements.items(), key=lambda item: -item[1]):
        entries = list(_entries(counted, symbol).values())
        atoms = sum(entry["atoms"] for entry in entries)
        z = atomic_numbers[symbol]
        rows.append(
            [symbol, atomic_names[z], str(z), f"{structures:,}", percent(structures, facts.manifest.structures),
             f"{atoms:,}", percent(atoms, facts.manifest.atoms), number(_mean_force(entries), 3),
             str(datasets[symbol])]
        )  # fmt: skip
    columns = [
        "symbol", "element", "Z", "structures", "of structures", "atoms", "of atoms", "mean |F| (eV/Å)",
        "datasets",
    ]  # fmt: skip
    return Table(columns, rows, "The same in numbers, by structures", folded=True, pinned=True)
