"""Progress of an ingestion on a terminal: a bar for each dataset being read, a total, and the stage after it.

Elsewhere (a log file, a batch job) plain lines: one for each twentieth of the parts, and one for each stage.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from gfm.runtime.quantities import duration
from ingest.build import Watcher
from ingest.part import PartDone
from ingest.plan import Plan, PlannedPart

if TYPE_CHECKING:
    from store.manifest import Manifest

__all__ = ["STAGES", "Bars", "counted", "short"]

# What the stages of `ingest.build` do, for people.
STAGES = {
    "unpacking": "unpacking files",
    "duplicates": "finding duplicates",
    "survey": "surveying structures",
    "residuals": "finding energy outliers",
    "references": "fitting references",
    "writing": "writing shards",
    "committing": "committing",
}
_OTHER_LINES = 8  # of a screen that are not for bars of datasets: header, total, stage, what was said before
_OTHER_COLUMNS = 48  # of a line that are neither name nor bar, as they mostly are


def short(count: float) -> str:
    """Return a count in at most seven characters: ``9,999``, ``12.3k``, ``154.0M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= max(size, 1e4):
            return f"{count / size:.1f}{unit}"
    return f"{count:,.0f}"


def counted(count: int, what: str) -> str:
    """Return a number with its noun: ``1 task``, ``2 tasks``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass
class _Count:
    """How far the reading of one dataset, or of all, is.

    Attributes:
        total: Parts.
        bytes_total: Bytes of them.
        done: Parts read, those of earlier runs included.
        structures: Structures accepted in them.
        nbytes: Bytes of them.
        before: Structures and bytes of earlier runs.
        began: When this run began with it; None if it did not yet.
        latest: When this run last finished a part of it.
    """

    total: int = 0
    bytes_total: int = 0
    done: int = 0
    structures: int = 0
    nbytes: int = 0
    before: tuple[int, int] = (0, 0)
    began: float | None = None
    latest: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether all parts are read."""
        return self.done == self.total

    def took(self, now: float) -> float:
        """Return the seconds that this run was or is at it; 0 where it did not begin with it."""
        if self.began is None:
            return 0.0
        return max((self.latest if self.finished else now) - self.began, 1e-9)

    def rate(self, now: float) -> float:
        """Return structures per second in this run; 0 before the first part."""
        took = self.took(now)
        return (self.structures - self.before[0]) / took if took else 0.0

    def left(self, now: float) -> float | None:
        """Return the seconds that what is not read takes at this pace; None before the first part."""
        took, new = self.took(now), self.nbytes - self.before[1]
        return (self.bytes_total - self.nbytes) * took / new if took and new > 0 else None

    def time(self, now: float, most: float | None = None) -> str:
        """Say how long it takes (at most as long as all, whose estimate is the better one) or took."""
        if self.finished:
            return duration(self.took(now)) if self.began is not None else "before"
        left = self.left(now)
        return "" if left is None else f"{duration(min(left, left if most is None else most))} left"


class _StageTime(ProgressColumn):
    """Time left of a stage; of a dataset, what is said of it."""

    def render(self, task: Task) -> Text:
        """Return the cell of a row."""
        text = task.fields.get("time")
        if text is not None:
            return Text(text)
        if task.finished_time is not None:
            return Text(duration(task.finished_time))
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left else "")


class _Table(Progress):
    """Bars under a line that says what their columns are."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the table, with its head."""
        table = super().make_tasks_table(tasks)
        table.show_header = table.row_count > 0
        return table


def _bars(console: Console) -> Progress:
    """Return bars that fit the width of the terminal."""
    name = min(40, 3 * console.width // 10)
    bar = max(4, min(40, console.width - name - _OTHER_COLUMNS))

    def column(header: str, content: str) -> TextColumn:
        return TextColumn(content, markup=False, table_column=Column(header, no_wrap=True, justify="right"))

    return _Table(
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column("", no_wrap=True, overflow="ellipsis", max_width=name),
        ),
        BarColumn(bar_width=bar, table_column=Column("", no_wrap=True)),
        TaskProgressColumn(table_column=Column("", no_wrap=True, justify="right")),
        column("done", "{task.fields[done]}"),
        column("structures", "{task.fields[structures]}"),
        column("per s", "{task.fields[rate]}"),
        _StageTime(table_column=Column("time", no_wrap=True)),
        console=console,
        disable=not console.is_terminal,
    )


