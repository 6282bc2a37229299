"""Pickles of torch tensors and torch_geometric objects, read without running them."""

import io
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from ingest.readers.lmdb_pickle import read_pickle, read_record
from ingest.readers.records import Refused

# What a pickle keeps of torch_geometric's objects is module, name and state.
_Data = type("Data", (), {"__module__": "torch_geometric.data.data"})
_Store = type("GlobalStorage", (), {"__module__": "torch_geometric.data.storage"})


@pytest.fixture
def geometric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the two be pickled, which looks them up under their names."""
    for name in ("torch_geometric", "torch_geometric.data", _Data.__module__, _Store.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[_Data.__module__].Data = _Data  # type: ignore[attr-defined]
    sys.modules[_Store.__module__].GlobalStorage = _Store  # type: ignore[attr-defined]


def _pyg1(protocol: int, **values: Any) -> bytes:
    data = _Data()
    data.__dict__.update(values)
    return pickle.dumps(data, protocol)


def _pyg2(protocol: int, **values: Any) -> bytes:
    data, store = _Data(), _Store()
    store.__dict__.update({"_mapping": values, "_parent": None})
    data.__dict__["_store"] = store
    return pickle.dumps(data, protocol)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("never-made",))


@pytest.mark.usefixtures("geometric")
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_a_pickle_asks_for_is_called(
    protocol: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="mkdir") as caught:
        read_record(_pyg1(protocol, pos=_Evil()))
    assert caught.value.reason == "hostile-pickle"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04.",
        b"\x80\x04N.",  # None, not a Data
        b"\x80\x04]r\xff\xff\xff\xff.",  # a memo index that makes pickle allocate 64 GB
        b"\x80\x04B\xff\xff\xff\xff.",  # bytes announced that are not there
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04" + b"(" * 1000 + b"t" * 1000 + b".",
        b"\x80\x04}" + b"(" + b")" * 5000 + b"u.",
        b"\x80\x04\x85.",
        b"\x80\x04K\x01b.",
        b"\x80\x04cos\nsystem\n.",  # named, not called: still no Data
        b"\x80\x04h\x07.",
        b"\x80\x00(lp0\n.",  # an instruction of protocol 0
    ],
)
def test_damaged_pickles_are_refused(payload: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_record(payload)
    assert caught.value.reason in {"bad-pickle", "hostile-pickle"}


def _tensor(storage: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Return the pickle of a tensor over a storage, as torch writes it."""

    class Rebuild:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch._utils._rebuild_tensor_v2, (Load(), offset, shape, stride, False, OrderedDict()))

    class Load:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch.storage._load_from_bytes, (storage,))

    return pickle.dumps(Rebuild(), 4)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_tensor_never_reaches_beyond_its_storage() -> None:
    stream = io.BytesIO()
    torch.save(torch.arange(6.0).storage(), stream, _use_new_zipfile_serialization=False)
    storage = stream.getvalue()
    np.testing.assert_array_equal(read_pickle(_tensor(storage, (2, 2), (1, 2), 1)), [[1, 3], [2, 4]])
    for shape, stride, offset in (
        ((7,), (1,), 0), ((6,), (1,), 1), ((2, 3), (4, 1), 0), ((2,), (-1,), 3), ((2,), (1,), -1),
        ((10**9, 10**9), (0, 0), 0), ((2,), (1, 1), 0), ((2**62, 2**62), (2**62, 1), 0),
    ):  # fmt: skip
        with pytest.raises(Refused):
            read_pickle(_tensor(storage, shape, stride, offset))
    for cut in (10, 100, 200, len(storage) - 5):
        with pytest.raises(Refused):
            read_pickle(_tensor(storage[:cut], (6,), (1,)))


