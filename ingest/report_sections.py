"""Sections of the report that are tables: datasets, references, splits, work and provenance."""

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import yaml

from gfm.data.splits import SPLITS
from gfm.runtime.pages import Bar, Cell, Code, Link, Notice, Section, Table, Text
from gfm.runtime.quantities import byte_count, duration, listed, number
from ingest.report_facts import Facts, Part, percent

__all__ = [
    "dataset_sections",
    "provenance_sections",
    "reference_sections",
    "split_sections",
    "work_sections",
]

# Tables longer than this scroll in themselves.
_TALL = 20
# Datasets in the table of reference energies.
_REFERENCES = 32
_FILES = 50
# Bytes; a larger plan is not opened for its list of files.
_MAX_PLAN = 64 << 20


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
    blocks: list[Any] = [Table(columns, rows, strong=[len(rows) - 1], pinned=len(rows) > _TALL)]
    if empty := [part.name for part in facts.parts if not part.entry.structures]:
        blocks.append(Notice(f"Not one structure was accepted of {listed(empty)}; Rejects says why."))
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
    return Table(columns, rows, caption, prose=[1, 5], pinned=len(rows) > _TALL)


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
        Table(columns, rows, prose=[5], pinned=len(rows) > _TALL),
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
                f"The compositions of {_named(deficient)} do not determine every element's energy on its own "
                "(rank below the number of elements). Single values are those of least norm and mean little; "
                "their sums over compositions like those fitted are sound. New compositions are not covered."
            )
        )
    unfitted = [p.name for p in facts.parts if p.entry.structures and not p.entry.reference.num_elements]
    if unfitted:
        notices.append(
            Notice(
                f"Without any reference: {_named(unfitted)}, of which nothing with an energy is in the "
                "training split. Their energies stay as published."
            )
        )
    if unseen := [part.name for part in fitted if part.entry.reference.unseen]:
        notices.append(
            Notice(
                f"{_named(unseen)}: some elements are in no structure of the training split, so they have no "
                "reference (0 eV), and energies of structures with them keep that part of the total energy."
            )
        )
    return notices


def _named(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= 12 else f"{listed(names[:10])} and {len(names) - 10} more"


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
    return Table(columns, rows, caption, folded=len(rows) > _TALL, pinned=True)


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
        Table(columns, rows, strong=[len(rows) - 1], pinned=len(rows) > _TALL),
    ]
    if absent:
        blocks.append(
            Notice(
                f"Splits that got nothing: {_named(absent)}. Their groups are too few; another seed, or a "
                "finer group where that is sound, spreads them."
            )
        )
    return [Section("Splits", blocks)]


def _shares(counts: dict[str, int], total: int) -> list[Cell]:
    values = [counts.get(name, 0) for name in SPLITS]
    cells: list[Cell] = [text for count in values for text in (f"{count:,}", percent(count, total))]
    label = ", ".join(f"{name} {percent(count, total)}" for name, count in zip(SPLITS, values, strict=True))
    return [*cells, Bar([count / max(1, total) for count in values], label)]


def work_sections(facts: Facts) -> list[Section]:
    """Return what the ingestion cost, by dataset."""
    timed = [part for part in facts.parts if part.timing]
    seconds = facts.seconds
    told = []
    if seconds:
        told.append(
            f"The run took {duration(seconds)} of wall time: {facts.manifest.structures / seconds:,.0f} "
            "structures a second"
        )
    if not timed:
        lacking = "CPU seconds by dataset were not written down when this dataset was made."
        return [Section("Work", [Text(f"{told[0]}.")] * bool(told) + [Notice(lacking)])]
    cpu = sum(part.timing.get("cpu_seconds") or 0.0 for part in timed)
    nbytes = sum(part.timing.get("bytes") or 0 for part in timed)
    parts = sum(part.timing.get("parts") or 0 for part in timed)
    told.append(f"{duration(cpu)} of CPU time in {parts:,} parts, for {byte_count(nbytes)} of raw files")
    rows: list[list[Cell]] = [
        _work_row(part.name, part.entry.structures, part.timing, cpu) for part in facts.parts if part.timing
    ]
    whole = {"cpu_seconds": cpu, "bytes": nbytes, "parts": parts}
    rows.append(_work_row("all", facts.manifest.structures, whole, cpu))
    columns = [
        "dataset", "CPU (s)", "of all CPU time", "structures / CPU s", "raw files", "MB / CPU s", "parts",
    ]  # fmt: skip
    table = Table(columns, rows, strong=[len(rows) - 1], pinned=len(rows) > _TALL)
    return [Section("Work", [Text(f"{'; '.join(told)}."), table])]


