"""The whole of ingestion on small files: complete, the same bytes however it was done, safe against crashes."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
from ase.data import chemical_symbols

import ingest.build
from gfm.data.references import compositions
from gfm.data.splits import split_of
from gfm.data.structure import Structure
from gfm.data.units import HARTREE
from gfm.errors import ConfigError, CorruptDataError, DataError, MissingDataError, ResourceError
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.build import Watcher, build
from ingest.output import is_running
from ingest.part import PartDone
from ingest.plan import Plan, PlannedPart, make_plan
from ingest.readers.ani1x import Ani1x
from ingest.readers.base import Block, Part
from ingest.recipe import Recipe, Source
from ingest.status import status_of
from store import open_dataset

MOLECULES = {
    "H2O": [8, 1, 1],
    "CH4": [6, 1, 1, 1, 1],
    "N2": [7, 7],
    "CO": [6, 8],
    "NH3": [7, 1, 1, 1],
    "HF": [9, 1],
}
CONFORMERS = 20


def write_raw(path: Path) -> Path:
    """Write a file in the layout of ANI-1x; some conformers have NaN, wild forces, or fused atoms."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for formula, numbers in MOLECULES.items():
            group = file.create_group(formula)
            positions = rng.normal(size=(CONFORMERS, len(numbers), 3)) + 3.0 * np.arange(len(numbers))[:, None]
            energies = -sum(numbers) * 10.0 + rng.normal(scale=0.01, size=CONFORMERS)
            forces = rng.normal(scale=0.05, size=positions.shape)
            if formula == "H2O":
                energies[3] = np.nan
                forces[5, 1] = [0.0, 600.0 / HARTREE, 0.0]
                positions[7, 2] = positions[7, 1] + [0.1, 0.0, 0.0]
            if formula == "N2":
                energies[:] = np.nan
            group["atomic_numbers"] = np.array(numbers, dtype=np.uint8)
            group["coordinates"] = positions.astype(np.float32)
            group["wb97x_dz.energy"] = energies
            group["wb97x_dz.forces"] = forces.astype(np.float32)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw") / "ani1x-release.h5")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with open_client(ClusterConfig(processes=False, workers=3, dashboard=None)) as client:
        yield client


def recipe_for(raw: Path, output: Path, **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "output": str(output),
        "format": "zarr",
        "sources": [{"name": "ani1x", "reader": "ani1x", "path": str(raw)}],
        "part_bytes": 1000,
        "shard_bytes": 4000,
        "split": {"train": 0.5, "validation": 0.25, "test": 0.25, "seed": 1},
    }
    return parse_config(Recipe, data | changes, "test")


def tree(output: Path) -> dict[str, bytes]:
    """Return every file of a dataset but the manifest's account of when and where it was made."""
    files = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and "build" not in path.relative_to(output).parts
    }
    manifest = json.loads(files["manifest.json"])
    del manifest["provenance"], manifest["checksum"]
    return files | {"manifest.json": json.dumps(manifest).encode()}


