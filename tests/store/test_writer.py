"""Writing shards and committing a dataset: what is refused, what is filled in."""

import numpy as np
import pytest

from gfm.data.ragged import RaggedBatch
from gfm.errors import ConfigError, DataError, MissingDataError
from store.dataset import open_dataset
from store.manifest import DatasetEntry, ShardReceipt, Splits
from store.writer import commit_dataset, write_shard


@pytest.fixture
def batch(structures):
    return RaggedBatch.from_structures(structures(6))


def write(path, batch, name="000000", **changes):
    arguments = {
        "num_edges": np.arange(6),
        "split": np.zeros(6, dtype=np.uint8),
        "dataset_names": ["a", "b"],
        "format": "adios",
    }
    return write_shard(path, name, batch, **{**arguments, **changes})


def commit(path, receipts, **changes):
    arguments = {
        "format": "adios",
        "datasets": [DatasetEntry(name="a"), DatasetEntry(name="b")],
        "edges_cutoff": 5.0,
        "splits": Splits(),
        "statistics": {},
        "provenance": {},
    }
    return commit_dataset(path, receipts, **{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_edges": np.arange(5)}, r"num_edges has shape \(5,\), expected \(6,\)"),
        ({"split": np.full(6, 3)}, "split is an index into"),
        ({"num_edges": np.full(6, 2**31)}, "must fit int32"),
        ({"dataset_names": ["a"]}, r"dataset index 1, but there are only the datasets \['a'\]"),
        ({"name": "../elsewhere"}, "letters, digits"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, batch, changes, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, batch, **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_gets_a_suggestion(tmp_path, batch):
    with pytest.raises(ConfigError, match="Did you mean 'adios'"):
        write(tmp_path, batch, format="adois")


def test_a_receipt_goes_through_json(tmp_path, batch):
    receipt = write(tmp_path, batch)
    assert ShardReceipt.model_validate_json(receipt.model_dump_json()) == receipt
    assert (receipt.structures, receipt.atoms, receipt.edges) == (6, batch.offsets[-1], 15)
    assert receipt.bytes == sum((tmp_path / file.path).stat().st_size for file in receipt.files)


def test_a_shard_written_again_replaces_the_old_one(tmp_path, batch, format):
    first = write(tmp_path, batch, format=format)
    second = write(tmp_path, batch.take([5, 4, 3, 2, 1, 0]), format=format)
    assert first.content_hash == second.content_hash
    assert first.files != second.files
    commit(tmp_path, [second], format=format)
    keys = [structure.key for structure in open_dataset(tmp_path, verify=True)]
    assert keys == batch.columns["key"][::-1].tolist()


def test_counts_are_filled_in(tmp_path, batch):
    manifest = commit(tmp_path, [write(tmp_path, batch, split=np.array([0, 0, 0, 1, 2, 2]))])
    assert [entry.structures for entry in manifest.datasets] == [3, 3]
    assert sum(entry.atoms for entry in manifest.datasets) == manifest.atoms == batch.offsets[-1]
    assert manifest.splits.counts == {"train": 3, "validation": 1, "test": 2}


def test_the_order_of_receipts_is_the_order_of_rows(tmp_path, batch):
    receipts = [write(tmp_path, batch[3:6], "b", num_edges=np.arange(3), split=np.zeros(3, int))]
    receipts.append(write(tmp_path, batch[0:3], "a", num_edges=np.arange(3), split=np.zeros(3, int)))
    commit(tmp_path, receipts)
    dataset = open_dataset(tmp_path)
    assert dataset.batch([0]).columns["key"] == batch.columns["key"][3]
    assert dataset.num_atoms.tolist() == [*batch.num_atoms[3:], *batch.num_atoms[:3]]


def test_a_commit_that_does_not_fit_its_shards_is_refused(tmp_path, batch):
    receipt = write(tmp_path, batch)
    with pytest.raises(DataError, match="two receipts for the same shard"):
        commit(tmp_path, [receipt, receipt])
    with pytest.raises(DataError, match="dataset index 1 of 1 datasets"):
        commit(tmp_path, [receipt], datasets=[DatasetEntry(name="a")])
    with pytest.raises(DataError, match="4 structures and 0 atoms were announced"):
        commit(tmp_path, [receipt], datasets=[DatasetEntry(name="a", structures=4), DatasetEntry(name="b")])
    (tmp_path / receipt.files[0].path).unlink()
    with pytest.raises(MissingDataError, match="missing"):
        commit(tmp_path, [receipt])
    assert not (tmp_path / "manifest.json").exists()