def _work_row(name: str, structures: int, timing: Any, whole: float) -> list[Cell]:
    seconds, nbytes = timing.get("cpu_seconds"), timing.get("bytes")
    share = (seconds or 0.0) / whole if whole else 0.0
    return [
        name,
        number(seconds, 1),
        Bar([share], percent(share, 1)),
        number(structures / seconds if seconds else None, 0),
        "–" if nbytes is None else byte_count(nbytes),
        number(nbytes / seconds / 1e6 if seconds and nbytes is not None else None, 1),
        "–" if timing.get("parts") is None else f"{timing['parts']:,}",
    ]


def provenance_sections(facts: Facts) -> list[Section]:
    """Return what made the dataset: versions, recipe, files."""
    facts_of = facts.provenance
    packages = facts_of.get("packages") or {}
    manifest = facts.manifest
    known = {
        "dataset": str(facts.path),
        "content hash": manifest.content_hash,
        "format": f"{manifest.format}, version {manifest.format_version}",
        "shards": _shard_sizes(facts),
        "fields": ", ".join(manifest.fields),
        "begun": facts_of.get("started"),
        "finished": facts_of.get("finished") or facts_of.get("time"),
        "gfm": _code(facts_of),
        "host": _host(facts_of),
        "python": facts_of.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        "command": " ".join(facts_of.get("argv") or []),
        "plan": facts_of.get("plan"),
        "parts": facts_of.get("parts"),
    }
    rows = [[name, str(value)] for name, value in known.items() if value not in (None, "")]
    blocks: list[Any] = [Table(["what", "value"], rows, prose=[1])]
    if recipe := facts_of.get("recipe"):
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
        long = text.count("\n") > 60
        blocks.append(Code(text, f"The recipe, {text.count(chr(10)):,} lines" if long else ""))
    return [Section("Provenance", [*blocks, *_raw_files(facts)])]


def _code(made: Any) -> str | None:
    if not made.get("version"):
        return None
    return f"{made['version']}, commit {made.get('git') or 'unknown'}"


def _host(made: Any) -> str | None:
    return f"{made['host']} ({made.get('platform', 'unknown system')})" if made.get("host") else None


def _shard_sizes(facts: Facts) -> str:
    sizes = sorted(shard.bytes for shard in facts.manifest.shards)
    if not sizes:
        return "none"
    spread = f" of {byte_count(sizes[0])} to {byte_count(sizes[-1])}" if len(sizes) > 1 else ""
    return f"{len(sizes):,}{spread}, {byte_count(facts.bytes)} in all"


def _raw_files(facts: Facts) -> list[Any]:
    """Return the raw files by size, as far as the plan of the ingestion is still there."""
    plan = facts.path / "build" / "plan.json"
    if not plan.is_file() or plan.stat().st_size > _MAX_PLAN:
        return []
    files = json.loads(plan.read_bytes()).get("files") or {}
    if not files:
        return []
    largest = sorted(files.items(), key=lambda item: (-item[1], item[0]))[:_FILES]
    rows = [[path, byte_count(count)] for path, count in largest]
    caption = f"Raw files: {len(files):,}, {byte_count(sum(files.values()))}"
    if len(files) > _FILES:
        caption += f"; the {_FILES} largest"
    return [Table(["file", "size"], rows, caption, folded=True, prose=[0])]