class Stop(Watcher):
    """Interrupts after some parts, as Ctrl-C would; remembers what was finished before."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.found: list[str] = []

    def planned(self, plan: Plan, read: Sequence[PartDone]) -> None:
        self.found = [done.name for done in read]

    def part_read(self, planned: PlannedPart, done: PartDone) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_every_record_is_stored_or_rejected_and_reads_back_exactly(
    raw: Path, tmp_path: Path, client: Any
) -> None:
    manifest = build(recipe_for(raw, tmp_path / "out"), client=client)
    assert manifest.rejects.pop("force-too-large") == 1
    assert manifest.datasets[0].rejected["atoms-too-close"] == 1
    assert manifest.structures + sum(manifest.datasets[0].rejected.values()) == len(MOLECULES) * CONFORMERS
    dataset = open_dataset(tmp_path / "out", verify=True)
    stored: dict[tuple[int, ...], list[Structure]] = {}
    for i in range(len(dataset)):
        structure = dataset[i]
        stored.setdefault(tuple(structure.numbers.tolist()), []).append(structure)
    with h5py.File(raw) as file:
        for formula, numbers in MOLECULES.items():
            group = file[formula]
            rows = [row for row in range(CONFORMERS) if formula != "H2O" or row not in (3, 5, 7)]
            expected = [] if formula == "N2" else rows
            found = stored.pop(tuple(numbers), [])
            assert len(found) == len(expected)
            for structure, row in zip(found, expected, strict=True):
                assert structure.energy == group["wb97x_dz.energy"][row] * HARTREE
                np.testing.assert_array_equal(structure.positions, group["coordinates"][row])
                forces = (group["wb97x_dz.forces"][row].astype(np.float64) * HARTREE).astype(np.float32)
                np.testing.assert_array_equal(structure.forces, forces)
    assert not stored
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "out" / "rejects").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    wild = next(line for line in lines if line["reason"] == "force-too-large")
    assert wild["dataset"] == "ani1x"
    assert "H2O" in wild["source"]
    assert wild["value"] == "600 eV/angstrom"


def test_a_part_without_any_accepted_structure_is_in_no_shard_and_its_rejects_are_kept(
    raw: Path, tmp_path: Path, client: Any
) -> None:
    recipe = recipe_for(raw, tmp_path / "out", shard_bytes=1)
    manifest = build(recipe, client=client)
    assert len(manifest.shards) < len(make_plan(recipe).parts)
    assert manifest.datasets[0].rejected["nan-energy"] == CONFORMERS + 1


def test_small_parts_share_shards_and_nothing_else_changes(raw: Path, tmp_path: Path, client: Any) -> None:
    alone = build(recipe_for(raw, tmp_path / "alone", shard_bytes=1), client=client)
    joined = build(recipe_for(raw, tmp_path / "joined", shard_bytes="1MiB"), client=client)
    assert len(alone.shards) > len(joined.shards) == 1
    assert joined.content_hash == alone.content_hash
    one, other = (open_dataset(tmp_path / name, verify=True) for name in ("alone", "joined"))
    rows = np.arange(len(one))
    for name, column in one.batch(rows).columns.items():
        np.testing.assert_array_equal(column, other.batch(rows).columns[name])
    np.testing.assert_array_equal(one.num_edges, other.num_edges)
    assert alone.statistics == joined.statistics


def test_only_what_is_needed_stays_in_a_complete_dataset(raw: Path, tmp_path: Path, client: Any) -> None:
    build(recipe_for(raw, tmp_path / "out"), client=client)
    left = {path.name for path in (tmp_path / "out" / "build").iterdir()}
    assert left == {"lock", "plan.json", "tasks.lock"}


@pytest.mark.parametrize("format", ["adios", "zarr"])
def test_the_same_bytes_whatever_the_workers_the_order_and_the_interruptions(
    raw: Path, tmp_path: Path, client: Any, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(recipe_for(raw, tmp_path / "three", format=format), client=client)
    one = {"processes": False, "workers": 1, "dashboard": None}
    build(recipe_for(raw, tmp_path / "one", format=format, cluster=one))

    recipe = recipe_for(raw, tmp_path / "stopped", format=format)
    with pytest.raises(KeyboardInterrupt):
        build(recipe, client=client, watcher=Stop(after=3))
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    again = Stop(after=-1)
    build(recipe, client=client, watcher=again)
    assert len(again.found) >= 3

    read = ingest.build._read
    monkeypatch.setattr(ingest.build, "_read", lambda c, plan, missing: read(c, plan, missing[::-1]))
    build(recipe_for(raw, tmp_path / "reversed", format=format), client=client)

    expected = tree(tmp_path / "three")
    for name in ("one", "stopped", "reversed"):
        assert tree(tmp_path / name) == expected, name


def test_both_formats_hold_the_same_content(raw: Path, tmp_path: Path, client: Any) -> None:
    hashes = {
        build(recipe_for(raw, tmp_path / format, format=format), client=client).content_hash
        for format in ("adios", "zarr")
    }
    assert len(hashes) == 1


def stop_before(stage: str, recipe: Recipe, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until a step of `build` would begin."""

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"ingest.build.{stage}", stop)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, client=client)


