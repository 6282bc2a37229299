"""Damage at random: whatever happens to the bytes, a reader answers with structures, rejects or its own errors.

The libraries of HDF5 and LMDB trust a file's inner pointers. There the damage is a cut, or lies in what the
files hold (arrays, pickles): that is what a reader can answer for.
"""

import gzip
import lzma
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfm.errors import CorruptDataError, GfmError
from ingest.readers.lmdb_pickle import read_record
from ingest.readers.records import Refused

ROUNDS = 40
_FRAME = (
    '{"structure": {"lattice": {"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": [{"species": '
    '[{"element": "Si", "occu": 1}], "xyz": [0.0, 0.5, 0.0]}]}, "corrected_total_energy": -5.25, '
    '"force": [[0.5, 0, 0]], "stress": null}'
)
_MATERIALS = (f'"mp-{n}": {{"mp-{n}-0-0": {_FRAME}, "mp-{n}-0-1": {_FRAME}}}' for n in range(4))
_JSON = f"{{{', '.join(_MATERIALS)}}}"
_XYZ = 6 * (
    '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
    'energy=-1.5 free_energy=-1.5 pbc="T T T"\n'
    "Cu 0.0 0.0 0.0 T 0 0.1 0.0 0.0\nO 0.0 0.0 1.8 F 2 -0.1 0.0 0.25\n"
)
_SIDECAR = "".join(f"random12,frame{index},-3.5\n" for index in range(6))


def _damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield the bytes cut, with bits flipped, bytes replaced, left out and repeated; the same every time."""
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        place = rng.randrange(len(data))
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        yield data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place + 8 :]
        yield data[:place] + data[place + rng.randrange(1, 40) :]
        yield data[:place] + data[max(0, place - rng.randrange(1, 40)) :]


def _answers(read_all: Callable[..., Any], name: str, path: Path, **options: Any) -> Any:
    """Read a path; only the project's own errors may come out, and every structure is sound."""
    try:
        reading = read_all(name, path, **options)
    except GfmError:
        return None
    for structure in reading.structures.values():
        assert np.isfinite(structure.energy)
        assert np.isfinite(structure.forces).all()
        assert structure.numbers.min() >= 1
    assert all(reject.reason and reject.source for reject in reading.rejects)
    return reading


