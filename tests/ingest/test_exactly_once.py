"""Every record once, however a run dies: `gfm ingest run` on a private Slurm, killed and run again.

Workers and their nannies, jobs, nodes, clients and disks end in every stage; the dataset is always that of an
undisturbed run. Nothing here waits for a time to pass: every blow falls on a state seen on the disk.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest

import ingest.build
from gfm.data.units import HARTREE
from gfm.errors import MissingDataError, ResourceError
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.recipe import Recipe
from ingest.status import status_of
from store.verify import verify_dataset

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCREENING = {"duplicates", "survey", "residuals", "references"}
GFM = str(Path(sys.executable).with_name("gfm"))
ENERGIES = {"Al": -3.0, "O": -5.0, "Mg": -1.5, "H": -13.0, "C": -1000.0, "N": -1400.0}  # eV


# ---------------------------------------------------------------- what is read


def _crystals(seed: int, count: int) -> list[str]:
    """Return periodic frames as text; the long cutoff of the recipe makes them work to read."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)
    frames = []
    for _ in range(count):
        number = int(rng.integers(6, 12))
        symbols = rng.choice(["Al", "O", "Mg"], number)
        positions = sites[rng.permutation(27)[:number]] * 2.2 + rng.normal(scale=0.05, size=(number, 3))
        rows = np.hstack([positions, rng.normal(scale=0.3, size=(number, 3))]).tolist()
        energy = sum(ENERGIES[s] for s in symbols) + rng.normal(scale=0.02) * number
        frames.append(_frame(symbols.tolist(), rows, energy))
    return frames


def _frame(symbols: list[str], rows: list[list[float]], energy: float) -> str:
    head = f'Lattice="6.6 0 0 0 6.6 0 0 0 6.6" Properties=species:S:1:pos:R:3:forces:R:3 energy={energy!r}'
    lines = (" ".join([symbol, *map(repr, row)]) for symbol, row in zip(symbols, rows, strict=True))
    return "\n".join([str(len(symbols)), head, *lines, ""])