class Bars(Watcher):
    """Shows what happens during `ingest.build.build`.

    Attributes:
        progress: To be entered while the build runs.
        all: The reading of all datasets.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = _bars(console)
        self.all = _Count()
        self._counts: list[_Count] = []
        self._rows: list[TaskID] = []
        self._total: TaskID | None = None
        self._stage: TaskID | None = None
        self._said = 0

    def complete(self, manifest: "Manifest") -> None:
        """Say that there is nothing to do."""
        self._say("already complete: nothing to do")

    def waiting(self, what: str) -> None:
        """Say what the batch system is waited for."""
        self._say(what)

    def started(self, dashboard: str | None) -> None:
        """Say where the dashboard is."""
        if dashboard:
            self._say(f"Dask dashboard: {dashboard}")

    def planned(self, plan: Plan, read: Sequence[PartDone]) -> None:
        """Set up the bars."""
        self._hide_stage()
        sources = plan.recipe.sources
        self._counts = [_Count() for _ in sources]
        for planned in plan.parts:
            for count in (self._counts[planned.source], self.all):
                count.total += 1
                count.bytes_total += planned.part.nbytes
        for done in read:
            self._add(plan.parts[int(done.name)], done)
        for count in (*self._counts, self.all):
            count.before = count.structures, count.nbytes
        self.all.began = self.all.latest = time.monotonic()
        again = f", {self.all.done:,} of them read before" if read else ""
        self._say(f"{counted(self.all.total, 'part')} from {counted(len(sources), 'source')}{again}")
        self._rows = [
            self._row(source.name, count) for source, count in zip(sources, self._counts, strict=True)
        ]
        if len(sources) > 1:
            self._total = self._row("total", self.all)
        self._refresh()

    def part_read(self, planned: PlannedPart, done: PartDone) -> None:
        """Advance a bar; without a terminal, print each twentieth of the way."""
        count, now = self._counts[planned.source], time.monotonic()
        if count.began is None:
            count.began = self.all.latest  # about when the worker that read its first part took that up
        count.latest = self.all.latest = now
        self._add(planned, done)
        self._refresh()
        if not self.console.is_terminal and 20 * self.all.done // self.all.total > self._said:
            self._said = 20 * self.all.done // self.all.total
            left = self.all.time(now)
            self._say(
                f"{self.all.done:,} of {self.all.total:,} parts ({100 * self.all.done // self.all.total} %), "
                f"{self.all.structures:,} structures, {self.all.rate(now):,.0f}/s, {left}"
            )

    def stage(self, name: str, total: int) -> Callable[[], None]:
        """Show a bar for a stage in place of that of the last; without a terminal, say that it begins."""
        text = STAGES.get(name, name)
        if not self.console.is_terminal:
            self._say(f"{text}: {counted(total, 'task')}")
        self._hide_stage()
        row = self._stage = self.progress.add_task(
            text, total=total, done=f"0/{total:,}", structures="", rate=""
        )
        finished = 0

        def advance() -> None:
            nonlocal finished
            finished += 1
            self.progress.update(row, advance=1, done=f"{finished:,}/{total:,}")

        return advance

    def _hide_stage(self) -> None:
        if self._stage is not None:
            self.progress.update(self._stage, visible=False)

    def _add(self, planned: PlannedPart, done: PartDone) -> None:
        for count in (self._counts[planned.source], self.all):
            count.done += 1
            count.structures += done.structures
            count.nbytes += planned.part.nbytes

    def _row(self, name: str, count: _Count) -> TaskID:
        return self.progress.add_task(name, total=count.bytes_total, done="", structures="", rate="", time="")

    def _refresh(self) -> None:
        """Bring all bars up to date; of more datasets than fit the screen, show those read last."""
        now = self.all.latest
        room = max(1, self.console.height - _OTHER_LINES)
        shown = set(range(len(self._counts)))
        if len(shown) > room:
            running = [i for i in shown if self._counts[i].began is not None and not self._counts[i].finished]
            shown = set(sorted(running, key=lambda i: self._counts[i].latest)[-room:])
        for index, (row, count) in enumerate(zip(self._rows, self._counts, strict=True)):
            self.progress.update(row, visible=index in shown)
            if index in shown:
                self._show(row, count, now)
        if self._total is not None:
            read = sum(count.finished for count in self._counts)
            self.progress.update(self._total, description=f"total ({read}/{len(self._counts)} datasets)")
            self._show(self._total, self.all, now)

    def _show(self, row: TaskID, count: _Count, now: float) -> None:
        rate = count.rate(now)
        self.progress.update(
            row,
            completed=count.bytes_total if count.finished else count.nbytes,
            done=f"{count.done:,}/{count.total:,}",
            structures=short(count.structures),
            rate=short(rate) if rate else "",
            time=count.time(now, self.all.left(now)),
        )

    def _say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
