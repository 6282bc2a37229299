"""Every damaged sample file: the good records come through, each bad one is refused with its reason.

The ``bad/`` folders beside the sample data hold damage made on purpose; their notes say what. A file that
cannot be opened at all stops the build with an error that names it, or is counted, as the recipe says.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import store
from gfm.errors import DataError
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest.build import build
from ingest.recipe import Recipe

pytestmark = [pytest.mark.data, pytest.mark.slow]


@dataclass(frozen=True)
class Damaged:
    """A damaged file, and what must become of its records."""

    reader: str
    path: str
    structures: int
    reasons: dict[str, int]


DAMAGED = {
    # C0H0 has no conformer, so what is refused is the formula.
    "ani1x-records": Damaged(
        "ani1x",
        "synthetic-ani1x/bad/ani1x-bad-records.h5",
        35,
        {
            "nan-energy": 1, "nan-forces": 1, "infinite-energy": 1, "missing-forces": 16, "no-atoms": 1,
            "force-too-large": 1, "atoms-too-close": 1,
        },
    ),
    "qm7x-records": Damaged(
        "qm7x",
        "synthetic-qm7x/bad/qm7x-bad-records.hdf5",
        25,
        {
            "nan-energy": 1, "force-too-large": 1, "missing-forces": 1, "missing-positions": 1,
            "bad-atomic-number": 1,
        },
    ),
    "mptrj-records": Damaged(
        "mptrj",
        "synthetic-mptrj/bad/bad_records.json",
        42,
        {
            "nan-energy": 1, "force-too-large": 1, "missing-forces": 1, "bad-shape": 1, "partial-occupancy": 1,
            "bad-structure": 1,
        },
    ),
    "mptrj-truncated": Damaged("mptrj", "synthetic-mptrj/bad/truncated.json", 117, {"truncated-file": 1}),
    "oc20-short-sidecar": Damaged("oc20", "synthetic-oc20/bad/0.extxyz.xz", 9, {"missing-sidecar": 1}),
    "oc20-cut-text": Damaged("oc20", "synthetic-oc20/bad/1.extxyz.xz", 7, {"truncated-file": 1}),
    "oc20-cut-stream": Damaged("oc20", "synthetic-oc20/bad/2.extxyz.xz", 4, {"truncated-file": 1}),
    "oc20-records": Damaged(
        "oc20", "synthetic-oc20/bad/3.extxyz.xz", 8, {"nan-energy": 1, "force-too-large": 1}
    ),
    "oc20-no-sidecar": Damaged("oc20", "synthetic-oc20/bad/4.extxyz.xz", 0, {"missing-sidecar": 10}),
    "oc20-no-length": Damaged("oc20", "synthetic-oc20/bad/lmdb_no_length.lmdb", 5, {}),
    "oc20-lmdb-records": Damaged(
        "oc20",
        "synthetic-oc20/bad/lmdb_bad_records.lmdb",
        1,
        {"nan-energy": 1, "force-too-large": 1, "missing-forces": 1, "bad-shape": 1},
    ),
    "oc20-hostile": Damaged("oc20", "synthetic-oc20/bad/lmdb_hostile_pickle.lmdb", 1, {"hostile-pickle": 1}),
}  # fmt: skip

UNREADABLE = {
    "ani1x": "synthetic-ani1x/bad/ani1x-truncated.h5",
    "qm7x": "synthetic-qm7x/bad/truncated-1000.hdf5",
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with open_client(ClusterConfig(processes=False, workers=1, threads=2, dashboard=None)) as started:
        yield started


def run(output: Path, client: Any, sources: list[dict[str, Any]], **settings: Any) -> store.Dataset:
    # Every record is looked for again: nothing is left out for being odd, or there twice.
    everything = {"duplicates": "keep", "filters": {"outliers": None}}
    data = {"output": str(output), "sources": sources, **everything, **settings}
    recipe = parse_config(Recipe, data, "test")
    build(recipe, client=client)
    return store.open_dataset(output, verify=True)


def rejects_of(dataset: store.Dataset) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(Path(dataset.path).glob("rejects/*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def salvaged(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, client: Any) -> store.Dataset:
    """All damaged files in one dataset."""
    sources = [
        {"name": name, "reader": damaged.reader, "path": str(shared_data / damaged.path)}
        for name, damaged in DAMAGED.items()
    ]
    return run(tmp_path_factory.mktemp("damaged") / "dataset", client, sources)


@pytest.mark.parametrize("name", list(DAMAGED))
def test_good_records_come_through_and_bad_ones_are_refused_with_a_reason(
    name: str, salvaged: store.Dataset
) -> None:
    damaged = DAMAGED[name]
    rejects = [reject for reject in rejects_of(salvaged) if reject["dataset"] == name]
    assert Counter(reject["reason"] for reject in rejects) == damaged.reasons
    assert all(Path(damaged.path).name in reject["source"] for reject in rejects)
    entry = next(entry for entry in salvaged.manifest.datasets if entry.name == name)
    assert entry.rejected == damaged.reasons
    index = salvaged.dataset_names.index(name)
    assert entry.structures == int((salvaged.dataset_index == index).sum()) == damaged.structures


def test_a_hostile_pickle_is_never_executed(
    tmp_path: Path, shared_data: Path, client: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = {"name": "oc20", "reader": "oc20", "path": str(shared_data / DAMAGED["oc20-hostile"].path)}
    dataset = run(tmp_path / "dataset", client, [source])
    output = capfd.readouterr()
    assert "outside the allow-list was CALLED" not in output.out + output.err
    assert "print" in rejects_of(dataset)[0]["value"]


@pytest.mark.parametrize("reader", list(UNREADABLE))
def test_an_unreadable_file_stops_the_build_and_is_named(
    reader: str, tmp_path: Path, shared_data: Path, client: Any
) -> None:
    path = shared_data / UNREADABLE[reader]
    with pytest.raises(DataError, match=path.name):
        run(tmp_path / "dataset", client, [{"name": "broken", "reader": reader, "path": str(path)}])
    assert not (tmp_path / "dataset" / "manifest.json").exists()


@pytest.mark.parametrize("reader", list(UNREADABLE))
def test_an_unreadable_file_is_counted_when_the_recipe_says_so(
    reader: str, tmp_path: Path, shared_data: Path, client: Any
) -> None:
    path = shared_data / UNREADABLE[reader]
    good = {
        "name": "good",
        "reader": "ani1x",
        "path": str(shared_data / "synthetic-ani1x/ani1x-synthetic-gfn2.h5"),
    }
    broken = {"name": "broken", "reader": reader, "path": str(path)}
    dataset = run(tmp_path / "dataset", client, [good, broken], on_error="reject")
    assert len(dataset) == 464
    rejects = rejects_of(dataset)
    assert [reject["reason"] for reject in rejects] == ["unreadable-file"]
    assert path.name in rejects[0]["source"]
    assert dataset.manifest.datasets[1].rejected == {"unreadable-file": 1}


def test_a_path_that_is_not_there_is_an_error_before_anything_is_written(tmp_path: Path, client: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        run(
            tmp_path / "dataset",
            client,
            [{"name": "x", "reader": "ani1x", "path": str(tmp_path / "nowhere.h5")}],
        )
    assert not (tmp_path / "dataset" / "manifest.json").exists()