@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress])
def test_mptrj(pack: Callable[[bytes], bytes] | None, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    data = _JSON.encode() if pack is None else pack(_JSON.encode())
    path = tmp_path / "a.json"
    for damaged in _damaged(data, 1):
        path.write_bytes(damaged)
        _answers(read_all, "mptrj", path, part_bytes=400)


@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress])
def test_extxyz(pack: Callable[[bytes], bytes] | None, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    data = _XYZ.encode() if pack is None else pack(_XYZ.encode())
    path = tmp_path / "a.xyz"
    for damaged in _damaged(data, 2):
        path.write_bytes(damaged)
        _answers(read_all, "extxyz", path, part_bytes=300)


def test_one_damaged_byte_of_text_costs_no_other_frame(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "a.xyz"
    rng = random.Random(3)
    for _ in range(200):
        place = rng.randrange(len(_XYZ))
        path.write_bytes(_XYZ[:place].encode() + bytes([rng.randrange(256)]) + _XYZ[place + 1 :].encode())
        reading = _answers(read_all, "extxyz", path)
        # Damage to a line end joins two lines, so that two frames may be concerned.
        assert len(reading.structures) >= 4
        assert reading.total >= 5


def test_oc20_text_and_sidecar(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    shard, sidecar = lzma.compress(_XYZ.encode()), lzma.compress(_SIDECAR.encode())
    path = tmp_path / "0.extxyz.xz"
    for one, other in zip(_damaged(shard, 4), _damaged(sidecar, 5), strict=True):
        path.write_bytes(one)
        (tmp_path / "0.txt.xz").write_bytes(sidecar)
        _answers(read_all, "oc20", path)
        path.write_bytes(shard)
        (tmp_path / "0.txt.xz").write_bytes(other)
        reading = _answers(read_all, "oc20", path)
        assert reading is None or reading.total >= 6


@pytest.mark.parametrize(
    ("reader", "name"), [("extxyz", "0.extxyz.gz"), ("oc20", "0.extxyz.gz"), ("oc20", "0.txt.gz")]
)
def test_a_sum_that_does_not_fit_is_never_the_end_of_good_numbers(
    reader: str, name: str, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    """One digit is another one; where is told by nothing but the sum at the end."""
    texts = {"0.extxyz.gz": _XYZ, "0.txt.gz": _SIDECAR}
    for file, text in texts.items():
        (tmp_path / file).write_bytes(gzip.compress(text.encode()))
    assert len(read_all(reader, tmp_path / "0.extxyz.gz").structures) == 6
    wrong = gzip.compress(texts[name].replace("5", "6", 1).encode())[:-8]
    (tmp_path / name).write_bytes(wrong + gzip.compress(texts[name].encode())[-8:])
    with pytest.raises(CorruptDataError, match=rf"{name}.*CRC"):
        read_all(reader, tmp_path / "0.extxyz.gz")


@pytest.mark.parametrize("suffix", ["xz", "gz", "zip"])
@pytest.mark.parametrize("content", [b"", b"\0", _XYZ.encode()], ids=["empty", "zero", "text"])
def test_a_packed_file_that_begins_as_none_does_not_pass_for_text(
    suffix: str, content: bytes, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / f"a.extxyz.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=path.name):
        read_all("extxyz", path)


def test_a_zip_without_files_and_one_whose_directory_is_damaged(
    tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(CorruptDataError, match="without any file"):
        read_all("extxyz", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.xyz", _XYZ)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + data[place + 1 :])
        reading = _answers(read_all, "extxyz", path)
        assert reading is None or reading.total >= 6


@pytest.mark.data
@pytest.mark.parametrize("name", ["oc20", "oc22"])
def test_lmdb_values(name: str, shared_data: Path, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    source = (
        shared_data / ("synthetic-oc22" if name == "oc22" else "synthetic-oc20/lmdb_pyg2") / "data.0000.lmdb"
    )
    path = tmp_path / "copy.lmdb"
    path.write_bytes(source.read_bytes())
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as txn,
    ):
        record = txn.get(b"0")
    records = list(_damaged(record, 6))
    environment = lmdb.open(str(tmp_path / "damaged.lmdb"), subdir=False, map_size=1 << 26)
    with environment, environment.begin(write=True) as txn:
        for index, damaged in enumerate(records):
            txn.put(str(index).encode(), damaged)
        txn.put(b"length", pickle.dumps(len(records)))
    reading = _answers(read_all, name, tmp_path / "damaged.lmdb")
    assert reading.total == len(records)
    assert len(reading.rejects) > ROUNDS


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=3) | st.sampled_from(
    [b"\x80\x04", b"}", b"]", b"(", b")", b"u", b"t", b"e", b"a", b"s", b"R", b"b", b"\x94", b"\x81", b"\x85",
     b"\x93",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n", b"cnumpy\ndtype\n",
     b"ctorch_geometric.data.data\nData\n", b"\x8c\x01x", b"K\x05", b"h\x00", b"q\x00", b"N", b"C\x03abc"]
), max_size=40))  # fmt: skip
def test_pickles_of_any_instructions(instructions: list[bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Refused):
            read_record(b"".join(instructions) + b".")


@pytest.mark.parametrize("reader", ["ani1x", "qm7x"])
def test_hdf5_cut_anywhere(reader: str, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        for index in range(3):
            if reader == "ani1x":
                group, keys = (
                    h5.create_group(f"H{index + 1}"),
                    ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces"),
                )
                lead, group_numbers = (2,), "atomic_numbers"
            else:
                group, keys = (
                    h5.create_group(f"{index}/Geom-m{index}-i1-c1-opt"),
                    ("atXYZ", "ePBE0+MBD", "totFOR"),
                )
                lead, group_numbers = (), "atNUM"
            group[group_numbers] = np.ones(index + 1, dtype=np.uint8)
            group[keys[0]] = np.ones((*lead, index + 1, 3))
            group[keys[1]] = np.ones(lead or (1,))
            group[keys[2]] = np.ones((*lead, index + 1, 3))
    data = path.read_bytes()
    options = {"duplicates": None} if reader == "qm7x" else {}
    assert _answers(read_all, reader, path, **options).rejects == []
    for size in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:size])
        assert _answers(read_all, reader, path, **options) is None


@pytest.mark.parametrize("reader", ["ani1x", "qm7x"])
@pytest.mark.parametrize(
    "value",
    [
        np.array(b"text"), np.array(5.0), np.zeros(0), np.zeros((1, 2, 3, 4)), np.full((2, 2, 3), np.inf),
        np.zeros((2, 2, 2)), np.zeros((2, 2, 3), dtype=complex), np.zeros((2, 3)), h5py.Empty("f8"),
    ],
    ids=str,
)  # fmt: skip
def test_hdf5_arrays_of_any_shape(
    reader: str, value: Any, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    good = {
        "atomic_numbers": np.ones(2), "coordinates": np.ones((2, 2, 3)), "wb97x_dz.energy": np.ones(2),
        "wb97x_dz.forces": np.ones((2, 2, 3)), "atNUM": np.ones(2), "atXYZ": np.ones((2, 3)),
        "ePBE0+MBD": np.ones(1), "totFOR": np.ones((2, 3)),
    }  # fmt: skip
    keys = list(good)[:4] if reader == "ani1x" else list(good)[4:]
    path = tmp_path / "a.h5"
    for key in keys:
        with h5py.File(path, "w") as h5:
            group = h5.create_group("1/Geom-m1-i1-c1-opt" if reader == "qm7x" else "H2")
            for name in keys:
                group[name] = value if name == key else good[name]
        _answers(read_all, reader, path, **({"duplicates": None} if reader == "qm7x" else {}))
