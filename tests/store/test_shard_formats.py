"""What every format of shards must do; one suite for all of them."""

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfm.data.fields import FIELDS
from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from gfm.errors import CorruptDataError, DataError
from store.content import content_hash
from store.shards import FORMATS
from store.writer import write_shard

# Flushing to a real disk is the time of many small data sets, and not what is asked here.
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
ROUND_TRIPS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def any_structure(draw: st.DrawFn) -> Structure:
    """Any structure of 1 to 5 atoms: any bits in its arrays, any optional fields."""
    num_atoms = draw(st.integers(1, 5))
    values = {}
    for name, field in FIELDS.items():
        if name == "dataset":
            values[name] = draw(st.integers(0, 1))
        elif not (field.optional and draw(st.booleans())):
            shape = (num_atoms, *field.shape) if field.per == "atom" else field.shape
            array = draw(npst.arrays(field.dtype, shape))
            values[name] = array if shape else array.item()
    return Structure(**values)


@given(shards=st.lists(st.lists(any_structure(), max_size=5), min_size=1, max_size=3), data=st.data())
@ROUND_TRIPS
def test_what_is_written_is_read_back_bit_for_bit(format, make_dataset, same, shards, data):
    everything = RaggedBatch.from_structures([structure for shard in shards for structure in shard])
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as path:
        dataset = make_dataset(Path(path), format, shards)
        expected = everything.select(dataset.schema)
        assert len(dataset) == len(everything)
        assert set(dataset.schema) == set(everything.schema)
        assert same(dataset.batch(np.arange(len(dataset))), expected)
        assert same(RaggedBatch.concatenate([dataset.shard(k) for k in range(len(shards))]), expected)
        assert dataset.manifest.content_hash == content_hash(everything, ["molecules", "crystals"])
        if len(dataset):
            ids = np.array(data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=12)), dtype=np.int64)
            assert same(dataset.batch(ids), expected.take(ids))


def test_both_ways_of_reading_agree(tmp_path, format, make_dataset, structures, same):
    dataset = make_dataset(tmp_path, format, [structures(40)])
    library = dataset.open_shard(0, verify=True, mapped=False)
    rows = np.array([7, 7, 39, 0, 1, 2, 3, 38, 5])
    assert same(library.read(0, 40), dataset.opened(0).read(0, 40))
    assert same(library.read(11, 29), dataset.opened(0).read(11, 29))
    assert same(library.take(rows), dataset.opened(0).take(rows))


def test_a_structure_comes_back_with_just_the_fields_it_had(tmp_path, format, make_dataset, three_shards):
    dataset = make_dataset(tmp_path, format, three_shards)
    originals = [structure for shard in three_shards for structure in shard]
    for row in (0, 3, 19, 20, 32, -1):
        original, read = originals[row], dataset[row]
        for name in FIELDS:
            one, other = getattr(original, name), getattr(read, name)
            assert (one is None) == (other is None), name
            assert one is None or np.array_equal(one, other), name
    assert [structure.key for structure in dataset] == [structure.key for structure in originals]


def test_fields_no_structure_has_are_not_stored(tmp_path, format, make_dataset):
    bare = Structure(np.ones(2, np.uint8), np.zeros((2, 3), np.float32), np.zeros((3, 3)), np.zeros(3, bool))
    dataset = make_dataset(tmp_path, format, [[bare, bare]])
    assert "forces" not in dataset.schema
    assert "energy" not in dataset.manifest.shards[0].columns
    assert dataset[1].energy is None


def test_an_empty_dataset_is_a_dataset(tmp_path, format, make_dataset):
    dataset = make_dataset(tmp_path, format, [])
    assert len(dataset) == 0
    assert len(dataset.batch([])) == 0
    assert len(dataset.split_ids("train")) == 0
    assert dataset.manifest.content_hash == "0" * 32


def test_rows_that_do_not_exist_are_refused(tmp_path, format, make_dataset, three_shards):
    dataset = make_dataset(tmp_path, format, three_shards)
    with pytest.raises(DataError, match=r"rows are 0\.\.32, asked for 2\.\.33"):
        dataset.batch([2, 33])
    with pytest.raises(DataError, match="asked for -1"):
        dataset.batch([-1])
    with pytest.raises(IndexError):
        dataset[33]


def test_sizes_tell_what_samplers_need(tmp_path, format, make_dataset, three_shards):
    dataset = make_dataset(tmp_path, format, three_shards)
    batch = dataset.batch(np.arange(33))
    assert np.array_equal(dataset.num_atoms, batch.num_atoms)
    assert np.array_equal(dataset.num_edges, 7 * batch.num_atoms)
    assert np.array_equal(dataset.dataset_index, batch.columns["dataset"])
    assert dataset.split_ids("test").tolist() == [*range(2, 20, 3), *range(22, 33, 3)]
    both = [dataset.split_ids("train", name) for name in ("molecules", "crystals")]
    assert np.array_equal(np.sort(np.concatenate(both)), dataset.split_ids("train"))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        dataset.split_ids("validaton")
    with pytest.raises(DataError, match="Did you mean 'crystals'"):
        dataset.split_ids("train", "crystal")
    assert dataset.references[1, 8] == -2040.5
    assert not dataset.references[0].any()


