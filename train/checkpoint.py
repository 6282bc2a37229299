"""Checkpoints: complete, written whole, checked before they are trusted.

``checkpoints/epoch-00003.pt`` is the state after three epochs, ``epoch-00003-at-000000640.pt`` after 640 more
structures. Beside each lies ``<name>.json`` with its size, SHA-256 and validation loss, written last: without
it, or when it does not agree, the checkpoint is not complete. They load with ``torch.load(weights_only=True)``.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gfm.errors import CorruptDataError
from gfm.runtime.runs import write_whole

__all__ = ["FORMAT_VERSION", "Checkpoint", "list_checkpoints", "newest", "prune", "read", "write"]

FORMAT_VERSION = 1

_NAME = re.compile(r"epoch-(\d{5,})(?:-at-(\d{9,}))?\.pt")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint file, ordered by how far the training had come.

    Attributes:
        epoch: Whole epochs done.
        position: Structures of the next epoch done.
        path: The file.
    """

    epoch: int
    position: int
    path: Path

    @property
    def receipt(self) -> Path:
        """The file that says what size and hash it has."""
        return self.path.with_name(self.path.name + ".json")


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return what looks like a checkpoint in a folder, the furthest first."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("epoch-*.pt")]
    found = [Checkpoint(int(match[1]), int(match[2] or 0), path) for match, path in matches if match]
    return sorted(found, reverse=True)


def write(
    folder: Path, content: dict[str, Any], *, epoch: int, position: int, loss: float | None
) -> Checkpoint:
    """Write one checkpoint.

    Args:
        folder: Where; made if it is not there.
        content: Tensors, numbers, strings, lists and dicts only.
        epoch: Whole epochs done.
        position: Structures of the next epoch done.
        loss: Validation loss at this point, for keeping the best; None within an epoch.
    """
    name = f"epoch-{epoch:05d}" + (f"-at-{position:09d}" if position else "") + ".pt"
    checkpoint = Checkpoint(epoch, position, folder / name)
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    data = buffer.getvalue()
    checkpoint.receipt.unlink(missing_ok=True)
    write_whole(checkpoint.path, data)
    receipt = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "validation_loss": loss}
    write_whole(checkpoint.receipt, json.dumps(receipt) + "\n")
    return checkpoint


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of a checkpoint (tensors on the CPU).

    Raises:
        CorruptDataError: It is not complete, is not what was written, or is of another format version.
    """
    path = checkpoint.path
    if not checkpoint.receipt.exists():
        raise CorruptDataError(f"{path}: was not finished (there is no {checkpoint.receipt.name})")
    try:
        receipt = json.loads(checkpoint.receipt.read_text())
    except json.JSONDecodeError:
        raise CorruptDataError(f"{checkpoint.receipt}: is damaged (not JSON)") from None
    if path.stat().st_size != receipt["bytes"]:
        raise CorruptDataError(f"{path}: has {path.stat().st_size} bytes, {receipt['bytes']} were written")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != receipt["sha256"]:
            raise CorruptDataError(f"{path}: is damaged (its SHA-256 is not the one that was written)")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("format_version") != FORMAT_VERSION:
        raise CorruptDataError(
            f"{path}: has format version {content.get('format_version')}, this code reads {FORMAT_VERSION}"
        )
    return content


def newest(folder: Path, report: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Any]] | None:
    """Return the furthest complete checkpoint and its content; each one that is not is reported and skipped."""
    for checkpoint in list_checkpoints(folder):
        try:
            return checkpoint, read(checkpoint)
        except CorruptDataError as error:
            report(f"skipped: {error}")
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the furthest ``keep`` checkpoints and the one with the lowest validation loss."""
    checkpoints = list_checkpoints(folder)
    losses = {}
    for checkpoint in checkpoints:
        try:
            loss = json.loads(checkpoint.receipt.read_text())["validation_loss"]
        except (FileNotFoundError, json.JSONDecodeError):
            continue  # not complete, so not the best either
        if loss is not None:
            losses[checkpoint] = loss
    kept = {*checkpoints[:keep], *sorted(losses, key=lambda item: (losses[item], item))[:1]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            checkpoint.receipt.unlink(missing_ok=True)
            checkpoint.path.unlink()