def test_a_part_whose_files_were_damaged_or_receipt_torn_is_read_again(
    raw: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(recipe_for(raw, tmp_path / "whole"), client=client)
    recipe = recipe_for(raw, tmp_path / "out")
    stop_before("screen_all", recipe, client, monkeypatch)
    folder = tmp_path / "out" / "build"
    (folder / "staged" / "shards" / "000000.sizes.npy").write_bytes(b"")
    (folder / "receipts" / "000002.json").write_text('{"digest": "')
    (folder / "tables" / "000001.npz").unlink()
    (folder / "staged" / "shards" / "000001.zarr.0123456789ab.tmp").mkdir()
    again = Stop(after=-1)
    build(recipe, client=client, watcher=again)
    names = [planned.name for planned in make_plan(recipe).parts]
    assert again.found == [name for name in names if name not in ("000000", "000001", "000002")]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_settled_shard_that_was_damaged_is_made_again_and_no_other(
    raw: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(recipe_for(raw, tmp_path / "whole"), client=client)
    recipe = recipe_for(raw, tmp_path / "out")
    stop_before("commit", recipe, client, monkeypatch)
    shards = sorted((tmp_path / "out" / "build" / "shards").glob("*.json"))
    assert len(shards) > 1
    assert not list((tmp_path / "out" / "build" / "staged" / "shards").iterdir())
    parts = json.loads(shards[1].read_text())["parts"]
    (tmp_path / "out" / "shards" / f"{shards[1].stem}.sizes.npy").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in shards if path != shards[1]}
    again = Stop(after=-1)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.build.tidy", lambda output: None)
        build(recipe, client=client, watcher=again)
    names = [planned.name for planned in make_plan(recipe).parts]
    assert again.found == [name for name in names if name not in parts]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_complete_dataset_is_left_alone_and_another_recipe_refused(
    raw: Path, tmp_path: Path, client: Any
) -> None:
    recipe = recipe_for(raw, tmp_path / "out")
    first = build(recipe, client=client)

    class Complete(Watcher):
        said = False

        def complete(self, manifest: Any) -> None:
            self.said = True

    watcher = Complete()
    moved = recipe.model_copy(update={"on_error": "reject", "cluster": ClusterConfig(workers=7)})
    assert build(moved, watcher=watcher) == first
    assert watcher.said
    with pytest.raises(ConfigError, match=r"filters\.max_force: 500\.0 before, 10\.0 now"):
        build(recipe_for(raw, tmp_path / "out", filters={"max_force": 10.0}))


def test_an_unfinished_run_of_another_recipe_or_of_other_files_is_refused(tmp_path: Path, client: Any) -> None:
    raw = write_raw(tmp_path / "ani1x.h5")
    with pytest.raises(KeyboardInterrupt):
        build(recipe_for(raw, tmp_path / "out"), client=client, watcher=Stop(after=1))
    with pytest.raises(ConfigError, match=r"split\.seed: 1 before, 0 now"):
        build(recipe_for(raw, tmp_path / "out", split={"train": 0.5, "validation": 0.25, "test": 0.25}))
    with raw.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ConfigError, match=r"size of .*ani1x\.h5"):
        build(recipe_for(raw, tmp_path / "out"), client=client)