def test_the_same_structures_make_the_same_bytes(tmp_path, format, make_dataset, three_shards):
    one = make_dataset(tmp_path / "one", format, three_shards)
    two = make_dataset(tmp_path / "two", format, three_shards)
    assert one.manifest == two.manifest
    assert [shard.files for shard in one.manifest.shards] == [shard.files for shard in two.manifest.shards]
    assert (one.path / "manifest.json").read_bytes() == (two.path / "manifest.json").read_bytes()


def test_fillers_of_absent_entries_do_not_reach_the_disk(tmp_path, format, structures):
    clean = RaggedBatch.from_structures(structures(9))
    dirty = clean.take(np.arange(9))
    dirty.columns["energy"][~dirty.has("energy")] = 42.0
    dirty.columns["forces"][np.repeat(~dirty.has("forces"), dirty.num_atoms)] = 42.0
    receipts = [
        write_shard(
            tmp_path / name,
            "0",
            batch,
            num_edges=np.zeros(9, int),
            split=np.zeros(9, int),
            dataset_names=["a", "b"],
            format=format,
        )
        for name, batch in (("clean", clean), ("dirty", dirty))
    ]
    assert receipts[0] == receipts[1]


def test_the_content_hash_does_not_depend_on_the_format(tmp_path, make_dataset, three_shards):
    hashes = {
        make_dataset(tmp_path / name, name, three_shards).manifest.content_hash for name in FORMATS.names()
    }
    assert len(hashes) == 1


def test_a_dataset_travels_by_pickle(tmp_path, format, make_dataset, three_shards, same):
    dataset = make_dataset(tmp_path, format, three_shards)
    dataset.batch([1, 2])
    received = pickle.loads(pickle.dumps(dataset))
    assert same(received.batch([30, 4]), dataset.batch([30, 4]))


@pytest.mark.parametrize("mapped", [True, False])
def test_threads_read_what_one_thread_reads(tmp_path, format, make_dataset, structures, same, mapped):
    dataset = make_dataset(tmp_path, format, [structures(200, seed=5)])
    shard = dataset.open_shard(0, verify=False, mapped=mapped)
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, 200, 16) for _ in range(40)]
    alone = [shard.take(rows) for rows in wanted]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, alone, pool.map(shard.take, wanted)))


def test_nothing_stays_open_and_nothing_lies_about(tmp_path, format, make_dataset, three_shards, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    opened = []
    for name in ("first", "second", "third"):
        dataset = make_dataset(tmp_path / name, format, three_shards)
        for shard in range(3):
            for mapped in (True, False):
                dataset.open_shard(shard, verify=True, mapped=mapped).read(0, 0)
        dataset.batch([1, 2, 30])
        opened.append(len(os.listdir("/proc/self/fd")))
    # What the libraries open once they keep; what they open each time would add up.
    assert opened[2] <= opened[0]
    assert list(Path.cwd().iterdir()) == []
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("profiling.json"))


def test_adios_columns_are_memory_mapped_where_they_lie(tmp_path, make_dataset, structures):
    dataset = make_dataset(tmp_path, "adios", [structures(50)])
    places = dataset.manifest.shards[0].columns
    data = (tmp_path / "shards" / "000000.bp" / "data.0").read_bytes()
    positions = dataset.shard(0).columns["positions"].tobytes()
    offset = places["positions"].offset
    assert data[offset : offset + len(positions)] == positions


def test_zarr_writes_chunks_that_hold_only_the_fill_value(tmp_path, make_dataset):
    zeros = Structure(np.zeros(2, np.uint8), np.zeros((2, 3), np.float32), np.zeros((3, 3)), np.zeros(3, bool))
    dataset = make_dataset(tmp_path, "zarr", [[zeros]])
    files = {file.path for file in dataset.manifest.shards[0].files}
    assert "shards/000000.zarr/positions/c/0/0" in files


def test_a_backend_that_lacks_a_column_says_so(tmp_path, format, make_dataset, structures):
    dataset = make_dataset(tmp_path, format, [structures(4)])
    places = dict(dataset.manifest.shards[0].columns)
    places["spin"] = places["charge"]
    path = next((tmp_path / "shards").glob("000000.[bz]*"))
    with pytest.raises(CorruptDataError, match="no column spin"):
        FORMATS.get(format).open(path, places, mapped=False)


_LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from store.integrity import replacing
from store.shards import FORMATS

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with replacing(Path(sys.argv[2])) as temporary:
        FORMATS.get(sys.argv[1]).write(temporary, {"positions": np.random.rand(500_000, 3)})
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.parametrize("format", ["adios", "zarr"])
def test_a_refusal_of_the_system_in_the_middle_of_a_file_is_an_error_with_its_number(
    format: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", _LIMITED, format, str(tmp_path / "shard")]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"errno {errno.EFBIG}\n"
    assert list(tmp_path.iterdir()) == []
