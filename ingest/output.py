"""The output directory: whose it is, who is writing to it, which parts of it are finished."""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pydantic

from gfm.errors import ConfigError, CorruptDataError, MissingDataError, ResourceError
from ingest.part import TASKS, PartReceipt, receipt_path
from ingest.plan import Plan, differences
from ingest.recipe import Recipe
from store.integrity import check_sizes, replacing
from store.manifest import Manifest

__all__ = ["PLAN", "alone", "announced", "check_place", "check_same", "finished_receipt", "is_running"]

_LOG = logging.getLogger(__name__)
PLAN = "build/plan.json"


def finished_receipt(output: Path, digest: str, name: str) -> PartReceipt | None:
    """Return the receipt of a part if it is finished: of this plan, and its shard is there with its sizes."""
    try:
        receipt = PartReceipt.model_validate_json(receipt_path(output, name).read_bytes())
        if receipt.digest != digest:
            return None
        if receipt.shard is not None:
            check_sizes(output, receipt.shard.files)
    except (FileNotFoundError, MissingDataError, CorruptDataError):
        return None
    except pydantic.ValidationError as error:
        _LOG.warning("%s is not readable (%s); the part is done again", receipt_path(output, name), error)
        return None
    return receipt


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


def check_place(plan: Plan) -> None:
    """Check that the output directory is free, or holds an unfinished run of the same plan.

    Raises:
        ConfigError: It is neither.
    """
    output, before = plan.recipe.output, plan.recipe.output / PLAN
    if before.exists():
        old = json.loads(before.read_text())
        if old["digest"] != plan.digest:
            _refuse(output, "holds an unfinished run of another recipe", differences(old, plan.to_json()))
        return
    if output.exists() and (not output.is_dir() or any(path.name != "build" for path in output.iterdir())):
        raise ConfigError(
            f"{output} is not empty and was not begun by gfm ingest; give another output, or move away what "
            "is there"
        )


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
def announced(output: Path, dashboard: str | None) -> Iterator[None]:
    """Say in build/running.json who is at work, for ``gfm ingest status``."""
    path = output / "build" / "running.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"pid": os.getpid(), "dashboard": dashboard}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