def _molecules(path: Path, seed: int, conformers: int) -> None:
    """Write a file in the layout of ANI-1x; some conformers have NaN, wild forces, or fused atoms."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for carbons in range(1, 9):
            # Keys are of formula and row: no formula is in two files.
            symbols = ["C"] * carbons + ["N"] * seed + ["H"] * 4
            shape = (conformers, len(symbols), 3)
            positions = np.arange(len(symbols))[:, None] * [1.3, 0.4, 0.0] + rng.normal(scale=0.05, size=shape)
            forces = rng.normal(scale=0.02, size=shape)
            energies = sum(ENERGIES[s] for s in symbols) + rng.normal(scale=0.1, size=conformers)
            energies[3] = np.nan
            forces[5, 1] = [0.0, 600.0 / HARTREE, 0.0]
            positions[7, 2] = positions[7, 1] + [0.1, 0.0, 0.0]
            group = file.create_group(f"C{carbons}N{seed}H4")
            group["atomic_numbers"] = np.array([{"C": 6, "N": 7, "H": 1}[s] for s in symbols], dtype=np.uint8)
            group["coordinates"] = positions.astype(np.float32)
            group["wb97x_dz.energy"] = energies / HARTREE
            group["wb97x_dz.forces"] = forces.astype(np.float32)


@dataclass(frozen=True)
class Raw:
    """Files to read, the sources of a recipe, and how many records are in them."""

    sources: list[dict[str, str]]
    records: int


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    folder = tmp_path_factory.mktemp("raw")
    (folder / "crystals").mkdir()
    (folder / "molecules").mkdir()
    a, b, own = _crystals(1, 900), _crystals(2, 900), _crystals(3, 400)
    outlier = _frame(["Al", "O"], [[0.0] * 6, [2.2, 0.0, 0.0, 0.0, 0.0, 0.0]], 500.0)
    frames = {
        "crystals/a.xyz": [*a, outlier, *a[:40]],
        "crystals/b.xyz": [*b, *a[100:130], *b[:5]],
        "copies.xyz": [*a[200:240], *own, *b[300:320]],
    }
    for name, some in frames.items():
        (folder / name).write_text("".join(some))
    for seed in (1, 2):
        _molecules(folder / "molecules" / f"{seed}.h5", seed, 400)
    places = [("crystals", "extxyz", "crystals"), ("molecules", "ani1x", "molecules")]
    places += [("copies", "extxyz", "copies.xyz")]
    sources = [{"name": name, "reader": reader, "path": str(folder / path)} for name, reader, path in places]
    return Raw(sources, sum(map(len, frames.values())) + 2 * 8 * 400)


def _recipe(raw: Raw, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output": str(output),
        "sources": raw.sources,
        "edges_cutoff": 12.0,
        "part_bytes": 65_000,
        "shard_bytes": 500_000,
        **changes,
    }


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, Any]:
    """Three workers, a job each, on the private Slurm."""
    return {
        "kind": "slurm",
        "workers": 3,
        "memory": "1GiB",
        "host": "127.0.0.1",
        "walltime": "00:10:00",
        "death_timeout": 4,
        "log_directory": str(tmp_path / "logs"),
    }


# ---------------------------------------------------------------- runs


class Run:
    """One ``gfm ingest run``, as a user starts it, in a process group of its own."""

    def __init__(self, recipe: dict[str, Any], folder: Path) -> None:
        self.output = Path(recipe["output"])
        self.log = folder / f"stderr-{len(list(folder.glob('stderr-*')))}"
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [GFM, "ingest", "run", str(path), "--json"],
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def stage(self) -> str | None:
        """What ``gfm ingest status`` says it is doing."""
        with contextlib.suppress(MissingDataError):
            stage: str | None = status_of(self.output)["stage"]
            return stage
        return None

    @property
    def receipts(self) -> dict[str, int]:
        """Parts that are read and shards that are written, and when."""
        found = {}
        for kind in ("receipts", "shards"):
            for path in (self.output / "build" / kind).glob("*.json"):
                with contextlib.suppress(FileNotFoundError):
                    found[f"{kind}/{path.name}"] = path.stat().st_mtime_ns
        return found

    def count(self, kind: str) -> int:
        return sum(name.startswith(kind) for name in self.receipts)

    def until(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        """Wait for something to happen while it runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    @contextlib.contextmanager
    def held(self, condition: Callable[[], object]) -> Iterator[None]:
        """Stop the client where a condition holds; it goes on afterwards if it is still there."""
        while True:
            self.until(condition)
            self.process.send_signal(signal.SIGSTOP)
            if condition():
                break
            self.process.send_signal(signal.SIGCONT)
        yield
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> dict[str, Any]:
        """Let it finish, and return what it prints."""
        stdout, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.said
        self.quiet()
        result: dict[str, Any] = json.loads(stdout)
        return result

    def ends_with(self, code: int) -> str:
        """Let it end without a dataset, and return what it says."""
        stdout, _ = self.process.communicate(timeout=60)
        assert (self.process.returncode, stdout) == (code, ""), self.said
        assert not (self.output / "manifest.json").exists()
        self.quiet()
        return self.said

    def quiet(self) -> None:
        """Nothing but its own lines is on the terminal."""
        # A job whose worker is killed as it starts is told of, with its last words.
        own = [
            line for line in self.said.splitlines() if not re.match(r"job \d+ ended before its worker", line)
        ]
        assert not [line for line in own if "distributed" in line]
        assert "Traceback" not in self.said


def _is_reading(run: Run, parts: int) -> Callable[[], bool]:
    return lambda: run.count("receipts") >= parts and run.stage == "reading"


def _is_screening(run: Run) -> Callable[[], bool]:
    return lambda: run.stage in SCREENING


def _is_writing(run: Run) -> Callable[[], bool]:
    return lambda: run.count("shards") >= 1 and run.stage == "writing"


# ---------------------------------------------------------------- what comes out


