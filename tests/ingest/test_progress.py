"""What people see of a running ingestion: rows that fit the screen, totals, plain lines, the status."""

import codecs
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from rich.console import Console

from gfm.runtime.config import parse_config
from ingest import console as shown
from ingest import progress
from ingest.part import PartDone
from ingest.plan import Plan, PlannedPart
from ingest.progress import Bars, counted, short
from ingest.readers.base import Part
from ingest.recipe import Recipe


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plan_of(datasets: int, parts: int) -> Plan:
    """Return a plan of as many parts of 100 bytes for each dataset."""
    sources = [{"name": f"set-{i:02d}", "reader": "extxyz", "path": "x"} for i in range(datasets)]
    recipe = parse_config(Recipe, {"output": "out", "sources": sources}, "test")
    planned = [
        PlannedPart(index, f"{index:06d}", index // parts, Part("extxyz", "x", 0, 1, 100, ""))
        for index in range(datasets * parts)
    ]
    return Plan(recipe, (), tuple(planned), {}, "")


def done(planned: PlannedPart, structures: int = 50) -> PartDone:
    return PartDone(planned.name, "", structures, 1)


def on_terminal(width: int = 80, height: int = 24) -> Bars:
    return Bars(Console(file=io.StringIO(), force_terminal=True, width=width, height=height))


def rows(bars: Bars) -> list[str]:
    """Return the lines of bars as they are drawn now."""
    file = io.StringIO()
    Console(file=file, width=bars.console.width, height=bars.console.height).print(
        bars.progress.get_renderable()
    )
    return file.getvalue().splitlines()


def row(bars: Bars, name: str) -> str:
    return next(line.rstrip() for line in rows(bars) if line.startswith(name))


def test_rates_count_from_the_beginning_of_each_dataset_and_finished_ones_have_no_time_left(
    clock: Clock,
) -> None:
    plan, bars = plan_of(2, 4), on_terminal(160)
    bars.planned(plan, [])
    for planned in plan.parts[:6]:
        clock.now += 10
        bars.part_read(planned, done(planned))
    first, second, total = row(bars, "set-00"), row(bars, "set-01"), row(bars, "total")
    assert first.split()[-5:] == ["4/4", "200", "5", "40", "s"]
    assert second.split()[-6:] == ["2/4", "100", "5", "20", "s", "left"]
    assert "total (1/2 datasets)" in total
    assert total.split()[-6:] == ["6/8", "300", "5", "20", "s", "left"]


def test_a_dataset_that_waits_is_not_said_to_take_longer_than_all(clock: Clock) -> None:
    plan, bars = plan_of(2, 10), on_terminal(160)
    bars.planned(plan, [])
    for planned in (plan.parts[10], *plan.parts[:9]):
        clock.now += 10
        bars.part_read(planned, done(planned))
    assert row(bars, "set-00").endswith(" 10 s left")
    assert row(bars, "set-01").endswith(" 1.7 min left")  # 900 s at its own pace until now
    assert row(bars, "total").endswith(" 1.7 min left")


def test_what_was_read_before_counts_as_done_and_not_for_the_rate(clock: Clock) -> None:
    plan, bars = plan_of(2, 2), on_terminal(160)
    bars.planned(plan, [done(planned) for planned in plan.parts[:3]])
    clock.now += 10
    bars.part_read(plan.parts[3], done(plan.parts[3]))
    assert row(bars, "set-00").split()[-3:] == ["2/2", "100", "before"]
    assert row(bars, "total").split()[-5:] == ["4/4", "200", "5", "10", "s"]


@pytest.mark.parametrize("width", [80, 160])
def test_thirty_datasets_fit_a_small_screen_with_those_being_read_and_the_total(
    clock: Clock, width: int
) -> None:
    plan, bars = plan_of(30, 10), on_terminal(width)
    bars.planned(plan, [])
    assert len(rows(bars)) == 2
    for planned in itertools.islice(plan.parts, 0, None, 5):  # half of each
        clock.now += 1
        bars.part_read(planned, done(planned, 123_456))
        assert len(rows(bars)) <= 22
    assert [line.split()[0] for line in rows(bars)[1:]] == [*(f"set-{i}" for i in range(14, 30)), "total"]
    bars.stage("survey", 3)
    bars.stage("references", 3)
    assert [line[:8] for line in rows(bars)[-2:]] == ["total (0", "fitting "]
    assert all(len(line) <= width for line in rows(bars))
    assert all(line.rstrip().endswith(" left") for line in rows(bars) if line.startswith("set-"))


def test_without_a_terminal_there_is_a_line_for_each_twentieth_and_each_stage(clock: Clock) -> None:
    file = io.StringIO()
    bars = Bars(Console(file=file, width=20))
    plan = plan_of(1, 400)
    bars.planned(plan, [])
    for planned in plan.parts:
        clock.now += 0.5
        bars.part_read(planned, done(planned, 10))
    bars.stage("writing", 1)
    lines = file.getvalue().splitlines()
    assert lines[0] == "400 parts from 1 source"
    assert lines[1] == "20 of 400 parts (5 %), 200 structures, 20/s, 3.2 min left"
    assert lines[20:] == ["400 of 400 parts (100 %), 4,000 structures, 20/s, 3.3 min", "writing shards: 1 task"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (154_000_000, "154.0M"), (2.5e10, "25.0G")],
)
def test_counts_are_short(count: float, text: str) -> None:
    assert short(count) == text


