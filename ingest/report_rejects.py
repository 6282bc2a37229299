"""The report on rejects: how many, of which dataset, why, with examples that bring a reader to the record."""

import json
from pathlib import Path
from typing import Any

from gfm.runtime.pages import Bar, Cell, Notice, Section, Table, Text
from ingest.report_facts import Facts, percent
from ingest.report_reasons import meaning

__all__ = ["examples_of", "reject_sections"]

# Examples shown of each dataset and reason.
_EXAMPLES = 3
# The folder may hold ten million lines: so many are looked at, and so many of one file.
_MAX_LINES = 200_000
_MAX_FILE_LINES = 20_000
# Lines of a file in which nothing is found that is still wanted, before the next file is looked at.
_PATIENCE = 20
_LINE = 1 << 16  # bytes; a longer line is no line of ours
# Rows shown of the tables that grow with the number of datasets.
_ROWS = 400


def reject_sections(facts: Facts) -> list[Section]:
    """Return counts by reason, by dataset and reason, and examples."""
    if not facts.rejected:
        return [Section("Rejects", [Text("No record was refused: every record of the files was stored.")])]
    seen = facts.manifest.structures + facts.rejected
    told = Text(
        f"{facts.rejected:,} of {seen:,} records were refused ({percent(facts.rejected, seen)}). Every one of "
        "them, with its source and value, is in the folder rejects of the dataset."
    )
    sections = [Section("Rejects", [told, _by_reason(facts)])]
    sections.append(Section("Rejects by dataset", [_by_dataset(facts)], level=3))
    return [*sections, Section("Examples of rejects", _examples(facts), level=3)]


def _by_reason(facts: Facts) -> Table:
    counts = sorted(facts.manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    most = max(count for _, count in counts)
    rows: list[list[Cell]] = [
        [reason, f"{count:,}", percent(count, facts.rejected),
         Bar([count / most], f"{percent(count, facts.rejected)} of the rejects"), meaning(reason)]
        for reason, count in counts
    ]  # fmt: skip
    return Table(["reason", "records", "share", "of all rejects", "what it means"], rows, prose=[4])


def _by_dataset(facts: Facts) -> Table:
    rows: list[list[Any]] = []
    for part in facts.parts:
        for reason, count in sorted(part.entry.rejected.items(), key=lambda item: (-item[1], item[0])):
            share = percent(count, part.seen)
            bar = Bar([count / part.seen], f"{share} of the records of {part.name}")
            rows.append([part.name, reason, f"{count:,}", share, bar])
    caption = "Share of the records of each dataset"
    if len(rows) > _ROWS:
        rows.sort(key=lambda row: -int(row[2].replace(",", "")))
        caption += f"; the {_ROWS} largest of {len(rows)} rows, the others are in manifest.json"
        rows = rows[:_ROWS]
    columns = ["dataset", "reason", "records", "share", "of the dataset's records"]
    return Table(columns, rows, caption, pinned=True)


def _examples(facts: Facts) -> list[Any]:
    wanted = {
        (part.name, reason): min(_EXAMPLES, count)
        for part in facts.parts
        for reason, count in part.entry.rejected.items()
        if count > 0
    }
    found, complete = examples_of(facts.path / "rejects", wanted)
    rows = [
        [name, reason, value or "–", source]
        for (name, reason) in wanted
        for source, value in found.get((name, reason), [])
    ]
    blocks: list[Any] = []
    if not complete:
        lacking = sum(key not in found for key in wanted)
        blocks.append(
            Notice(
                f"For {lacking} of {len(wanted)} pairs of dataset and reason no example was found in what was "
                f"looked at, at most {_MAX_LINES:,} lines; look into the folder rejects for them."
                if lacking
                else "Fewer examples than there are records were found in the folder rejects."
            )
        )
    if rows:
        caption = f"Up to {_EXAMPLES} examples of each dataset and reason"
        if len(rows) > _ROWS:
            caption += f", the first {_ROWS} of {len(rows)}"
        columns = ["dataset", "reason", "value", "source"]
        blocks.append(Table(columns, rows[:_ROWS], caption, folded=len(rows) > 9, prose=[2, 3], pinned=True))
    return blocks


def examples_of(
    folder: Path, wanted: dict[tuple[str, str], int]
) -> tuple[dict[tuple[str, str], list[tuple[str, str]]], bool]:
    """Return examples of rejects, reading no more of the folder than needed, and never much of it.

    Args:
        folder: The dataset's folder of rejects.
        wanted: How many examples of each dataset and reason.

    Returns:
        (source, value) of the examples by dataset and reason, and whether there are as many as wanted.
    """
    missing = dict(wanted)
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    files = sorted(folder.glob("*.jsonl"))
    # A file is mostly of one dataset: first the beginning of each, so that all datasets get their turn.
    for patience in (_PATIENCE, _MAX_FILE_LINES):
        budget = _MAX_LINES
        for path in files:
            if not missing or budget <= 0:
                break
            budget -= _look_through(path, missing, found, min(budget, _MAX_FILE_LINES), patience)
    return found, not missing


def _look_through(
    path: Path,
    missing: dict[tuple[str, str], int],
    found: dict[tuple[str, str], list[tuple[str, str]]],
    most: int,
    patience: int,
) -> int:
    """Move examples of one file from missing to found; stop after so many lines, or so many in vain."""
    looked = vain = 0
    with path.open("rb") as file:
        while missing and looked < most and vain < patience and (line := file.readline(_LINE)):
            looked, vain = looked + 1, vain + 1
            record = _record(line)
            key = str(record.get("dataset")), str(record.get("reason"))
            example = str(record.get("source")), str(record.get("value"))
            if key in missing and example not in found.get(key, []):
                vain = 0
                found.setdefault(key, []).append(example)
                missing[key] -= 1
                if not missing[key]:
                    del missing[key]
    return looked


def _record(line: bytes) -> dict[str, Any]:
    """Return what a line says; nothing for one that is torn, which is another tool's to report."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
