"""Sample stores without MPI give what the dataset gives, from memory or from disk."""

import numpy as np
import pytest

from gfm.errors import ConfigError, DataError, ResourceError
from store import memory
from store.index import RowIndex
from store.samples import open_samples


@pytest.fixture
def dataset(tmp_path, format, make_dataset, three_shards):
    return make_dataset(tmp_path, format, three_shards)


@pytest.mark.parametrize("kind", ["local", "disk"])
def test_a_store_gives_what_the_dataset_gives(dataset, same, kind):
    rng = np.random.default_rng(0)
    with open_samples(dataset, kind) as samples:
        assert (samples.kind, len(samples), samples.schema) == (kind, 33, dataset.schema)
        for count in (0, 1, 5, 40):
            ids = rng.integers(0, 33, count)
            assert same(samples.get(ids), dataset.batch(ids))
        assert samples.stats["records"] == samples.stats[kind] == 46
        with pytest.raises(DataError, match=r"rows are 0\.\.32"):
            samples.get(np.array([33]))


@pytest.mark.parametrize("kind", ["local", "disk"])
def test_a_store_of_some_rows_gives_those_only(dataset, same, kind):
    rows = np.array([30, 2, 3, 4, 2, 19, 20])
    samples = open_samples(dataset, kind, ids=rows)
    assert len(samples) == 6
    assert same(samples.get(rows), dataset.batch(rows))
    with pytest.raises(DataError, match="row 5 is not among the 6 rows"):
        samples.get(np.array([3, 5]))
    with pytest.raises(DataError, match="row 32 is not among"):
        samples.get(np.array([32]))
    with pytest.raises(DataError, match=r"rows are 0\.\.32"):
        open_samples(dataset, kind, ids=np.array([33]))


def test_blocks_of_preloading_do_not_show(dataset, same, monkeypatch):
    monkeypatch.setattr("store.preload.BLOCK_NBYTES", 2000)
    assert same(open_samples(dataset).get(np.arange(33)), dataset.batch(np.arange(33)))
    odd = np.arange(1, 33, 2)
    assert same(open_samples(dataset, ids=odd).get(odd), dataset.batch(odd))


def test_only_shards_that_are_asked_for_are_read(dataset, same):
    expected = dataset.batch([25])
    for path in dataset.path.glob("shards/000000.*"):
        path.rename(path.with_name("elsewhere" + path.suffix))
    assert same(open_samples(dataset, "local", ids=np.array([25])).get([25]), expected)


def test_too_little_memory_is_said_before_loading(dataset, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 300 << 20)
    open_samples(dataset, "local")
    monkeypatch.setattr(memory, "available_memory", lambda: 256 << 20)
    with pytest.raises(ResourceError, match=r"need .* of memory and 256\.0 MiB are available; use store 'rma'"):
        open_samples(dataset, "local")


def test_one_process_has_no_window(dataset):
    assert open_samples(dataset).kind == "local"
    with pytest.raises(ConfigError, match="needs ranks"):
        open_samples(dataset, "rma")


def test_an_unknown_store_gets_a_suggestion(dataset):
    with pytest.raises(ConfigError, match="Did you mean 'local'"):
        open_samples(dataset, "locl")


def test_a_closed_store_says_so(dataset):
    samples = open_samples(dataset, "local")
    samples.close()
    with pytest.raises(DataError, match="closed"):
        samples.get(np.array([0]))


def test_the_index_knows_sizes_without_opening_a_sample(dataset):
    index = RowIndex.of(dataset, None)
    _, starts = dataset.batch(np.arange(33)).pack(dataset.schema)
    assert np.array_equal(index.starts, starts)


def test_bytes_are_written_as_people_read_them():
    sizes = [memory.sized(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3072.0 GiB"]
