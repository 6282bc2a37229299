"""Damage of every kind is noticed before anything is read from it, and said with the file's name."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gfm.data.ragged import RaggedBatch
from gfm.errors import CorruptDataError, DataError, MissingDataError
from store.dataset import open_dataset
from store.integrity import replacing, sweep
from store.manifest import Manifest
from store.samples import LocalStore
from store.verify import verify_dataset
from store.writer import write_shard

pytestmark = pytest.mark.usefixtures("format")


@pytest.fixture
def dataset(tmp_path, format, make_dataset, three_shards):
    return make_dataset(tmp_path / "dataset", format, three_shards)


def payload(dataset):
    """The largest file of the first shard."""
    return dataset.path / max(dataset.manifest.shards[0].files, key=lambda file: file.bytes).path


def every_file(dataset):
    return [dataset.path / file.path for shard in dataset.manifest.shards for file in shard.files]


def edit_manifest(dataset, change):
    """Change manifest.json as somebody who also mends its checksum would."""
    from store.manifest import _checksum

    path = dataset.path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    data.pop("checksum")
    path.write_text(json.dumps({**data, "checksum": _checksum(data)}))


def test_a_whole_dataset_verifies(dataset):
    seen = []
    assert verify_dataset(dataset.path, seen.append)[1] == []
    assert [receipt.name for receipt in seen] == ["000000", "000001", "000002"]


def test_a_flipped_bit_in_any_file_is_found(tmp_path, format, make_dataset, structures):
    dataset = make_dataset(tmp_path, format, [structures(3)])
    for path in every_file(dataset):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        problems = verify_dataset(dataset.path)[1]
        assert len(problems) == 1, path
        assert str(path) in problems[0]
        assert "crc32c" in problems[0]
        path.write_bytes(content)
    assert verify_dataset(dataset.path)[1] == []


def test_preloading_and_verify_compare_checksums(dataset):
    path = payload(dataset)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=path.name):
        LocalStore(dataset)
    with pytest.raises(CorruptDataError, match="crc32c"):
        open_dataset(dataset.path, verify=True).batch([0])
    # Shards that are whole stay readable.
    assert len(open_dataset(dataset.path, verify=True).batch([25])) == 1
    assert len(LocalStore(dataset, np.arange(20, 33))) == 13


def test_a_file_cut_off_is_refused_before_it_is_opened(dataset):
    path = payload(dataset)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=r"bytes, but \d+ were written"):
        open_dataset(dataset.path)[0]
    assert len(verify_dataset(dataset.path)[1]) == 1


def test_a_missing_file_is_named(dataset):
    for path in every_file(dataset):
        aside = path.with_suffix(".aside")
        path.rename(aside)
        with pytest.raises(MissingDataError, match=f"{path.name}: this file is missing"):
            open_dataset(dataset.path).batch([0, 32]) and open_dataset(dataset.path).shard(1)
        aside.rename(path)


def test_a_missing_shard_is_named(dataset):
    shutil.rmtree(next((dataset.path / "shards").glob("000002.[bz]*")))
    with pytest.raises(MissingDataError, match="000002"):
        open_dataset(dataset.path)[-1]
    assert "000002" in verify_dataset(dataset.path)[1][0]


def test_a_foreign_file_is_named(dataset):
    (dataset.path / "shards" / "000009.sizes.npy").write_bytes(b"")
    problems = verify_dataset(dataset.path)[1]
    assert len(problems) == 1
    assert "shards/000009.sizes.npy" in problems[0]


def test_a_shard_swapped_for_another_is_found(dataset, structures, format):
    """Files that are whole, with receipts of their own, but not of the structures promised."""
    batch = RaggedBatch.from_structures(structures(20, seed=77))
    receipt = write_shard(
        dataset.path,
        "000000",
        batch,
        num_edges=batch.num_atoms,
        split=np.zeros(20, int),
        dataset_names=dataset.dataset_names,
        format=format,
    )
    written = receipt.model_dump(mode="json")
    foreign = {name: written[name] for name in ("files", "columns")}
    edit_manifest(dataset, lambda data: data["shards"][0].update(foreign))
    with pytest.raises(CorruptDataError, match="row pointer"):
        open_dataset(dataset.path)[0]
    edit_manifest(dataset, lambda data: data["shards"][0].update(atoms=written["atoms"]))
    problems = verify_dataset(dataset.path)[1]
    assert any("content hash" in problem for problem in problems)
    with pytest.raises(CorruptDataError, match=r"sizes\.npy do not agree"):
        LocalStore(open_dataset(dataset.path))


def test_damage_to_the_sizes_is_found_on_opening(dataset):
    path = dataset.path / "sizes.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptDataError, match=r"sizes\.npy"):
        open_dataset(dataset.path, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptDataError, match=r"sizes\.npy"):
        open_dataset(dataset.path)


def test_a_manifest_that_is_not_there_or_not_whole(dataset):
    path = dataset.path / "manifest.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(CorruptDataError, match="not readable as a manifest"):
        open_dataset(dataset.path)
    path.write_text(text.replace('"structures": 33', '"structures": 34'))
    with pytest.raises(CorruptDataError, match="was changed"):
        open_dataset(dataset.path)
    path.unlink()
    with pytest.raises(MissingDataError, match="ingestion has not finished"):
        open_dataset(dataset.path)


def test_a_newer_version_asks_for_an_upgrade(dataset):
    edit_manifest(dataset, lambda data: data.update(format_version=2, shards="in another layout"))
    with pytest.raises(DataError, match="format version 2, and this gfm reads version 1; upgrade"):
        open_dataset(dataset.path)


def test_a_field_this_version_does_not_know(dataset):
    edit_manifest(dataset, lambda data: data["shards"][0]["fields"].append("magmoms"))
    with pytest.raises(DataError, match=r"unknown fields \['magmoms'\]"):
        open_dataset(dataset.path)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    target = tmp_path / "shard"
    target.mkdir()
    (target / "old").touch()

    def fail(temporary):
        temporary.mkdir()
        (temporary / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        fail(temporary)
    assert [path.name for path in tmp_path.rglob("*")] == ["shard", "old"]


def test_a_writer_that_is_killed_changes_nothing(tmp_path, format, make_dataset, three_shards):
    """Killed between writing and renaming: no reader sees a shard, the next run makes it, the commit sweeps."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        import numpy as np
        import store.integrity as integrity
        from gfm.data.ragged import RaggedBatch
        from gfm.data.structure import Structure
        from store.writer import write_shard

        one = Structure(np.ones(2, np.uint8), np.zeros((2, 3), np.float32), np.eye(3), np.ones(3, bool))
        rename = integrity._rename
        def kill(temporary, target):
            if target.suffix == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(temporary, target)
        integrity._rename = kill
        write_shard(
            sys.argv[1], "000000", RaggedBatch.from_structures([one]), num_edges=np.zeros(1, int),
            split=np.zeros(1, int), dataset_names=["a"], format=sys.argv[3],
        )
        """
    )
    suffix = {"adios": ".bp", "zarr": ".zarr"}[format]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), suffix, format],
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    shards = tmp_path / "shards"
    assert not (shards / f"000000{suffix}").exists()
    assert len(list(shards.glob("*.tmp"))) == 1
    with pytest.raises(MissingDataError):
        Manifest.load(tmp_path)
    dataset = make_dataset(tmp_path, format, three_shards)
    assert not list(shards.glob("*.tmp"))
    assert verify_dataset(dataset.path)[1] == []


def test_sweep_takes_only_what_writers_left(tmp_path):
    (tmp_path / "a.bp.123.tmp").mkdir()
    (tmp_path / "b.npy.456.tmp").touch()
    (tmp_path / "keep").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
