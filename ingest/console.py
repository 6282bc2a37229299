"""What ``gfm ingest`` shows: progress and warnings on stderr, the result on stdout."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest.build import Watcher, build
from ingest.part import PartReceipt
from ingest.plan import Plan, make_plan
from ingest.recipe import Recipe
from ingest.status import status_of

if TYPE_CHECKING:
    from store.manifest import Manifest

__all__ = ["run", "show_plan", "show_status"]

# Reasons of rejects that stand for more than one record.
_WHOLE_FILES = ("truncated-file", "unreadable-file")


class _Progress(Watcher):
    """A bar for each dataset on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("parts, {task.fields[structures]:,} structures"),
            TimeElapsedColumn(),
        )
        self.console = console
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bars: dict[str, Any] = {}
        self.structures: dict[str, int] = {}
        self.done = self.total = self.said = 0

    def complete(self, manifest: "Manifest") -> None:
        """Say that there is nothing to do."""
        self._say("already complete: nothing to do")

    def planned(self, plan: Plan, finished: Sequence[PartReceipt]) -> None:
        """Set up the bars."""
        self.total, self.done = len(plan.parts), len(finished)
        names = [source.name for source in plan.recipe.sources]
        for index, name in enumerate(names):
            total = sum(planned.source == index for planned in plan.parts)
            self.structures[name] = sum(item.structures for item in finished if item.dataset == name)
            self.bars[name] = self.progress.add_task(
                escape(name),
                total=total,
                completed=sum(item.dataset == name for item in finished),
                structures=self.structures[name],
            )
        again = f", {self.done} of them finished before" if finished else ""
        self._say(f"{self.total} parts from {len(names)} sources{again}")

    def started(self, dashboard: str | None) -> None:
        """Say where the dashboard is."""
        if dashboard:
            self._say(f"Dask dashboard: {dashboard}")

    def part_finished(self, receipt: PartReceipt) -> None:
        """Advance a bar; without a terminal, print each twentieth of the way."""
        self.done += 1
        self.structures[receipt.dataset] += receipt.structures
        self.progress.update(self.bars[receipt.dataset], advance=1, structures=self.structures[receipt.dataset])
        if not self.console.is_terminal and 20 * self.done // self.total > 20 * self.said // self.total:
            self.said = self.done
            self._say(f"{self.done} of {self.total} parts, {sum(self.structures.values()):,} structures")

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
    """Say what a recipe would read, without reading it."""
    plan = make_plan(recipe)
    if as_json:
        print(json.dumps(plan.to_json()))
        return
    table = Table(title=f"{len(plan.parts)} parts for {recipe.output}", title_justify="left")
    for name in ("part", "dataset", "reader", "what", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for planned in plan.parts:
        source = recipe.sources[planned.source]
        table.add_row(
            planned.name, source.name, source.reader, escape(planned.part.label), f"{planned.part.nbytes:,}"
        )
    Console().print(table)


def show_status(status: dict[str, Any], as_json: bool) -> None:
    """Print what `ingest.status.status_of` returned."""
    if as_json:
        print(json.dumps(status))
        return
    parts = status["parts"]
    print(f"{status['output']}: {status['state']}, {parts['done']} of {parts['total']} parts finished")
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
