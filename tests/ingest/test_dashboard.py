"""The Dask dashboard of a running ingestion: tasks by dataset and stage, on the loopback interface alone."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from dask.utils import key_split

from ingest.flow import task_name

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Names as they are found in the wild, and how the dashboard shows them.
DATASETS = {"ani1x": "ani1x", "OC20-2M": "OC20_2M", "2m.set": "2m.set", "mptrj_v2": "mptrj_v2"}
# Of all plots of a page, what one column of their data holds: text on a canvas is not in the document.
COLUMN = """(column) => Bokeh.documents.flatMap((page) => [...page._all_models.values()])
    .filter((model) => model.type === "ColumnDataSource" && model.data[column] !== undefined)
    .flatMap((model) => Array.from(model.data[column]))"""
ALL_SHOWN = f"""([column, names]) => window.Bokeh !== undefined
    && ((shown) => names.every((name) => shown.includes(name)))(({COLUMN})(column))"""
PROGRESS, STREAM = "show-name", "name"  # columns of the bars, and of bars and finished tasks


@pytest.mark.parametrize(
    "name", [*DATASETS, "a-b", "oc20-deadbeef", "0-1-2", "S2EF.v1-all_", "F" * 32, "duplicates"]
)
@pytest.mark.parametrize("stage", ["unpack", "read", "survey", "residuals", "references", "write"])
def test_the_group_of_a_task_is_its_dataset_and_stage_whatever_the_dataset_is_called(
    name: str, stage: str
) -> None:
    group = key_split(f"{task_name(name, stage, 7)}-0123abcd")
    assert group == key_split(f"{task_name(name, stage, 123456)}-abcdefab")
    assert group.replace("_", "-").strip("-") == f"{name}-{stage}".replace("_", "-")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of four sources in some parts each; two of them are equal."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "ani1x.h5", "w") as file:
        for number in range(12):
            group = file.create_group(f"CH{number}")
            group["atomic_numbers"] = np.array([6, *[1] * number], dtype=np.uint8)
            steps = 1.5 * np.arange(1 + number)[:, None]
            group["coordinates"] = (rng.normal(scale=0.1, size=(40, 1 + number, 3)) + steps).astype(np.float32)
            group["wb97x_dz.energy"] = -38.0 - 0.5 * number + rng.normal(scale=0.01, size=40)
            group["wb97x_dz.forces"] = rng.normal(scale=0.01, size=(40, 1 + number, 3)).astype(np.float32)
    header = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 pbc="T T T" energy='
    lines = []
    for energy in rng.normal(-3.0, 0.1, size=300):
        atoms = [f"Cu 0 0 {0.1 * rng.random():.6f} 0 0 0.1", f"Cu 2 2 {0.1 * rng.random():.6f} 0 0 -0.1"]
        lines += ["2", f"{header}{energy:.8f}", *atoms]
    (tmp_path / "copper.xyz").write_text("\n".join(lines) + "\n")
    readers = [("ani1x", "ani1x.h5"), ("extxyz", "copper.xyz")] * 2
    content = {
        "output": str(tmp_path / "out"),
        "sources": [
            {"name": name, "reader": reader, "path": str(tmp_path / path)}
            for name, (reader, path) in zip(DATASETS, readers, strict=True)
        ],
        "part_bytes": 5000,
        "shard_bytes": 1,
        "cluster": {"workers": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def process(recipe: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command, at work."""
    started = subprocess.Popen(
        [str(Path(sys.executable).with_name("gfm")), "ingest", "run", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    yield started
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


@contextmanager
def parts_held(output: Path) -> Iterator[None]:
    """Let no task begin or end that reads a part or writes a shard, as while another run is still at work."""
    with (output / "build" / "tasks.lock").open("r") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Tabs:
    """Pages of a browser, and what went wrong or elsewhere on any of them."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.problems: list[str] = []
        self.requests: list[str] = []

    def open(self, url: str) -> Any:
        tab = self.browser.new_page(viewport={"width": 1400, "height": 900})
        tab.set_default_timeout(120_000)
        tab.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("websocket", lambda socket: self.requests.append(socket.url))
        tab.goto(url)
        return tab


def listening(pid: int) -> set[tuple[str, int]]:
    """Return where a process and all below it listen."""
    root = psutil.Process(pid)
    return {
        (connection.laddr.ip, connection.laddr.port)
        for one in [root, *root.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def is_open(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


def wait_for_end_of_reading(output: Path, process: "subprocess.Popen[str]") -> None:
    """Return as soon as the run says that it is beyond reading."""
    deadline = time.monotonic() + 300
    while json.loads((output / "build" / "running.json").read_text())["stage"] == "reading":
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def tabs() -> Iterator[Tabs]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield Tabs(playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS))


@pytest.mark.browser
@pytest.mark.slow
def test_dashboard_shows_datasets_and_stages_and_listens_on_loopback_only(
    tabs: Tabs, process: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("Dask dashboard: http://127.0.0.1:"), line + process.stderr.read()
    url = line.split()[-1]
    host = url.removeprefix("http://").split("/")[0]
    reading, writing = ([f"{name}-{stage}" for name in DATASETS.values()] for stage in ("read", "write"))
    with parts_held(tmp_path / "out"):
        tab = tabs.open(url)
        tab.wait_for_function(ALL_SHOWN, arg=[PROGRESS, reading])
        assert set(tab.evaluate(COLUMN, PROGRESS)) == set(reading)
        sockets = listening(process.pid)
    wait_for_end_of_reading(tmp_path / "out", process)
    with parts_held(tmp_path / "out"):
        tab.wait_for_function(ALL_SHOWN, arg=[STREAM, writing])
        assert set(tab.evaluate(COLUMN, PROGRESS)) <= set(writing)
        screened = [f"{name}-{stage}" for name in DATASETS.values() for stage in ("survey", "references")]
        finished = [*reading, "duplicates-find", *screened]
        tab.wait_for_function(ALL_SHOWN, arg=[STREAM, finished])
        tabs.open(url.replace("/status", "/tasks")).wait_for_function(ALL_SHOWN, arg=[STREAM, finished])
        for context in tabs.browser.contexts:  # or they would miss their server in the end
            context.close()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert tabs.problems == []
    assert tabs.requests
    assert {request.split("/")[2] for request in tabs.requests} == {host}
    # The scheduler, the dashboard, two nannies, two workers.
    assert len(sockets) >= 6
    assert ("127.0.0.1", int(host.split(":")[1])) in sockets
    assert {address for address, _ in sockets} == {"127.0.0.1"}
    assert [address for address in sockets if is_open(address)] == []