def test_one_is_not_plural() -> None:
    assert (counted(1, "task"), counted(2_000, "task")) == ("1 task", "2,000 tasks")


def status(state: str, done: int) -> dict[str, Any]:
    """Return a status of two datasets, as `ingest.status.status_of` does."""
    running = {
        "dashboard": "http://127.0.0.1:1/status",
        "stage": "reading",
        "started": "2020-01-01T00:00:00+00:00",
    }
    idle = {"dashboard": None, "stage": None, "started": None}
    return {
        "output": "out", "state": state, "parts": {"done": done, "total": 20}, "structures": 1500 * done,
        "rejects": {"duplicate": done}, **(running if state == "running" else idle),
        "datasets": [
            {"name": "a", "parts": {"done": done, "total": 10}, "structures": 1500 * done,
             "rejected": {"duplicate": done}},
            {"name": "b", "parts": {"done": 0, "total": 10}, "structures": 0, "rejected": {}},
        ],
    }  # fmt: skip


def test_status_shows_shares_stage_and_total(capsys: pytest.CaptureFixture[str]) -> None:
    shown.show_status(status("running", 5), as_json=False)
    text = capsys.readouterr().out
    assert "out: running, 5 of 20 (25 %) parts read" in text
    assert re.search(r"now: reading, running for [\d.]+ h", text)
    assert "Dask dashboard: http://127.0.0.1:1/status" in text
    cells = [re.split(r"\s*│\s*", line)[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert cells == [
        ["a", "5 of 10 (50 %)", "7,500", "duplicate 5"],
        ["b", "0 of 10 (0 %)", "0", "none"],
        ["total", "5 of 20 (25 %)", "7,500", "5"],
    ]


def test_watching_ends_with_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    states = iter([status("running", 5), status("running", 6), status("unfinished", 7), status("running", 8)])
    shown.watch_status(lambda: next(states), seconds=0)
    assert "out: unfinished, 7 of 20" in capsys.readouterr().out
    assert next(states)["parts"]["done"] == 8


class Screen:
    """As much of a terminal as progress needs: lines, the cursor, erasing."""

    TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column, self.wrapped = width, [""], 0, 0, 0

    def feed(self, text: str) -> None:
        for argument, command, carriage, line, plain in self.TOKEN.findall(text):
            if command == "A":
                self.row -= int(argument or 1)
            elif command == "K":
                self.lines[self.row] = ""
            elif carriage:
                self.column = 0
            elif line:
                self._down()
            for character in plain:
                if self.column == self.width:
                    self.wrapped, self.column = self.wrapped + 1, 0
                    self._down()
                before = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = before[: self.column] + character + before[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[[int], Path]:
    def make(datasets: int) -> Path:
        with h5py.File(tmp_path / "ani1x.h5", "w") as file:
            for number in range(1, 6):
                group = file.create_group(f"H{2 * number}")
                shape = (20, 2 * number, 3)
                group["atomic_numbers"] = np.ones(2 * number, dtype=np.uint8)
                places = 0.8 * np.arange(np.prod(shape[1:])).reshape(shape[1:])
                group["coordinates"] = (places + np.linspace(0, 0.1, 20)[:, None, None]).astype(np.float32)
                group["wb97x_dz.energy"] = np.full(20, -1.0 * number)
                group["wb97x_dz.forces"] = np.zeros(shape, dtype=np.float32)
        content = {
            "output": str(tmp_path / "out"),
            "sources": [{"name": f"set-{i}", "reader": "ani1x", "path": "ani1x.h5"} for i in range(datasets)],
            "part_bytes": 1000,
            "duplicates": "keep",
            "cluster": {"processes": False, "workers": 1, "dashboard": None},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "recipe.yaml"

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("datasets", "width"), [(1, 80), (12, 80), (3, 160)])
def test_a_real_terminal_shows_whole_lines(
    make_recipe: Callable[[int], Path], datasets: int, width: int
) -> None:
    recipe, screen = make_recipe(datasets), Screen(width)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [str(Path(sys.executable).with_name("gfm")), "ingest", "run", recipe.name]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=recipe.parent,
        env=environment | {"TERM": "xterm"},
    )
    os.close(theirs)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := os.read(ours, 1 << 16):
            screen.feed(decoder.decode(data))
    except OSError:  # how Linux says that the other side is closed
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = "\n".join(line.rstrip() for line in screen.lines)
    assert screen.wrapped == 0, text
    assert re.search(r"structures +per s +time", text)
    assert re.search(r"committing .*100%", text)
    assert " left" not in text
    assert len(re.findall(r"(?m)^set-\d+ .*100%", text)) == datasets
    assert bool(re.search(rf"total \({datasets}/{datasets} .*100%", text)) == (datasets > 1)
    assert f"{100 * datasets:,} structures read in " in text
