"""What ``gfm download`` shows: bars and remarks on stderr, the table and a recipe's lines on stdout."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from ingest.archives import ARCHIVES, folder_of, recipe_lines
from ingest.disk import check_space
from ingest.download import alone_in, download, remaining, unpack
from ingest.readers import READERS
from ingest.transfer import Listener, Network

__all__ = ["run", "show_table"]

_EVERY = 30.0  # seconds between lines where there is no terminal


def run(
    name: str,
    directory: Path,
    splits: list[str],
    network: Network,
    *,
    unpacked: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Download a data set into the folder of its name, unpack it if asked to, and say how to read it.

    Raises:
        ConfigError: There is no such split, or one must be named.
        DataError: A file cannot be had, or is not the published one.
        ResourceError: There is no room on the disk, a server cannot be reached, or another run is at work.
    """
    wanted = ARCHIVES[name].chosen(name, splits)
    place = directory / name
    with alone_in(place), _listening() as listener:
        # For all files at once: that a disk is too small is better known now than after a night.
        check_space(place, sum(remaining(file, place, unpacked=unpacked) for file in wanted))
        files = [download(file, place, network, listener, verify=verify) for file in wanted]
        if unpacked:
            for file, path in zip(wanted, files, strict=True):
                unpack(file, path, listener)
    packed = [path for path in files if folder_of(path) != path and not folder_of(path).is_dir()]
    lines = recipe_lines(name, place, files)
    if as_json:
        print(json.dumps({"files": list(map(str, files)), "packed": list(map(str, packed)), "recipe": lines}))
        return
    for path in files:
        print(path, file=sys.stderr)
    if packed:
        print("Tar files are still packed; the same command with --unpack unpacks them.", file=sys.stderr)
    print("A recipe to read it, for gfm ingest run:", file=sys.stderr)
    print("\n".join(lines))


def show_table(as_json: bool) -> None:
    """Print what can be downloaded; licences and DOIs are what the readers state."""
    rows = list(_rows())
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("name", "--split", "file", "size", "licence", "DOI", box=None, pad_edge=False)
    for row in rows:
        first, *others = row["files"]
        table.add_row(
            row["name"],
            row["split"] or "",
            f"{first} and {len(others)} more" if others else first,
            f"{row['bytes'] / 1e9:.2f} GB",
            row["licence"],
            row["doi"],
        )
    # As wide as it needs to be: a DOI cut short is none.
    Console(width=200, soft_wrap=True, highlight=False).print(table)


def _rows() -> Iterator[dict[str, Any]]:
    for name, archive in ARCHIVES.items():
        about = READERS.get(name)().about()
        for split in archive.splits or [None]:
            files = archive.chosen(name, [split] if split is not None else [])
            yield {
                "name": name,
                "split": split,
                "files": [file.name for file in files],
                "bytes": sum(file.nbytes for file in files),
                "licence": about.licence,
                "doi": about.doi,
            }


class _Bars(Listener):
    """A bar for each file on a terminal, with rate and time left; a line now and then elsewhere."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.progress = console, progress
        self.bars: dict[str, TaskID] = {}
        self.since: dict[str, tuple[float, int, int | None]] = {}
        self.next_line = time.monotonic() + _EVERY

    def begun(self, name: str, done: int, total: int | None) -> None:
        """Set up a bar; a new one when it starts anew, so that its rate is that of what comes now."""
        if name in self.bars:
            self.progress.remove_task(self.bars[name])
        self.bars[name] = self.progress.add_task(escape(name), completed=done, total=total)
        self.since[name] = (time.monotonic(), done, total)

    def advanced(self, name: str, done: int) -> None:
        """Move the bar."""
        self.progress.update(self.bars[name], completed=done)
        if not self.console.is_terminal and time.monotonic() > self.next_line:
            began, before, total = self.since[name]
            rate = (done - before) / max(time.monotonic() - began, 1e-9)
            left = f", {(total - done) / rate / 60:.0f} min left" if total is not None and rate > 0 else ""
            of = f" of {total / 1e9:.2f}" if total is not None else ""
            self.said(f"{name}: {done / 1e9:.2f}{of} GB, {rate / 1e6:.1f} MB/s{left}")

    def said(self, text: str) -> None:
        """Print a remark."""
        self.next_line = time.monotonic() + _EVERY
        self.console.print(text, markup=False)


@contextlib.contextmanager
def _listening() -> Iterator[Listener]:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bars(console, progress)
