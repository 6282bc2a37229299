"""LMDB files are read as LMDB's own library reads them; a damaged page costs what is found by way of it."""

import os
import random
import struct
from pathlib import Path

import lmdb
import pytest

from gfm.errors import CorruptDataError
from ingest.readers.lmdb_pages import open_lmdb
from ingest.readers.records import Refused

PAGE = 4096


def _write(path: Path, values: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28) as environment:
        for key, value in values.items():  # one transaction each: pages are used again, headers take turns
            with environment.begin(write=True) as transaction:
                transaction.put(key, value)
    return path


@pytest.mark.parametrize("sizes", [(0, 1, 20), (100, 1500, 2020, 2040, 4080, 4096), (5000, 70_000)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_keys_and_values_are_those_of_the_library(sizes: tuple[int, ...], count: int, tmp_path: Path) -> None:
    rng = random.Random(count)
    values = {str(index).encode(): rng.randbytes(rng.choice(sizes)) for index in range(count)}
    path = _write(tmp_path / "a.lmdb", values)
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        expected = list(transaction.cursor())
        found = open_lmdb(path)
        assert found.entries == transaction.stat()["entries"] == count
        assert list(found.all_keys()) == [key for key, _ in expected]
        for key, value in expected:
            assert found.get(key) == value
        for key in (b"", b"-1", b"00", b"7000", b"x" * 511):
            assert found.get(key) == transaction.get(key, None) if key else found.get(key) is None


def test_a_damaged_page_costs_the_keys_in_it_and_no_others(tmp_path: Path) -> None:
    values = {str(index).encode(): bytes([index % 256]) * 600 for index in range(100)}
    path = _write(tmp_path / "a.lmdb", values)
    data = bytearray(path.read_bytes())
    # The leaf of key 50: the highest page in which it stands is not always the one in use, so all get damaged.
    pages = {
        at // PAGE for at in range(len(data) - 2) if data[at : at + 2] == b"50" and data[at - 2 : at] == b"\2\0"
    }
    for page in pages:
        struct.pack_into("<H", data, page * PAGE + 12, 0xFFFE)
    (tmp_path / "b.lmdb").write_bytes(data)
    found = open_lmdb(tmp_path / "b.lmdb")
    with pytest.raises(Refused, match="damaged"):
        found.get(b"50")
    with pytest.raises(Refused, match="damaged"):
        list(found.all_keys())
    good = 0
    for key, value in values.items():
        try:
            assert found.get(key) == value
            good += 1
        except Refused:
            pass
    assert good >= 100 - 7 * len(pages)


def test_a_tree_that_leads_to_itself_has_an_end(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.lmdb", {str(index).encode(): bytes(600) for index in range(100)})
    data = bytearray(path.read_bytes())
    for start in range(2 * PAGE, len(data), PAGE):
        number, _, kind, lower, _ = struct.unpack_from("<QHHHH", data, start)
        for place in range(16, lower if kind == 1 else 0, 2):
            (at,) = struct.unpack_from("<H", data, start + place)
            struct.pack_into("<I", data, start + at, number)
    (tmp_path / "b.lmdb").write_bytes(data)
    found = open_lmdb(tmp_path / "b.lmdb")
    with pytest.raises(Refused, match="damaged"):
        found.get(b"50")
    with pytest.raises(Refused, match="lies where none can"):
        list(found.all_keys())


def test_a_file_with_other_keys_than_plain_ones_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.lmdb", {b"1": b"one"})
    data = bytearray(path.read_bytes())
    for start in (0, PAGE):
        struct.pack_into("<H", data, start + 92, 4)
    (tmp_path / "b.lmdb").write_bytes(data)
    with pytest.raises(CorruptDataError, match="flags"):
        open_lmdb(tmp_path / "b.lmdb")


def test_many_files_do_not_stay_open(tmp_path: Path) -> None:
    data = _write(tmp_path / "a.lmdb", {b"1": b"one"}).read_bytes()
    before = len(os.listdir("/proc/self/fd"))
    for index in range(100):
        path = tmp_path / f"{index}.lmdb"
        path.write_bytes(data)
        assert open_lmdb(path).get(b"1") == b"one"
    assert len(os.listdir("/proc/self/fd")) < before + 40
