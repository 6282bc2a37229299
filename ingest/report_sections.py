"""Sections of the report on what the datasets are and how they are split."""

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from gfm.data.splits import SPLITS
from gfm.runtime.pages import Bar, Cell, Link, Notice, Section, Table, Text
from gfm.runtime.quantities import number
from ingest.report_facts import Facts, Part, named, percent

__all__ = ["dataset_sections", "split_sections"]


def dataset_sections(facts: Facts) -> list[Section]:
    """Return how much of each dataset there is, and what it is."""
    rows: list[list[Cell]] = []
    for part in facts.parts:
        entry = part.entry
        rows.append(
            [part.name, f"{entry.structures:,}", percent(entry.structures, facts.manifest.structures),
             f"{entry.atoms:,}", number(entry.atoms / entry.structures if entry.structures else None, 1),
             *_split_counts(part), f"{part.rejected:,}", percent(part.rejected, part.seen)]
        )  # fmt: skip
    manifest = facts.manifest
    counts = [f"{manifest.splits.counts.get(name, 0):,}" for name in SPLITS]
    rows.append(
        ["all", f"{manifest.structures:,}", "", f"{manifest.atoms:,}",
         number(manifest.atoms / manifest.structures if manifest.structures else None, 1), *counts,
         f"{facts.rejected:,}", percent(facts.rejected, manifest.structures + facts.rejected)]
    )  # fmt: skip
    columns = [
        "dataset", "structures", "of all", "atoms", "atoms each", *SPLITS, "rejected", "of its records",
    ]  # fmt: skip
    blocks: list[Any] = [Table(columns, rows, strong=[len(rows) - 1], pinned=True)]
    if empty := [part.name for part in facts.parts if not part.entry.structures]:
        blocks.append(Notice(f"Not one structure was accepted of {named(empty)}; Rejects says why."))
    blocks.append(_origins(facts))
    theories = {part.entry.theory for part in facts.parts if part.entry.theory and part.entry.structures}
    if len(theories) > 1:
        blocks.append(
            Text(
                f"The labels are of {len(theories)} levels of theory, so total energies of different datasets "
                "cannot be compared; each dataset has linear reference energies of its own."
            )
        )
    return [Section("Datasets", blocks)]


def _origins(facts: Facts) -> Table:
    folder = _common_folder([part.entry.source for part in facts.parts])
    rows: list[list[Cell]] = [
        [part.name, part.entry.theory or "–", part.entry.energy_kind or "–", part.entry.licence or "–",
         _doi(part.entry.doi), part.entry.source.removeprefix(folder) or "–"]
        for part in facts.parts
    ]  # fmt: skip
    columns = ["dataset", "level of theory", "energy", "licence", "DOI", "read from"]
    caption = "What the labels are and where they come from" + (f"; files are below {folder}" if folder else "")
    return Table(columns, rows, caption, prose=[1, 5], pinned=True)


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths lie in, with its last slash; empty where that says nothing."""
    if len(paths) < 2 or not all(path.startswith("/") for path in paths):
        return ""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return f"{folder}/" if folder != "/" else ""


def _split_counts(part: Part) -> list[str]:
    splits = part.statistics.get("splits")
    return [f"{splits.get(name, 0):,}" if splits else "–" for name in SPLITS]


def _doi(doi: str) -> Cell:
    name = doi.removeprefix("https://doi.org/").removeprefix("doi:")
    return Link(name, f"https://doi.org/{quote(name)}") if name.startswith("10.") else doi or "–"


def split_sections(facts: Facts) -> list[Section]:
    """Return counts and shares by split, asked for and reached."""
    splits = facts.manifest.splits
    total = sum(splits.counts.values())
    asked = ", ".join(f"{name} {percent(share, 1)}" for name, share in splits.fractions.items())
    rows: list[list[Cell]] = []
    absent = []
    for part in facts.parts:
        counts = part.statistics.get("splits")
        if not counts or not part.entry.structures:
            continue
        rows.append([part.name, *_shares(counts, part.entry.structures)])
        lacking = [n for n in SPLITS if splits.fractions.get(n) and not counts.get(n)]
        absent += [f"{part.name} (no {' and no '.join(lacking)})"] if lacking else []
    rows.append(["all", *_shares(splits.counts, total)])
    columns = ["dataset", *(text for name in SPLITS for text in (name, "share")), "train | validation | test"]
    blocks: list[Any] = [
        Text(
            f"Asked for: {asked or 'not stated'}. Structures of one group, which is a formula, molecule, "
            "system or material as its reader says, are never torn apart: a hash of the group with seed "
            f"{splits.seed} decides. Shares are of groups, so those of structures come near them only where "
            "groups are many and small."
        ),
        Table(columns, rows, strong=[len(rows) - 1], pinned=True),
    ]
    if absent:
        blocks.append(
            Notice(
                f"Splits that got nothing: {named(absent)}. Their groups are too few; another seed, or a "
                "finer group where that is sound, spreads them."
            )
        )
    return [Section("Splits", blocks)]


def _shares(counts: dict[str, int], total: int) -> list[Cell]:
    values = [counts.get(name, 0) for name in SPLITS]
    cells: list[Cell] = [text for count in values for text in (f"{count:,}", percent(count, total))]
    label = ", ".join(f"{name} {percent(count, total)}" for name, count in zip(SPLITS, values, strict=True))
    return [*cells, Bar([count / max(1, total) for count in values], label)]