_TENSORS = [
    torch.arange(12.0).reshape(4, 3), torch.arange(900.0, dtype=torch.float64).reshape(300, 3),
    torch.arange(12.0).reshape(4, 3).T, torch.arange(24.0).reshape(2, 3, 4)[:, 1:, ::2], torch.arange(6)[2:],
    torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([True, False]), torch.tensor(7),
    torch.arange(70_000, dtype=torch.int32), torch.zeros(1, 3, 3, dtype=torch.float16),
    torch.zeros(3).expand(5, 3), torch.arange(16.0).reshape(2, 2, 2, 2), torch.zeros(4, 1)[:, :, None],
]  # fmt: skip


@pytest.mark.usefixtures("geometric")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("write", [_pyg1, _pyg2])
def test_tensors_of_every_kind_are_what_torch_says(write: Any, protocol: int) -> None:
    values: dict[str, Any] = {f"t{index}": tensor for index, tensor in enumerate(_TENSORS)}
    values |= {"again": _TENSORS[0], "rows": _TENSORS[0][1:], "shape": (4, 3), "number": 2**40, "none": None}
    found = read_record(write(protocol, **values))
    assert list(found) == list(values)
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            assert found[name] == value
            continue
        exact = value.float() if value.dtype == torch.bfloat16 else value
        assert found[name].dtype == exact.numpy().dtype
        np.testing.assert_array_equal(found[name], exact.numpy())


@pytest.mark.usefixtures("geometric")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"_rebuild_tensor_v2", b"_rebuild_tensor_v9", "hostile-pickle"),
        (b"_load_from_bytes", b"_load_from_bites", "hostile-pickle"),
        (b"OrderedDict", b"OrderedDicl", "hostile-pickle"),
        (b"FloatStorage", b"FlootStorage", "bad-pickle"),
        (b"storageq\x00ctorch", b"storageq\x00ctarch", "hostile-pickle"),
        (b"K\x03K\x01\x86\x94\x89", b"K\x03K\x01\x87\x94\x89", "bad-pickle"),  # one stride more than axes
        (b"K\x04K\x03\x86\x94K", b"K\x05K\x03\x86\x94K", "bad-pickle"),  # beyond its storage
        (b"R\x94K\x00K", b"R\x94K\x01K", "bad-pickle"),
        (b")R\x94t\x94R", b")R\x94\x85\x94R", "bad-pickle"),
    ],
)
@pytest.mark.parametrize("which", ["first", "later"])
def test_what_looks_almost_like_a_tensor_is_refused(which: str, old: bytes, new: bytes, reason: str) -> None:
    good = _pyg1(4, a=torch.arange(12.0).reshape(4, 3), b=torch.arange(12.0).reshape(4, 3))
    assert old in good
    assert set(read_record(good)) == {"a", "b"}
    place = good.find(old) if which == "first" else good.rfind(old)
    with pytest.raises(Refused) as caught:
        read_record(good[:place] + new + good[place + len(old) :])
    assert caught.value.reason == reason


@pytest.mark.usefixtures("geometric")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_key_whose_length_lies_is_refused() -> None:
    good = _pyg1(4, a=torch.arange(12.0))
    place = good.index(b"q\x01X", good.index(b"FloatStorage")) + 3
    for length in (0, good[place] - 1, good[place] + 1, 255):
        with pytest.raises(Refused):
            read_record(good[:place] + bytes([length]) + good[place + 1 :])


@pytest.mark.usefixtures("geometric")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_value_that_stands_twice_is_the_same_value() -> None:
    """Memo numbers count every value, so a tensor read at once must count as all that it is made of."""
    tensors = [torch.full((2, 3), float(index)) for index in range(60)]
    values = {f"a{index}": tensor for index, tensor in enumerate(tensors)}
    values |= {f"b{index}": tensor for index, tensor in enumerate(tensors)}
    found = read_record(_pyg1(4, **values))
    for index in range(60):
        assert (found[f"a{index}"] == index).all()
        assert found[f"b{index}"] is found[f"a{index}"]
