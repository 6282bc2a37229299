"""A task that is given out again after its worker was lost does not do its work, or undo it, a second time."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ingest.build
import ingest.once
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.build import build
from ingest.once import read_once, settle_once
from ingest.recipe import Recipe
from ingest.settle import ShardTask, settle_shard
from store import open_dataset


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with open_client(ClusterConfig(processes=False, workers=1, dashboard=None)) as client:
        yield client


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        for formula, numbers in {"H2O": [8, 1, 1], "NH3": [7, 1, 1, 1]}.items():
            group, shape = file.create_group(formula), (20, len(numbers), 3)
            group["atomic_numbers"] = np.array(numbers, dtype=np.uint8)
            group["coordinates"] = rng.normal(size=shape) + 3.0 * np.arange(len(numbers))[:, None]
            group["wb97x_dz.energy"] = rng.normal(size=20)
            group["wb97x_dz.forces"] = rng.normal(scale=0.01, size=shape)
    data = {
        "output": str(tmp_path / "out"),
        "sources": [{"name": "raw", "reader": "ani1x", "path": str(tmp_path / "raw.h5")}],
        "part_bytes": 1000,
        "shard_bytes": 3000,
    }
    return parse_config(Recipe, data, "test")


def _is_whole(recipe: Recipe) -> None:
    dataset = open_dataset(recipe.output, verify=True)
    assert len(dataset) + sum(dataset.manifest.rejects.values()) == 40


def test_a_shard_that_is_written_is_not_written_again(
    recipe: Recipe, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(task: ShardTask) -> str:
        assert settle_once(task) == settle_once(task)
        return task.name

    monkeypatch.setattr(ingest.build, "settle_once", twice)
    build(recipe, client=client)
    _is_whole(recipe)


def test_a_shard_that_another_worker_finishes_meanwhile_is_as_good(
    recipe: Recipe, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken: list[str] = []

    def overtake(task: ShardTask) -> str:
        settle_shard(task)
        overtaken.append(task.name)
        return settle_shard(task)  # what was staged is gone

    monkeypatch.setattr("ingest.once.settle_shard", overtake)
    build(recipe, client=client)
    assert len(overtaken) > 1
    _is_whole(recipe)


def test_a_part_that_another_worker_finishes_meanwhile_is_as_good(
    recipe: Recipe, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_part: Callable[[Any], Any] = ingest.once.run_part

    def overtake(task: Any) -> Any:
        run_part(task)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr("ingest.once.run_part", overtake)
    build(recipe, client=client)
    _is_whole(recipe)


def test_a_part_that_is_read_is_not_read_again(
    recipe: Recipe, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    run_part: Callable[[Any], Any] = ingest.once.run_part

    def count(task: Any) -> Any:
        read.append(task.planned.name)
        return run_part(task)

    def twice(task: Any) -> Any:
        assert read_once(task) == read_once(task)
        return read_once(task)

    monkeypatch.setattr("ingest.once.run_part", count)
    monkeypatch.setattr(ingest.build, "read_once", twice)
    build(recipe, client=client)
    assert len(read) == len(set(read)) > 1
    _is_whole(recipe)