@pytest.fixture(scope="module")
def undisturbed(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run with one worker on this machine prints, that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Run(_recipe(raw, folder / "out", cluster={"workers": 1}), folder) as run:
        result = run.end()
    assert 60 <= result["parts"]["total"] <= 200
    reasons = {"duplicate", "energy-outlier", "nan-energy", "force-too-large", "atoms-too-close"}
    assert result["rejects"].keys() == reasons
    _check(folder / "out", result, result, raw)
    return result


def _check(output: Path, result: dict[str, Any], undisturbed: dict[str, Any], raw: Raw) -> None:
    """Check that a dataset is whole, that of the undisturbed run, and that nothing else is left."""
    for key in ("content_hash", "structures", "atoms", "rejects", "splits"):
        assert result[key] == undisturbed[key], key
    info = subprocess.run(
        [GFM, "store", "info", str(output), "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(info.stdout)["content_hash"] == undisturbed["content_hash"]
    dataset, problems = verify_dataset(output, lambda shard: None)
    assert problems == []
    columns = dataset.batch(np.arange(len(dataset))).columns
    keys = set(zip(columns["dataset"].tolist(), columns["key"].tolist(), strict=True))
    lines = [line for path in (output / "rejects").iterdir() for line in path.read_text().splitlines()]
    refused = {json.loads(line)["source"] for line in lines}
    assert len(keys) == len(dataset) == result["structures"]
    assert len(refused) == len(lines) == sum(result["rejects"].values())
    assert len(keys) + len(refused) == raw.records
    assert not list(output.rglob("*.tmp"))
    assert {path.name for path in (output / "build").iterdir()} == {"lock", "plan.json", "tasks.lock"}


@pytest.mark.parametrize("order", ["sources", "parts"])
def test_the_order_of_sources_and_of_parts_changes_nothing(
    raw: Raw, undisturbed: dict[str, Any], tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ingest.build._read
    if order == "parts":
        monkeypatch.setattr(ingest.build, "_read", lambda c, plan, missing: read(c, plan, missing[::-1]))
        changes = {}
    else:
        changes = {"sources": raw.sources[::-1]}
    recipe = parse_config(Recipe, _recipe(raw, tmp_path / "out", **changes), "test")
    with open_client(ClusterConfig(processes=False, workers=2, dashboard=None)) as client:
        manifest = ingest.build.build(recipe, client=client)
    result = {
        "content_hash": manifest.content_hash,
        "structures": manifest.structures,
        "atoms": manifest.atoms,
        "rejects": manifest.rejects,
        "splits": manifest.splits.counts,
    }
    _check(tmp_path / "out", result, undisturbed, raw)


# ---------------------------------------------------------------- workers, jobs, nodes


def _kill(pids: Any) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _working(slurm: Any, but: set[str]) -> str | None:
    """Return a job whose worker is there, and is not one of some."""
    for job in sorted(slurm.jobs().keys() - but, key=int):
        if slurm.worker_pids(job):
            return str(job)
    return None


def test_workers_jobs_and_nodes_die_in_every_stage_of_one_run(
    slurm: Any, raw: Raw, undisturbed: dict[str, Any], cluster: dict[str, Any], tmp_path: Path
) -> None:
    harms: list[Callable[[str], object]] = [
        lambda job: _kill(slurm.worker_pids(job)),
        lambda job: _kill(slurm.processes(job)),
        slurm.cancel,
        lambda job: slurm.set_down(slurm.jobs()[job][2]),
    ]
    harmed: set[str] = set()
    with Run(_recipe(raw, tmp_path / "out", cluster=cluster), tmp_path) as run:
        run.until(lambda: len(slurm.jobs()) == 3 and all(slurm.worker_pids(job) for job in slurm.jobs()))
        for number, harm in enumerate(harms):
            if number == 3:
                harmed.clear()  # the worker that was killed first is back
            with run.held(_is_reading(run, 8 * (number + 1))):
                slurm.wait_for(lambda: _working(slurm, harmed), "a worker that was not harmed yet")
                job = _working(slurm, harmed)
                assert job is not None
                harm(job)
                harmed.add(job)
        read = run.receipts
        for there in (_is_screening, _is_writing):
            with run.held(there(run)):
                for job in slurm.jobs():
                    _kill(slurm.worker_pids(job))
        assert {name: run.receipts.get(name) for name in read} == read
        result = run.end()
    _check(tmp_path / "out", result, undisturbed, raw)
    slurm.wait_for(lambda: not slurm.jobs() and not slurm.processes(), "the jobs to be gone")


# ---------------------------------------------------------------- clients


def _status(output: Path) -> dict[str, Any]:
    """Return what ``gfm ingest status`` prints."""
    words = [GFM, "ingest", "status", str(output), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def _read_before(said: str) -> int:
    """Return how many parts a run says were read before it."""
    found = re.search(r"([\d,]+) of them read before", said)
    return int(found[1].replace(",", "")) if found else 0


def _written(output: Path, receipts: dict[str, int]) -> dict[str, int]:
    """Return the files of shards that have a receipt, and when they were made."""
    made = {path.name: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}
    return {name: time for name, time in made.items() if f"shards/{name.split('.')[0]}.json" in receipts}


def test_clients_are_killed_and_interrupted_in_every_stage_and_the_same_command_goes_on(
    slurm: Any, raw: Raw, undisturbed: dict[str, Any], cluster: dict[str, Any], tmp_path: Path
) -> None:
    output, done = tmp_path / "out", dict[str, int]()
    recipe = _recipe(raw, output, cluster={**cluster, "workers": 2, "processes_per_job": 2}, format="zarr")
    blows: list[tuple[signal.Signals, Callable[[Run], Callable[[], bool]]]] = [
        (signal.SIGKILL, lambda run: _is_reading(run, 6)),
        (signal.SIGINT, lambda run: _is_reading(run, 20)),
        (signal.SIGTERM, _is_screening),
        (signal.SIGKILL, _is_writing),
    ]
    for number, moment in blows:
        # Jobs of a client that was killed may still be at work when the next one starts.
        with Run(recipe, tmp_path) as run:
            with run.held(moment(run)):
                kept, done = done, run.receipts
                if number == signal.SIGTERM:
                    assert _status(output)["stage"] in SCREENING
                made = _written(output, done) if moment is _is_writing else {}
                # A terminal sends Ctrl-C to the whole group; a batch system ends the client.
                send = os.killpg if number == signal.SIGINT else os.kill
                send(run.process.pid, number)
            said = run.ends_with(-number if number == signal.SIGKILL else 128 + number)
        assert {name: done.get(name) for name in kept} == kept
        assert _read_before(said) >= len(kept)
        assert status_of(output)["state"] == "unfinished"
        if number != signal.SIGKILL:
            assert said.splitlines()[-1] == "gfm: interrupted; the same command goes on where it stopped"
            slurm.wait_for(lambda: not slurm.jobs(), "the jobs to be cancelled")
    with Run(recipe, tmp_path) as run:
        result = run.end()
    assert _read_before(run.said) == result["parts"]["total"]
    assert made
    assert _written(output, done) == made
    _check(output, result, undisturbed, raw)
    slurm.wait_for(lambda: not slurm.jobs() and not slurm.processes(), "the jobs to be gone")


# ---------------------------------------------------------------- disks


class Disk:
    """A disk of its own, in memory, as large as it is told to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("tmpfs", "-t", "tmpfs", "-o", "size=1g")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.folder)], check=True, capture_output=True, text=True)

    def resize(self, size: int) -> None:
        self._mount("-o", f"remount,size={size}")

    @property
    def used(self) -> int:
        return shutil.disk_usage(self.folder).used


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here, as root can: {getattr(error, 'stderr', error)}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


def test_a_disk_fills_while_reading_and_while_writing(
    slurm: Any, raw: Raw, undisturbed: dict[str, Any], cluster: dict[str, Any], tmp_path: Path, disk: Disk
) -> None:
    output, plenty = disk.folder / "out", 1 << 30
    recipe = _recipe(raw, output, cluster={**cluster, "workers": 2, "processes_per_job": 2})

    def fills() -> Run:
        with Run(recipe, tmp_path) as run:
            said = run.ends_with(ResourceError.exit_code)
        assert re.search(r"out: the disk is full .* left\)\. Make room and run the same command again", said)
        slurm.wait_for(lambda: not slurm.processes(), "the jobs to be gone")
        return run

    disk.resize(undisturbed["bytes"] // 2)
    done = fills().receipts
    assert 0 < len(done) < undisturbed["parts"]["total"]
    disk.resize(plenty)
    with Run(recipe, tmp_path) as run:
        with run.held(_is_screening(run)):
            assert {name: run.receipts.get(name) for name in done} == done
            run.process.kill()
        said = run.ends_with(-signal.SIGKILL)
    assert _read_before(said) == len(done)
    slurm.wait_for(lambda: not slurm.processes(), "the jobs to be gone")
    # Room for the files of screening, and not for a shard.
    disk.resize(disk.used + (128 << 10))
    assert "writing shards" in fills().said
    disk.resize(plenty)
    with Run(recipe, tmp_path) as run:
        result = run.end()
    assert _read_before(run.said) == result["parts"]["total"]
    _check(output, result, undisturbed, raw)