def test_a_directory_of_something_else_is_not_touched(raw: Path, tmp_path: Path, client: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        build(recipe_for(raw, tmp_path), client=client)


def test_two_runs_at_once_in_one_place_are_refused(raw: Path, tmp_path: Path, client: Any) -> None:
    (tmp_path / "out" / "build").mkdir(parents=True)
    with (tmp_path / "out" / "build" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another run is writing"):
            build(recipe_for(raw, tmp_path / "out"), client=client)


def test_an_unreadable_file_stops_the_run_by_name_or_is_counted(raw: Path, tmp_path: Path, client: Any) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.h5").write_bytes(raw.read_bytes())
    (tmp_path / "raw" / "b.h5").write_bytes(raw.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"b\.h5.*on_error: reject"):
        build(recipe_for(tmp_path / "raw", tmp_path / "out"), client=client)
    # The same output goes on with the other setting: what is finished is the same either way.
    manifest = build(recipe_for(tmp_path / "raw", tmp_path / "out", on_error="reject"), client=client)
    assert manifest.rejects["unreadable-file"] == 1
    assert manifest.structures == open_dataset(tmp_path / "out").manifest.structures > 0


class Doubtful(Ani1x):
    """A reader of files whose checksum, at the end, is wrong."""

    def read(self, part: Part) -> Iterator[Block]:
        yield from super().read(part)
        if part.start == 0:
            raise CorruptDataError(f"{part.path}: the checksum is wrong")


def test_what_was_read_before_a_checksum_failed_is_left_out_and_said(
    raw: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(raw, tmp_path / "out", on_error="reject")
    sound = build(recipe_for(raw, tmp_path / "sound"), client=client)
    manifest = build(with_reader(Doubtful, recipe, monkeypatch), client=client)
    lines = (tmp_path / "out" / "rejects" / "000000.jsonl").read_text().splitlines()
    value = next(line["value"] for line in map(json.loads, lines) if line["reason"] == "unreadable-file")
    left_out = int(re.search(r"; (\d+) structures that were read", value)[1])  # type: ignore[index]
    assert 0 < left_out == sound.structures - manifest.structures


def test_nothing_accepted_at_all_is_an_error(raw: Path, tmp_path: Path, client: Any) -> None:
    with pytest.raises(MissingDataError, match="not one structure"):
        build(recipe_for(raw, tmp_path / "out", filters={"max_atoms": 1}), client=client)


def test_references_are_fitted_on_the_training_split_only(raw: Path, tmp_path: Path, client: Any) -> None:
    manifest = build(recipe_for(raw, tmp_path / "out"), client=client)
    dataset = open_dataset(tmp_path / "out")
    train = dataset.batch(dataset.split_ids("train"))
    counts = compositions(train)
    seen = counts.any(axis=0)
    values, _, rank, _ = np.linalg.lstsq(counts[:, seen], train.columns["energy"], rcond=None)
    reference = manifest.datasets[0].reference
    assert reference.count == len(train)
    assert (reference.rank, reference.num_elements) == (rank, seen.sum())
    symbols = [chemical_symbols[z] for z in np.flatnonzero(seen)]
    np.testing.assert_allclose([reference.values[s] for s in symbols], values, atol=1e-6, rtol=0)
    everything = dataset.batch(np.arange(len(dataset)))
    all_symbols = {chemical_symbols[z] for z in np.unique(everything.columns["numbers"])}
    assert set(reference.unseen) == all_symbols - set(symbols)
    fractions = (0.5, 0.25, 0.25)
    np.testing.assert_array_equal(dataset.split, split_of(everything.columns["group"], fractions, 1))
    statistics = manifest.statistics["ani1x"]
    assert statistics["num_atoms"]["count"] == len(dataset)
    assert statistics["force_component_train"]["mean"] == pytest.approx(
        train.columns["forces"].mean(), abs=1e-6
    )


def test_status_follows_the_parts_on_disk(raw: Path, tmp_path: Path, client: Any) -> None:
    recipe = recipe_for(raw, tmp_path / "out")
    with pytest.raises(MissingDataError, match="no ingestion was begun"):
        status_of(tmp_path / "out")
    seen: list[dict[str, Any]] = []

    class Look(Stop):
        def part_read(self, planned: PlannedPart, done: PartDone) -> None:
            seen.append(status_of(tmp_path / "out"))
            super().part_read(planned, done)

    with pytest.raises(KeyboardInterrupt):
        build(recipe, client=client, watcher=Look(after=2))
    assert [(status["state"], status["stage"]) for status in seen] == [("running", "reading")] * 2
    assert seen[1]["parts"]["done"] >= 2
    stopped = status_of(tmp_path / "out")
    assert stopped["state"] == "unfinished"
    assert 0 < stopped["parts"]["done"] <= stopped["parts"]["total"] == len(make_plan(recipe).parts)
    manifest = build(recipe, client=client)
    done = status_of(tmp_path / "out")
    assert (done["state"], done["structures"], done["rejects"]) == (
        "complete",
        manifest.structures,
        manifest.rejects,
    )


def _start(recipe: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("gfm")), "ingest", "run", str(recipe), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )


def _wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_source_may_state_its_own_theory_licence_and_doi(raw: Path, tmp_path: Path, client: Any) -> None:
    own = {"theory": "GFN2-xTB", "licence": "CC0-1.0", "doi": ""}
    sources = [
        {"name": "ours", "reader": "ani1x", "path": str(raw), **own},
        {"name": "theirs", "reader": "ani1x", "path": str(raw), "theory": "HF"},
    ]
    recipe = recipe_for(raw, tmp_path / "out", sources=sources, duplicates="keep")
    ours, theirs = build(recipe, client=client).datasets
    assert ours.model_dump(include=set(own)) == own
    assert (theirs.theory, theirs.doi) == ("HF", "10.1038/s41597-020-0473-z")


class Fatal(Ani1x):
    """A reader under which a worker dies, as when memory runs out."""

    def read(self, part: Part) -> Iterator[Block]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from super().read(part)


class Refused(Ani1x):
    """A reader of files that may not be opened."""

    def read(self, part: Part) -> Iterator[Block]:
        raise PermissionError(errno.EACCES, "Permission denied", part.path)


def with_reader(cls: type[Ani1x], recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Let a recipe read through another class."""
    monkeypatch.setattr(Source, "open_reader", lambda self: cls())
    return recipe


def test_a_file_that_may_not_be_opened_is_unreadable_not_a_mistake_of_the_reader(
    raw: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_reader(Refused, recipe_for(raw, tmp_path / "out"), monkeypatch)
    with pytest.raises(DataError, match=r"Permission denied.*Mend or replace") as caught:
        build(recipe, client=client)
    assert "mistake" not in str(caught.value)
    with pytest.raises(MissingDataError, match="not one structure"):
        build(recipe.model_copy(update={"on_error": "reject"}), client=client)
    assert "Permission denied" in next((tmp_path / "out" / "rejects").iterdir()).read_text()


@pytest.mark.parametrize("stage", ["write_shard", "receipt"])
def test_a_full_disk_is_told_with_the_place_and_the_run_goes_on_once_there_is_room(
    raw: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = recipe_for(raw, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(f"ingest.part.{'write_shard' if stage == 'write_shard' else 'receipt_path'}", full)
        with pytest.raises(ResourceError, match=r"out: the disk is full .* left"):
            build(recipe, client=client)
    assert build(recipe, client=client).structures > 0


def test_an_output_below_a_file_is_refused_by_name(raw: Path, tmp_path: Path, client: Any) -> None:
    with pytest.raises(DataError, match="Not a directory"):
        build(recipe_for(raw, raw / "out"), client=client)


def test_energies_far_from_their_reference_are_warned_of(
    tmp_path: Path, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raw(tmp_path / "raw.h5")
    with h5py.File(path, "r+") as file:
        file["CO/wb97x_dz.energy"][...] += np.where(np.arange(CONFORMERS) == 0, -1e5, 0.0)
    everything = {"train": 1.0, "validation": 0.0, "test": 0.0}
    recipe = recipe_for(path, tmp_path / "out", split=everything, filters={"outliers": None})
    build(recipe, client=client)
    assert "look for outliers" in caplog.text


@pytest.mark.slow
def test_a_part_that_kills_its_workers_is_named_and_the_task_is_not_tried_forever(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = with_reader(Fatal, recipe_for(raw, tmp_path / "out", cluster={"workers": 1}), monkeypatch)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(ResourceError, match=f"1 workers died .* while reading {raw}.*cluster.memory"),
    ):
        build(recipe)
    # The log of the scheduler and of the nanny would say it again, at length.
    assert "distributed" not in capfd.readouterr().err
    assert not is_running(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_killed_or_interrupted_in_the_middle_the_second_run_ends_with_the_same_bytes(
    tmp_path: Path, client: Any, end: signal.Signals, raw: Path
) -> None:
    build(recipe_for(raw, tmp_path / "whole", part_bytes=300), client=client)
    recipe = recipe_for(raw, tmp_path / "out", part_bytes=300, cluster={"workers": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    receipts = tmp_path / "out" / "build" / "receipts"
    process = _start(path)
    try:
        _wait_for(lambda: receipts.is_dir() and len(list(receipts.glob("*.json"))) >= 3, process)
        # A terminal's Ctrl-C and hang-up reach the whole group; kill and a batch system only the client.
        terminal = end in (signal.SIGINT, signal.SIGHUP)
        os.killpg(process.pid, end) if terminal else process.send_signal(end)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert stdout == ""
    assert not (tmp_path / "out" / "manifest.json").exists()
    if end != signal.SIGKILL:
        assert process.returncode == 128 + end
        assert "the same command goes on" in stderr
        assert "Traceback" not in stderr
        assert not (tmp_path / "out" / "build" / "running.json").exists()
    finished = len(list(receipts.glob("*.json")))
    again = _start(path)
    stdout, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert f"{finished} of them read before" in stderr
    assert json.loads(stdout)["content_hash"] == open_dataset(tmp_path / "whole").manifest.content_hash
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
