"""What ``gfm ingest`` shows: progress and warnings on stderr, the result on stdout."""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gfm.runtime.cluster import batch_script
from gfm.runtime.quantities import byte_count
from ingest.build import Watcher, build
from ingest.part import PartDone
from ingest.plan import Plan, PlannedPart, make_plan, packed_files
from ingest.recipe import Recipe
from ingest.status import status_of

if TYPE_CHECKING:
    from store.manifest import Manifest

__all__ = ["run", "show_plan", "show_status"]

# Reasons of rejects that stand for more than one record.
_WHOLE_FILES = ("truncated-file", "unreadable-file")
# What the stages of `ingest.build` do, for people.
_STAGES = {
    "unpacking": "unpacking files",
    "duplicates": "looking for duplicates",
    "survey": "surveying forces, stresses, distances",
    "residuals": "looking for energy outliers",
    "references": "fitting reference energies",
    "writing": "writing shards",
}
_MOST_PARTS = 40  # shown one by one by --dry-run


class _Progress(Watcher):
    """A bar for each dataset and stage on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.console = console
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bars: dict[int, TaskID] = {}
        self.parts: dict[int, list[int]] = {}  # by source: read, in all, and structures of before and in all
        self.structures: dict[int, list[int]] = {}
        self.done = self.total = self.said = 0
        self.began = time.monotonic()

    def complete(self, manifest: "Manifest") -> None:
        """Say that there is nothing to do."""
        self._say("already complete: nothing to do")

    def waiting(self, what: str) -> None:
        """Say what the batch system is waited for."""
        self._say(what)

    def planned(self, plan: Plan, read: Sequence[PartDone]) -> None:
        """Set up the bars."""
        self.total, self.done, self.began = len(plan.parts), len(read), time.monotonic()
        names = [source.name for source in plan.recipe.sources]
        nbytes = [0] * len(names)
        read_bytes = [0] * len(names)
        for index in range(len(names)):
            self.parts[index], self.structures[index] = [0, 0], [0, 0]
        for planned in plan.parts:
            nbytes[planned.source] += planned.part.nbytes
            self.parts[planned.source][1] += 1
        for done in read:
            planned = plan.parts[int(done.name)]
            read_bytes[planned.source] += planned.part.nbytes
            self.parts[planned.source][0] += 1
            self.structures[planned.source] = [
                count + done.structures for count in self.structures[planned.source]
            ]
        for index, name in enumerate(names):
            self.bars[index] = self.progress.add_task(
                escape(name), total=nbytes[index], completed=read_bytes[index], said=self._counts(index)
            )
        again = f", {self.done} of them read before" if read else ""
        self._say(f"{self.total:,} parts from {len(names)} sources{again}")

    def started(self, dashboard: str | None) -> None:
        """Say where the dashboard is."""
        if dashboard:
            self._say(f"Dask dashboard: {dashboard}")

    def part_read(self, planned: PlannedPart, done: PartDone) -> None:
        """Advance a bar; without a terminal, print each twentieth of the way."""
        self.done += 1
        self.parts[planned.source][0] += 1
        self.structures[planned.source][1] += done.structures
        self.progress.update(
            self.bars[planned.source], advance=planned.part.nbytes, said=self._counts(planned.source)
        )
        if not self.console.is_terminal and 20 * self.done // self.total > 20 * self.said // self.total:
            self.said = self.done
            structures = sum(count for _, count in self.structures.values())
            self._say(f"{self.done:,} of {self.total:,} parts, {structures:,} structures")

    def stage(self, name: str, total: int) -> Callable[[], None]:
        """Show a bar for a stage; without a terminal, say that it begins."""
        text = _STAGES.get(name, name)
        if not self.console.is_terminal:
            self._say(f"{text}: {total:,} tasks")
        bar = self.progress.add_task(text, total=total, said="")
        return lambda: self.progress.advance(bar)

    def _counts(self, source: int) -> str:
        read, total = self.parts[source]
        before, now = self.structures[source]
        rate = (now - before) / max(time.monotonic() - self.began, 1e-9)
        per_second = f", {rate:,.0f}/s" if now > before else ""
        return f"{read:,} of {total:,} parts, {now:,} structures{per_second}"

    def _say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _ToConsole(logging.Handler):
    """Log lines beside the bars, not through them."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self.console.print(f"warning: {record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


def run(recipe: Recipe, as_json: bool) -> None:
    """Build a dataset and show what came out."""
    console = Console(stderr=True)
    watcher = _Progress(console)
    log, handler = logging.getLogger("ingest"), _ToConsole(console)
    log.addHandler(handler)
    log.propagate = False
    try:
        with watcher.progress:
            manifest = build(recipe, watcher=watcher)
    finally:
        log.removeHandler(handler)
        log.propagate = True
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
    table = Table(title=str(recipe.output), title_justify="left")
    for name, right in (("dataset", False), ("structures", True), ("atoms", True), ("rejected", False)):
        table.add_column(name, justify="right" if right else "left")
    for entry in manifest.datasets:
        table.add_row(
            entry.name, f"{entry.structures:,}", f"{entry.atoms:,}", _reasons(entry.rejected)
        )  # fmt: skip
    Console().print(table)
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.counts.items())
    print(f"{manifest.structures:,} structures ({splits}), {manifest.bytes:,} bytes, {manifest.format}")
    print(f"content hash {manifest.content_hash}")


def show_plan(recipe: Recipe, as_json: bool) -> None:
    """Say what a recipe would read, without reading it, and the script of a worker's batch job."""
    script = batch_script(recipe.cluster)
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
    totals = Table(title=f"{len(plan.parts):,} parts for {plan.recipe.output}", title_justify="left")
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
    parts = status["parts"]
    print(f"{status['output']}: {status['state']}, {parts['done']:,} of {parts['total']:,} parts read")
    if status["stage"]:
        print(f"now: {_STAGES.get(status['stage'], status['stage'])}")
    if status["dashboard"]:
        print(f"Dask dashboard: {status['dashboard']}")
    table = Table()
    for name in ("dataset", "parts", "structures", "rejected"):
        table.add_column(name, justify="left" if name in ("dataset", "rejected") else "right")
    for entry in status["datasets"]:
        done = f"{entry['parts']['done']} of {entry['parts']['total']}" if "parts" in entry else "all"
        table.add_row(entry["name"], done, f"{entry['structures']:,}", _reasons(entry["rejected"]))
    Console().print(table)
    if status["state"] == "unfinished":
        print("not running; gfm ingest run with the same recipe goes on", file=sys.stderr)


def _reasons(rejected: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())) or "none"
