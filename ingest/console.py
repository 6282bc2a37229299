"""What ``gfm ingest`` shows: progress and warnings on stderr, the result on stdout."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gfm.runtime.cluster import batch_script
from gfm.runtime.quantities import byte_count, duration
from ingest.build import build, cluster_of
from ingest.plan import Plan, make_plan, packed_files
from ingest.progress import STAGES, Bars, counted
from ingest.recipe import Recipe
from ingest.status import status_of
from store.manifest import Manifest

__all__ = ["run", "show_plan", "show_status", "watch_status"]

# Reasons of rejects that stand for more than one record.
_WHOLE_FILES = ("truncated-file", "unreadable-file")
_MOST_PARTS = 40  # shown one by one by --dry-run


class _ToConsole(logging.Handler):
    """Log lines beside the bars, not through them."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self.console.print(f"warning: {record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _logged(handler: logging.Handler) -> Iterator[None]:
    """Let a handler alone have the log of ingestion and of what keeps workers of batch systems in number."""
    logs = [logging.getLogger(name) for name in ("ingest", "gfm.runtime.keeper")]
    for log in logs:
        log.addHandler(handler)
        log.propagate = False
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(handler)
            log.propagate = True


def run(recipe: Recipe, as_json: bool) -> None:
    """Build a dataset and show what came out."""
    console = Console(stderr=True)
    watcher = Bars(console)
    handler = _ToConsole(console)
    with watcher.progress, _logged(handler):
        manifest = build(recipe, watcher=watcher)
    if manifest.rejects:
        by_reason = ", ".join(f"{reason} {count:,}" for reason, count in sorted(manifest.rejects.items()))
        total = sum(manifest.rejects.values())
        handler.console.print(
            f"warning: {total:,} records rejected ({by_reason}); each with its reason in "
            f"{recipe.output / 'rejects'}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if lost := sum(manifest.rejects.get(reason, 0) for reason in _WHOLE_FILES):
        handler.console.print(
            f"warning: {lost:,} of them stand for files that end early or cannot be read at all, with all that "
            "should have been in them: get those files anew",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if as_json:
        summary = status_of(recipe.output)
        summary |= {
            "atoms": manifest.atoms,
            "bytes": manifest.bytes,
            "format": manifest.format,
            "splits": manifest.splits.counts,
            "content_hash": manifest.content_hash,
        }
        print(json.dumps(summary))
        return
    _show_result(recipe, manifest, watcher)


def _show_result(recipe: Recipe, manifest: Manifest, watcher: Bars) -> None:
    """Print what is in a finished dataset, and what it took if it was made now."""
    table = Table(title=str(recipe.output), title_justify="left")
    for name in ("dataset", "structures", "atoms", "CPU time", "rejected"):
        left = name in ("dataset", "rejected")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for entry in manifest.datasets:
        timing = manifest.provenance.get("timing", {}).get(entry.name)
        cpu = "" if timing is None else duration(timing["cpu_seconds"])
        counts = f"{entry.structures:,}", f"{entry.atoms:,}"
        table.add_row(entry.name, *counts, cpu, _reasons(entry.rejected))
    Console().print(table)
    size = byte_count(manifest.bytes)
    print(f"{manifest.structures:,} structures, {manifest.atoms:,} atoms, {size} ({manifest.format})")
    print(", ".join(f"{name} {count:,}" for name, count in manifest.splits.counts.items()))
    if (reading := watcher.all).total:
        new = reading.structures - reading.before[0]
        now = reading.latest
        took = f" in {duration(reading.took(now))} ({reading.rate(now):,.0f}/s)" if new else ""
        print(f"{new:,} structures read{took}, {duration(manifest.provenance['seconds'])} in all")
    print(f"content hash {manifest.content_hash}")


def show_plan(recipe: Recipe, as_json: bool) -> None:
    """Say what a recipe would read, without reading it, and the script of a worker's batch job."""
    script = batch_script(cluster_of(recipe))
    packed = packed_files(recipe)
    if packed:
        # What is packed is known only once it is unpacked; the other sources are planned.
        names = {item.dataset for item in packed}
        others = [source for source in recipe.sources if source.name not in names]
        plan = make_plan(recipe.model_copy(update={"sources": others})) if others else None
    else:
        plan = make_plan(recipe)
    if as_json:
        content = {} if plan is None else plan.to_json()
        unpack = [{"dataset": item.dataset, "path": str(item.file)} for item in packed]
        print(json.dumps({**content, "unpack": unpack, "batch_script": script}))
        return
    for item in packed:
        size = byte_count(item.file.stat().st_size)
        print(f"{item.dataset}: {item.file} ({size} packed) is unpacked first, then cut into parts")
    if plan is not None:
        _show_parts(plan)
    if script is not None:
        print(f"\nThe job of a worker, as {recipe.cluster.kind} would get it:\n\n{script}")


def _show_parts(plan: Plan) -> None:
    sources = plan.recipe.sources
    totals = Table(title=f"{counted(len(plan.parts), 'part')} for {plan.recipe.output}", title_justify="left")
    for name in ("dataset", "reader", "parts", "bytes", "bytes of the largest part"):
        totals.add_column(name, justify="left" if name in ("dataset", "reader") else "right")
    for index, source in enumerate(sources):
        sizes = [planned.part.nbytes for planned in plan.parts if planned.source == index]
        totals.add_row(source.name, source.reader, f"{len(sizes):,}", f"{sum(sizes):,}", f"{max(sizes):,}")
    Console().print(totals)
    table = Table()
    for name in ("part", "dataset", "what", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for planned in plan.parts[:_MOST_PARTS]:
        part = planned.part
        table.add_row(planned.name, sources[planned.source].name, escape(part.label), f"{part.nbytes:,}")
    Console().print(table)
    if (more := len(plan.parts) - _MOST_PARTS) > 0:
        print(f"... and {more:,} parts more; --json lists all")


def show_status(status: dict[str, Any], as_json: bool) -> None:
    """Print what `ingest.status.status_of` returned."""
    if as_json:
        print(json.dumps(status))
        return
    Console().print(_status(status))
    if status["state"] == "unfinished":
        print("not running; gfm ingest run with the same recipe goes on", file=sys.stderr)


def watch_status(look: Callable[[], dict[str, Any]], seconds: float = 2.0) -> None:
    """Show a status anew every few seconds, until nothing runs any more."""
    status = look()
    with Live(_status(status), console=Console(), auto_refresh=False) as live:
        while status["state"] == "running":
            time.sleep(seconds)
            status = look()
            live.update(_status(status), refresh=True)


def _status(status: dict[str, Any]) -> Group:
    """Return a status as people read it."""
    parts = status["parts"]
    lines = [f"{status['output']}: {status['state']}, {_share(parts)} parts read"]
    if status["stage"]:
        started = status.get("started")
        ago = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() if started else None
        since = "" if ago is None else f", running for {duration(ago)}"
        lines.append(f"now: {STAGES.get(status['stage'], status['stage'])}{since}")
    if status["dashboard"]:
        lines.append(f"Dask dashboard: {status['dashboard']}")
    table = Table()
    for name in ("dataset", "parts", "structures", "rejected"):
        left = name in ("dataset", "rejected")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for entry in status["datasets"]:
        done = _share(entry["parts"]) if "parts" in entry else "all"
        table.add_row(entry["name"], done, f"{entry['structures']:,}", _reasons(entry["rejected"]))
    if len(status["datasets"]) > 1:
        table.add_section()
        counts = _share(parts), f"{status['structures']:,}"
        table.add_row("total", *counts, f"{sum(status['rejects'].values()):,}")
    return Group(*(Text(line, overflow="fold") for line in lines), table)


def _share(parts: dict[str, int]) -> str:
    percent = f" ({100 * parts['done'] // parts['total']} %)" if parts["total"] else ""
    return f"{parts['done']:,} of {parts['total']:,}{percent}"


def _reasons(rejected: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())) or "none"
