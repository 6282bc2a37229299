"""Checkpoints: whole or not there, the newest sound one is found, superfluous ones go."""

from pathlib import Path

import pytest
import torch

from gfm.errors import CorruptDataError
from train import checkpoint


def _write(folder: Path, epoch: int, position: int = 0, loss: float | None = None) -> checkpoint.Checkpoint:
    content = {"weights": torch.full((50,), float(epoch)), "config": "seed: 0", "list": [1, 2.5, None]}
    return checkpoint.write(folder, content, epoch=epoch, position=position, loss=loss)


def test_what_was_written_is_read_and_loads_weights_only(tmp_path: Path) -> None:
    written = _write(tmp_path, 3, loss=0.5)
    assert written.path.name == "epoch-00003.pt"
    content = checkpoint.read(written)
    assert content["list"] == [1, 2.5, None]
    assert torch.equal(torch.load(written.path, weights_only=True)["weights"], content["weights"])


def test_the_furthest_is_the_newest_also_within_an_epoch(tmp_path: Path) -> None:
    for epoch, position in ((2, 0), (10, 0), (9, 640), (10, 64), (10, 8)):
        _write(tmp_path, epoch, position)
    found = checkpoint.newest(tmp_path, pytest.fail)
    assert found is not None
    assert (found[0].epoch, found[0].position) == (10, 64)
    assert found[0].path.name == "epoch-00010-at-000000064.pt"


@pytest.mark.parametrize("damage", ["flip", "truncate", "no receipt", "torn receipt"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    _write(tmp_path, 1)
    last = _write(tmp_path, 2)
    if damage == "flip":
        data = bytearray(last.path.read_bytes())
        data[len(data) // 2] ^= 1
        last.path.write_bytes(data)
    elif damage == "truncate":
        last.path.write_bytes(last.path.read_bytes()[:-10])
    elif damage == "no receipt":
        last.receipt.unlink()
    else:
        last.receipt.write_text('{"bytes": 1')
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found[0].epoch == 1
    assert len(said) == 1
    assert "epoch-00002.pt" in said[0]
    with pytest.raises(CorruptDataError):
        checkpoint.read(last)


def test_nothing_there_is_nothing_found(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none", pytest.fail) is None


def test_a_newer_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    written = _write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CorruptDataError, match="format version 99"):
        checkpoint.read(written)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for epoch, loss in enumerate((0.9, 0.2, 0.5, 0.4, 0.6), start=1):
        _write(tmp_path, epoch, loss=loss)
    _write(tmp_path, 5, position=16)
    checkpoint.prune(tmp_path, 2)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["epoch-00002.pt", "epoch-00005-at-000000016.pt", "epoch-00005.pt"]
    assert len(list(tmp_path.iterdir())) == 6
