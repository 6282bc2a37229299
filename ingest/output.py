"""The output directory: whose it is, who is writing to it, what of it is finished."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TypeVar

import pydantic

from gfm.errors import ConfigError, CorruptDataError, MissingDataError, ResourceError
from ingest.part import STAGED, TASKS, PartReceipt, receipt_path
from ingest.plan import Plan, differences
from ingest.recipe import Recipe
from ingest.settle import SettledShard, settled_path
from store.integrity import check_checksums, check_sizes, replacing, sweep
from store.manifest import Manifest

__all__ = [
    "PLAN",
    "RUNNING",
    "alone",
    "announced",
    "check_free",
    "check_plan",
    "check_same",
    "is_running",
    "read_part",
    "settled_shard",
    "sweep_all",
    "tidy",
]

_Kind = TypeVar("_Kind", PartReceipt, SettledShard)

_LOG = logging.getLogger(__name__)
PLAN = "build/plan.json"
RUNNING = "build/running.json"
# What is needed until the dataset is complete, and not afterwards.
_UNTIL_COMPLETE = ("staged", "tables", "sums", "duplicates", "receipts", "shards", "unpacked")


def read_part(output: Path, digest: str, name: str, *, staged: bool) -> PartReceipt | None:
    """Return the receipt of a part that was read under this plan, if what it left is there.

    Of its table and sums the checksums are compared; those of its shard are where that is settled.

    Args:
        output: The dataset's directory.
        digest: Digest of the plan.
        name: Name of the part.
        staged: Whether its staged shard must be there too; it is not once its final shard is.
    """
    receipt = _receipt(PartReceipt, receipt_path(output, name), digest)
    if receipt is None:
        return None
    try:
        check_checksums(output, receipt.files)
        if staged and receipt.shard is not None:
            check_sizes(output / STAGED, receipt.shard.files)
    except (MissingDataError, CorruptDataError):
        return None
    return receipt


def settled_shard(output: Path, digest: str, name: str) -> SettledShard | None:
    """Return the receipt of a shard that was settled under this plan, if it is there with its sizes."""
    receipt = _receipt(SettledShard, settled_path(output, name), digest)
    if receipt is None or receipt.shard is None:
        return receipt
    try:
        check_sizes(output, receipt.shard.files)
    except (MissingDataError, CorruptDataError):
        return None
    return receipt


def _receipt(kind: type[_Kind], path: Path, digest: str) -> _Kind | None:
    """Read a receipt; None if it is not there, of another plan, or torn."""
    try:
        receipt = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        _LOG.warning("%s is not readable (%s); what it stands for is done again", path, error)
        return None
    return receipt if receipt.digest == digest else None


def sweep_all(output: Path) -> None:
    """Remove what killed writers left."""
    build = output / "build"
    for folder in (output / "shards", output / "rejects", output / STAGED / "shards", build):
        sweep(folder)
    for name in _UNTIL_COMPLETE:
        sweep(build / name)


def tidy(output: Path) -> None:
    """Remove what a complete dataset does not need."""
    for name in _UNTIL_COMPLETE:
        if (folder := output / "build" / name).exists():
            shutil.rmtree(folder)


def is_running(output: Path) -> bool:
    """Return whether some process is writing this dataset now."""
    try:
        with (output / "build" / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def check_same(recipe: Recipe, manifest: Manifest) -> None:
    """Check that a finished dataset is that of this recipe and of the files as they are now.

    Raises:
        ConfigError: It is not; the text says where they differ.
    """
    made_by = manifest.provenance.get("recipe")
    lines = (
        differences({"recipe": made_by}, {"recipe": recipe.content()}) if made_by != recipe.content() else []
    )
    if not lines and (recipe.output / PLAN).exists():
        files = json.loads((recipe.output / PLAN).read_text())["files"]
        lines = [
            f"size of {path}: {size} before, {Path(path).stat().st_size} now"
            for path, size in files.items()
            if Path(path).exists() and Path(path).stat().st_size != size
        ]
    _refuse(recipe.output, "holds a dataset of another recipe", lines)


def check_free(output: Path) -> None:
    """Check that the output directory is empty, or was begun by an ingestion.

    Raises:
        ConfigError: It is neither.
    """
    if (output / PLAN).exists() or not output.exists():
        return
    if not output.is_dir() or any(path.name != "build" for path in output.iterdir()):
        raise ConfigError(
            f"{output} is not empty and was not begun by gfm ingest; give another output, or move away what "
            "is there"
        )


def check_plan(plan: Plan) -> None:
    """Check that what was begun in the output directory, if anything, follows the same plan.

    Raises:
        ConfigError: It does not; the text says where they differ.
    """
    output, before = plan.recipe.output, plan.recipe.output / PLAN
    if before.exists():
        old = json.loads(before.read_text())
        if old["digest"] != plan.digest:
            _refuse(output, "holds an unfinished run of another recipe", differences(old, plan.to_json()))


def _refuse(output: Path, what: str, lines: list[str]) -> None:
    if lines:
        shown = [*lines[:10], *([f"... and {len(lines) - 10} more"] if len(lines) > 10 else [])]
        raise ConfigError(
            "\n  ".join([f"{output} {what}:", *shown]) + "\nGive another output, or remove the old one first"
        )


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Hold the output directory's lock; the system drops it with the process, however that ends.

    Raises:
        ResourceError: Another process holds it.
    """
    (output / "build").mkdir(parents=True, exist_ok=True)
    with (output / "build" / "lock").open("w") as run, (output / TASKS).open("w") as tasks:
        # `is_running` holds it for an instant.
        if not _lock(run, 1.0):
            raise ResourceError(
                f"another run is writing to {output}; gfm ingest status {output} says how far it is"
            )
        # Tasks of a run that ended may still be at their last part.
        if not _lock(tasks, 600.0):
            raise ResourceError(f"workers of an earlier run are still writing to {output}; end them first")
        fcntl.flock(tasks, fcntl.LOCK_UN)
        yield


def _lock(file: IO[str], seconds: float) -> bool:
    """Lock a file for this process alone; False if others kept it for that long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


@contextlib.contextmanager
def announced(output: Path, dashboard: str | None) -> Iterator[Callable[[str], None]]:
    """Say in build/running.json who is at work, for ``gfm ingest status``; yields what tells the stage."""
    path = output / RUNNING
    run = {
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "dashboard": dashboard,
    }

    def tell(stage: str) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**run, "stage": stage}))

    tell("starting")
    try:
        yield tell
    finally:
        path.unlink(missing_ok=True)
