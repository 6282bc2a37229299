"""The report on what the ingestion cost and what it was made from."""

import json
from typing import Any

import yaml

from gfm.runtime.pages import Bar, Cell, Code, Notice, Section, Table, Text
from gfm.runtime.quantities import byte_count, duration, number
from ingest.report_facts import Facts, percent

__all__ = ["provenance_sections", "work_sections"]

_FILES = 50
# Bytes; a larger plan is not opened for its list of files.
_MAX_PLAN = 64 << 20
# Lines of a recipe that are shown without being asked for.
_RECIPE = 60


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
    table = Table(columns, rows, strong=[len(rows) - 1], pinned=True)
    return [Section("Work", [Text(f"{'; '.join(told)}."), table])]


def _work_row(name: str, structures: int, timing: Any, whole: float) -> list[Cell]:
    seconds, nbytes = timing.get("cpu_seconds"), timing.get("bytes")
    share = (seconds or 0.0) / whole if whole else 0.0
    return [
        name,
        number(seconds, 2 if whole < 100 else 1 if whole < 1e5 else 0),
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
        long = text.count("\n") > _RECIPE
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
