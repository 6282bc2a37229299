"""The report on linear energy references: their values, and how far the compositions determine them."""

from collections.abc import Sequence
from typing import Any

from gfm.runtime.pages import Notice, Section, Table, Text
from gfm.runtime.quantities import number
from ingest.report_facts import Facts, Part, named

__all__ = ["reference_sections"]

# A longer table is folded away.
_LONG = 20
# Datasets in the table of reference energies.
_REFERENCES = 32


def reference_sections(facts: Facts) -> list[Section]:
    """Return how well the linear references are determined, and their values."""
    fitted = [part for part in facts.parts if part.entry.reference.num_elements]
    if not fitted:
        return [Section("References", [Notice("No linear energy references were fitted.")])]
    rows = []
    for part in fitted:
        reference = part.entry.reference
        rows.append(
            [part.name, f"{reference.count:,}", str(reference.num_elements), str(reference.rank),
             number(reference.residual_std, 4), ", ".join(reference.unseen) or "none"]
        )  # fmt: skip
    columns = ["dataset", "structures fitted", "elements", "rank", "scatter left (eV/atom)", "unseen elements"]
    blocks: list[Any] = [
        Text(
            "What composition alone explains of the energy: one energy per element and dataset, by least "
            "squares on the training split. Stored energies are the published ones; references are subtracted "
            "on reading."
        ),
        Table(columns, rows, prose=[5], pinned=True),
        *_reference_notices(facts, fitted),
        _reference_values(fitted),
    ]
    return [Section("References", blocks)]


def _reference_notices(facts: Facts, fitted: Sequence[Part]) -> list[Any]:
    notices: list[Any] = []
    deficient = [p.name for p in fitted if p.entry.reference.rank < p.entry.reference.num_elements]
    if deficient:
        notices.append(
            Notice(
                f"The compositions of {named(deficient)} do not determine every element's energy on its own "
                "(rank below the number of elements). Single values are those of least norm and mean little; "
                "their sums over compositions like those fitted are sound. New compositions are not covered."
            )
        )
    unfitted = [p.name for p in facts.parts if p.entry.structures and not p.entry.reference.num_elements]
    if unfitted:
        notices.append(
            Notice(
                f"Without any reference: {named(unfitted)}, of which nothing with an energy is in the "
                "training split. Their energies stay as published."
            )
        )
    if unseen := [part.name for part in fitted if part.entry.reference.unseen]:
        notices.append(
            Notice(
                f"{named(unseen)}: some elements are in no structure of the training split, so they have no "
                "reference (0 eV), and energies of structures with them keep that part of the total energy."
            )
        )
    return notices


def _reference_values(fitted: Sequence[Part]) -> Table:
    from ase.data import atomic_numbers

    shown = sorted(fitted, key=lambda part: -part.entry.structures)[:_REFERENCES]
    shown = [part for part in fitted if part in shown]
    symbols = {symbol for part in shown for symbol in part.entry.reference.values}
    order = sorted(symbols, key=lambda symbol: atomic_numbers[symbol])
    rows = [
        [symbol, *(number(part.entry.reference.values.get(symbol), 3) for part in shown)] for symbol in order
    ]
    caption = "Reference energies, eV/atom"
    if len(shown) < len(fitted):
        caption += f"; the {len(shown)} largest of {len(fitted)} datasets, the others are in manifest.json"
    columns = ["element", *(part.name for part in shown)]
    return Table(columns, rows, caption, folded=len(rows) > _LONG, pinned=True)
