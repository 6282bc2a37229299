"""Files made to hurt: programs in pickles, absurd counts, bombs, and archives that point elsewhere.

They are read in a process of its own, whose memory is bounded and which is given up when it hangs. A reader
refuses them, by rejects or by an error of its own; nothing is run, and nothing is written where it should not.
"""

import importlib.util
import io
import json
import lzma
import pickle
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest


def _load(name: str) -> Any:
    """Return a module beside this file: tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


damage = _load("fuzz_damage")
files = _load("fuzz_files")
HUGE = 10**12


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = damage.Worker(tmp_path_factory.mktemp("worker"))
    yield started
    started.stop()


@pytest.fixture
def read(worker: Any) -> Callable[..., Any]:
    """Return a function that reads a path in the other process: no more than its own errors may come out."""

    def run(reader: str, path: Path, *, scratch: Path | None = None, **options: Any) -> Any:
        answer = worker.read(
            {
                "reader": reader, "options": options, "path": str(path), "part_bytes": 1 << 20,
                "scratch": None if scratch is None else str(scratch),
            }
        )  # fmt: skip
        assert "escaped" not in answer, answer["escaped"]
        return answer

    return run


def _told(answer: Any) -> bool:
    return not answer["structures"] and bool(answer["rejects"] or answer["errors"])


# ---- pickles


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _programs(canary: str) -> dict[str, bytes]:
    """Return pickles that would make a file, or never end, if they were unpickled."""
    command, code = _text(f"touch {canary}"), _text(f"open({canary!r}, 'w')")
    data = _global("torch_geometric.data.data", "Data")
    laughs = b"]\x94" + b"".join(b"(" + bytes([0x68, level]) * 10 + b"l\x94" for level in range(40))
    tuples = b")\x94" + b"".join(bytes([0x68, level]) * 3 + b"\x87\x94" for level in range(60))
    numbers = b"(K\x00" + 2 * (b"J" + struct.pack("<i", 2**31 - 1)) + b"t"
    return {
        "reduce": b"\x80\x04" + _global("os", "system") + command + b"\x85R.",
        "stack-global": b"\x80\x04" + _text("posix") + _text("system") + b"\x93" + command + b"\x85R.",
        "eval": b"\x80\x04" + _global("builtins", "eval") + code + b"\x85R.",
        "dotted": b"\x80\x04" + _text("torch._utils") + _text("os.system") + b"\x93" + command + b"\x85R.",
        "getattr": b"\x80\x04" + _global("builtins", "getattr") + data + _text("__init__") + b"\x86R.",
        "inst": b"(S'touch " + canary.encode() + b"'\nios\nsystem\n.",
        "obj": b"(" + _global("os", "system") + command + b"o.",
        "newobj": b"\x80\x04" + _global("subprocess", "Popen") + command + b"\x85\x81.",
        "newobj-ex": b"\x80\x04" + _global("subprocess", "Popen") + command + b"\x85}\x92.",
        "build": data + b")\x81}(" + _text("__setstate__") + _global("os", "system") + b"ub" + command + b"b.",
        "build-slots": data + b")\x81}}" + _text("__class__") + _global("os", "system") + b"s\x86b.",
        "extension": b"\x80\x02\x82\x01" + command + b"\x85R.",
        "persistent": b"Pos.system\n.",
        "nested": data + b")\x81}(" + _text("pos") + _global("os", "system") + command + b"\x85Rub.",
        "loads": _global("torch.storage", "_load_from_bytes") + b"C\x20"
        + (b"\x80\x04" + _global("os", "system")).ljust(32, b"N") + b"\x85R.",
        "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "unicode8": b"\x80\x04\x8d" + struct.pack("<Q", 2**63 + 5) + b"x.",
        "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
        "long4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
        "long-digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "deep-lists": b"]" * 200_000 + b"a" * 199_999 + b".",
        "deep-marks": b"(" * 500_000 + b"t" * 500_000 + b".",
        "deep-tuples": b")" + b"\x85" * 300_000 + b".",
        "laughs": laughs + b".",
        "tuples": tuples + b".",
        "tuples-as-key": b"}" + tuples + b"K\x01s.",
        "into-itself": b"]\x94h\x00a.",
        "state-is-itself": data + b")\x81\x94h\x00b.",
        "state-holds-itself": data + b")\x81\x94}" + _text("_store") + b"h\x00sb.",
        "memo-far": b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 2**32 - 1) + b".",
        "tensor-of-nothing": _global("torch._utils", "_rebuild_tensor_v2") + b"(C\x00" + numbers + b"\x89}tR.",
        "empty": b"",
        "stop": b".",
    }  # fmt: skip


@pytest.mark.parametrize("reader", ["oc20", "oc22"])
def test_pickles_that_are_programs(reader: str, tmp_path: Path, read: Callable[..., Any]) -> None:
    canary = tmp_path / "canary"
    programs = _programs(str(canary))
    path = tmp_path / "a.lmdb"
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for index, program in enumerate(programs.values()):
            transaction.put(str(index).encode(), program)
        transaction.put(b"length", pickle.dumps(len(programs)))
    answer = read(reader, path)
    assert not canary.exists()
    assert not answer["structures"]
    assert [source.rpartition("[")[2] for source, *_ in answer["rejects"]] == [
        f"{i}]" for i in range(len(programs))
    ]
    reasons = dict(zip(programs, (reason for _, reason, _ in answer["rejects"]), strict=True))
    for name in ("reduce", "stack-global", "eval", "dotted", "getattr", "newobj", "nested"):
        assert reasons[name] == "hostile-pickle", name


@pytest.mark.parametrize("name", ["reduce", "deep-lists", "bytes8", "laughs", "into-itself", "long-digits"])
def test_the_number_of_records_as_a_program(name: str, tmp_path: Path, read: Callable[..., Any]) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "a.lmdb"
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"0", files.oc_record(0, np.random.default_rng(0), 3))
        transaction.put(b"length", _programs(str(canary))[name])
    assert len(read("oc20", path)["structures"]) == 1
    assert not canary.exists()


# ---- JSON


def _value(kind: str, encoded: bool) -> str:
    """Return JSON that stands where an array is expected."""
    huge = {"__ndarray__": [[HUGE, 3], "float64", [0.0]]}
    values = {
        "deep": "[" * 100_000 + "]" * 100_000,
        "deep-open": "[" * 100_000,
        "deep-objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "digits": "9" * 1_000_000,
        "decimals": f"0.{'7' * 1_000_000}",
        "exponent": "1e999999999999",
        "ragged": "[[1, 2], [3]]",
        "true": "true",
        "objects": '[{"a": 1}]',
        "shape": json.dumps(huge) if encoded else "[[1e400, 0, 0]]",
        "negative": json.dumps({"__ndarray__": [[-1, 3], "float64", [1.0]]}),
        "dtype": json.dumps({"__ndarray__": [[1], "object", [1.0]]}),
        "many-axes": json.dumps({"__ndarray__": [[1] * 5000, "float64", [1.0]]}),
    }
    return values[kind]


KINDS = [
    "deep", "deep-open", "deep-objects", "digits", "decimals", "exponent", "ragged", "true", "objects", "shape",
    "negative", "dtype", "many-axes",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["positions", "numbers", "forces", "energy"])
def test_json_that_is_absurd(kind: str, key: str, tmp_path: Path, read: Callable[..., Any]) -> None:
    row = {
        "numbers": [1], "positions": [[0.0, 0.0, 0.0]], "cell": np.eye(3).tolist(), "pbc": [True] * 3,
        "energy": -1.0, "forces": [[0.0, 0.0, 0.5]],
    }  # fmt: skip
    text = json.dumps(row | {key: "HERE"}).replace('"HERE"', _value(kind, True))
    (tmp_path / "a.json").write_text(f'{{"1": {json.dumps(row)}, "2": {text}}}')
    answer = read("ase_db", tmp_path / "a.json")
    assert len(answer["structures"]) + len(answer["rejects"]) == 2 or answer["errors"]
    path = tmp_path / "a.aselmdb"
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for index, one in enumerate((json.dumps(row), text), 1):
            transaction.put(str(index).encode(), zlib.compress(one.encode()))
        transaction.put(b"nextid", zlib.compress(b"3"))
    answer = read("ase_db", path)
    assert len(answer["structures"]) + len(answer["rejects"]) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["xyz", "force", "stress", "energy", "structure"])
def test_a_material_that_is_absurd(kind: str, key: str, tmp_path: Path, read: Callable[..., Any]) -> None:
    site = {"species": [{"element": "Si", "occu": 1}], "xyz": "xyz"}
    frame = {
        "structure": {"lattice": {"matrix": (3 * np.eye(3)).tolist()}, "sites": [site]},
        "corrected_total_energy": "energy", "force": "force", "stress": "stress",
    }  # fmt: skip
    good = {"xyz": "[0, 0, 0]", "force": "[[0, 0, 0.5]]", "stress": "null", "energy": "-1.5"}

    def made(values: dict[str, str]) -> str:
        text = json.dumps(frame if "structure" not in values else frame | {"structure": "structure"})
        for name, value in values.items():
            text = text.replace(f': "{name}"', f": {value}")
        return text

    bad = made(good | {key: _value(kind, False)})
    path = tmp_path / "a.json"
    path.write_text(f'{{"mp-1": {{"mp-1-0-0": {made(good)}, "mp-1-0-1": {bad}, "mp-1-0-2": {made(good)}}}}}')
    answer = read("mptrj", path)
    assert len(answer["structures"]) >= 2
    assert len(answer["structures"]) + len(answer["rejects"]) == 3


# ---- bombs


def _packed(piece: bytes, times: int) -> bytes:
    """Return xz of a piece so many times, one stream after the other."""
    return lzma.compress(piece, preset=0) * times


@pytest.mark.slow
@pytest.mark.parametrize("filling", [b"\0", b"1", b" ", b"["])
@pytest.mark.parametrize(("reader", "begin"), [("extxyz", b"3\n"), ("mptrj", b'{"mp-1": {"mp-1-0-0": ')])
def test_a_small_file_that_unpacks_to_gigabytes(
    reader: str, begin: bytes, filling: bytes, tmp_path: Path, read: Callable[..., Any]
) -> None:
    path = tmp_path / ("a.xyz.xz" if reader == "extxyz" else "a.json.xz")
    path.write_bytes(lzma.compress(begin) + _packed(filling * (1 << 24), 96))
    assert path.stat().st_size < 1 << 20
    assert _told(read(reader, path))


@pytest.mark.slow
def test_a_sidecar_and_a_row_that_unpack_to_gigabytes(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "0.extxyz").write_text("1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=1\nH 0 0 0 0 0 1\n")
    (tmp_path / "0.txt.xz").write_bytes(_packed(bytes(1 << 24), 96))
    assert _told(read("oc20", tmp_path / "0.extxyz"))
    packer = zlib.compressobj(1)
    row = packer.compress(b'{"numbers": [') + b"".join(packer.compress(b" " * (1 << 24)) for _ in range(96))
    row += packer.compress(b"1]}") + packer.flush()
    with (
        lmdb.open(str(tmp_path / "a.aselmdb"), subdir=False, lock=False, map_size=1 << 24) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"1", row)
        transaction.put(b"nextid", zlib.compress(b"2"))
    answer = read("ase_db", tmp_path / "a.aselmdb")
    assert [reason for _, reason, _ in answer["rejects"]] == ["bad-zlib"]


@pytest.mark.parametrize("count", ["1000000000000", "999999", "0", "-1", "1e3", "9" * 1_000_000, "١"])
def test_absurd_counts_of_atoms(count: str, tmp_path: Path, read: Callable[..., Any]) -> None:
    header = 'Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1'
    good = f"1\n{header}\nH 0 0 0 0 0 1\n"
    path = tmp_path / "a.extxyz"
    path.write_text(f"{good}{count}\n{header}\nH 0 0 0 0 0 1\n{good}")
    assert len(read("extxyz", path)["structures"]) == 2
    assert read("extxyz", path)["rejects"]


# ---- HDF5

_KEYS = {
    "ani1x": ("CH4", "atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces", {}),
    "qm7x": ("1/Geom-m1-i1-c1-opt", "atNUM", "atXYZ", "ePBE0+MBD", "totFOR", {"duplicates": None}),
    "hdf5": ("a", "atomic_numbers", "positions", "energy", "forces", {}),
}


@pytest.mark.parametrize("reader", list(_KEYS))
@pytest.mark.parametrize(
    "shape",
    [(HUGE, 2, 3), (4, HUGE, 3), (2**40, 2**10, 3), (2**62, 0, 3), (HUGE, 3), (HUGE,), (2, 2, HUGE)],
    ids=str,
)
def test_hdf5_that_announces_more_than_it_has(
    reader: str, shape: tuple[int, ...], tmp_path: Path, read: Callable[..., Any]
) -> None:
    """Chunks that were never written cost nothing in a file, and stand for any number of conformers."""
    name, numbers, positions, energy, forces, options = _KEYS[reader]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        group = h5.create_group(name)
        for key in (positions, forces):
            group.create_dataset(
                key, shape, "f8", chunks=(4, 2, 3)[: len(shape)], maxshape=(None,) * len(shape)
            )
        group.create_dataset(energy, shape[:1], "f8", chunks=(4,), maxshape=(None,))
        group.create_dataset(numbers, shape[1:2] or (1,), "u1", chunks=(4,), maxshape=(None,), fillvalue=1)
    assert _told(read(reader, path, **options))


@pytest.mark.parametrize("reader", list(_KEYS))
@pytest.mark.parametrize(
    "dtype",
    ["S5", "complex128", "bool", "V7", ">f8", "f2", "longdouble", [("a", "f8"), ("b", "i4")],
     h5py.string_dtype(), h5py.vlen_dtype(np.float64), h5py.ref_dtype, h5py.enum_dtype({"a": 1}), "(3,)f8"],
    ids=str,
)  # fmt: skip
def test_hdf5_arrays_of_any_type(reader: str, dtype: Any, tmp_path: Path, read: Callable[..., Any]) -> None:
    name, *keys, options = _KEYS[reader]
    shapes = [(2,), (2, 3), (1,), (2, 3)] if reader == "qm7x" else [(2,), (1, 2, 3), (1,), (1, 2, 3)]
    for wrong in keys:
        path = tmp_path / f"{keys.index(wrong)}.h5"
        with h5py.File(path, "w") as h5:
            group = h5.create_group(name)
            for key, shape in zip(keys, shapes, strict=True):
                if key == wrong:
                    group.create_dataset(key, shape, dtype)
                else:
                    group[key] = np.ones(shape)
        answer = read(reader, path, **options)
        assert len(answer["structures"]) + len(answer["rejects"]) == 1 or answer["errors"]


@pytest.mark.parametrize("reader", list(_KEYS))
def test_hdf5_trees_without_end_and_links_to_elsewhere(
    reader: str, tmp_path: Path, read: Callable[..., Any]
) -> None:
    name, *keys, options = _KEYS[reader]
    shapes = [(2,), (2, 3), (1,), (2, 3)] if reader == "qm7x" else [(2,), (1, 2, 3), (1,), (1, 2, 3)]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        group = h5.create_group(name)
        for key, shape in zip(keys, shapes, strict=True):
            group[key] = np.ones(shape)
        group["again"] = h5["/"]
        h5["again"] = h5["/"]
        h5["round"] = h5py.SoftLink("/round")
        h5["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
        deep = h5
        for _ in range(3000):
            deep = deep.create_group("d")
    answer = read(reader, path, **options)
    assert len(answer["structures"]) == 1 or answer["errors"]


# ---- archives


def _tar(members: list[tuple[str, Any, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return stream.getvalue()


def _sparse(content: bytes, size: int) -> bytes:
    """Return a tar whose member says that it is ``size`` bytes, almost all of which are holes."""
    member = tarfile.TarInfo("1000.hdf5")
    member.size = len(content)
    member.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[386:398], head[398:410] = b"%011o\0" % 0, b"%011o\0" % len(content)
    head[483:495] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head) + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024)


@pytest.mark.parametrize("pack", [bytes, lzma.compress], ids=["tar", "tar.xz"])
@pytest.mark.parametrize(
    "name", ["../../out.hdf5", "/tmp/../out.hdf5", "a/../../../out.hdf5", "\n", "x" * 5000]
)
def test_names_in_an_archive_are_no_places(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path, read: Callable[..., Any]
) -> None:
    good = files.families(tmp_path)["qm7x"].data
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / ("1000.tar" if pack is bytes else "1000.xz")
    path.write_bytes(pack(_tar([("link", tarfile.SYMTYPE, b""), (name, tarfile.REGTYPE, good)])))
    before = {found for found in tmp_path.rglob("*") if "scratch" not in found.parts}
    answer = read("qm7x", path, scratch=tmp_path / "scratch", duplicates=None)
    assert len(answer["structures"]) == 9
    assert {found for found in tmp_path.rglob("*") if "scratch" not in found.parts} == before
    assert [found.suffix for found in (tmp_path / "scratch").iterdir()] == [".hdf5"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_of_something_else_than_a_file(
    kind: bytes, tmp_path: Path, read: Callable[..., Any]
) -> None:
    path = tmp_path / "1000.tar"
    path.write_bytes(_tar([("1000.hdf5", kind, b"")]))
    assert _told(read("qm7x", path, scratch=tmp_path / "scratch", duplicates=None))


def test_an_archive_whose_file_is_mostly_holes(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "1000.tar"
    path.write_bytes(_sparse(files.families(tmp_path)["qm7x"].data[:4096], 10**15))
    assert _told(read("qm7x", path, scratch=tmp_path / "scratch", duplicates=None))
    assert list((tmp_path / "scratch").iterdir()) == []
