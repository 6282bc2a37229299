"""The first task of a part: read it, refuse what is not wanted, write what is left, hand back a few numbers.

Everything large stays on the disk: a staged shard, the screening table, the sums, the rejects. The receipt is
written last, atomically: with it the part is read, without it the next run does the part again. All of it is
for the time being: it need not outlive a power cut, since a later run compares checksums before it uses it.
"""

import contextlib
import errno
import fcntl
import gc
import json
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gfm.data.splits import split_of
from gfm.errors import DataError, GfmError, ResourceError, from_system
from gfm.runtime.config import Config
from gfm.runtime.quantities import byte_count
from ingest.normalise import Kept, normalise
from ingest.plan import Plan, PlannedPart
from ingest.readers.base import Reader, Reject
from ingest.recipe import Recipe
from ingest.sums import sums_of
from ingest.tables import write_table
from store.integrity import FileReceipt, replacing
from store.manifest import ShardReceipt
from store.writer import write_shard

__all__ = [
    "STAGED",
    "TASKS",
    "PartDone",
    "PartReceipt",
    "PartTask",
    "at_work",
    "explained",
    "receipt_path",
    "run_part",
    "sums_path",
    "task_of",
    "write_json",
    "write_rejects",
]

TASKS = "build/tasks.lock"
STAGED = "build/staged"  # where shards wait, laid out as in a dataset
# Bytes; with less than this left, an error of writing is one of space.
_NEARLY_FULL = 1 << 20


class PartReceipt(Config):
    """What is known of a part that was read.

    Attributes:
        digest: Digest of the plan it is a part of.
        name: Name of the part.
        dataset: Name of its dataset.
        structures: Structures that passed the filters.
        rejects: Refused records by reason.
        shard: What was staged; None where nothing was accepted.
        files: Its table and sums, relative to the output.
        seconds: CPU time of reading it.
    """

    digest: str
    name: str
    dataset: str
    structures: int
    rejects: dict[str, int]
    shard: ShardReceipt | None
    files: list[FileReceipt]
    seconds: float


@dataclass(frozen=True)
class PartDone:
    """What the client keeps of a part that was read: a few numbers, for parts there may be many thousands."""

    name: str
    dataset: str
    structures: int
    nbytes: int

    @classmethod
    def of(cls, receipt: PartReceipt) -> "PartDone":
        """Take it from a receipt."""
        nbytes = 0 if receipt.shard is None else receipt.shard.bytes
        return cls(receipt.name, receipt.dataset, receipt.structures, nbytes)


@dataclass(frozen=True)
class PartTask:
    """All that a worker needs for one part; small and picklable."""

    digest: str
    recipe: Recipe
    reader: Reader
    planned: PlannedPart

    @property
    def dataset(self) -> str:
        """Name of the dataset the part belongs to."""
        return self.recipe.sources[self.planned.source].name


def task_of(plan: Plan, planned: PlannedPart) -> PartTask:
    """Return the task of a planned part; its output path is absolute, workers may run elsewhere."""
    recipe = plan.recipe.model_copy(update={"output": plan.recipe.output.absolute()})
    return PartTask(plan.digest, recipe, plan.readers[planned.source], planned)


def receipt_path(output: Path, name: str) -> Path:
    """Return where the receipt of a part lies."""
    return output / "build" / "receipts" / f"{name}.json"


@contextlib.contextmanager
def explained(output: Path) -> Iterator[None]:
    """Say in this project's words what the operating system refuses: a full disk, a path that cannot be used.

    Raises:
        DataError: A path cannot be used.
        ResourceError: The disk of ``output`` is full, or this process may not open more files.
    """
    try:
        yield
    except GfmError:
        raise
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(output).free if output.exists() else None
        # ADIOS2 says of a full disk only that writing failed.
        if free is not None and (getattr(error, "errno", None) == errno.ENOSPC or free < _NEARLY_FULL):
            raise ResourceError(
                f"{output}: the disk is full ({byte_count(free)} left). Make room and run the same command "
                "again: finished parts are kept"
            ) from error
        if isinstance(error, OSError) and (known := from_system(error)) is not None:
            raise known from error
        raise


def sums_path(output: Path, name: str) -> Path:
    """Return where the sums of a part lie."""
    return output / "build" / "sums" / f"{name}.json"


@contextlib.contextmanager
def at_work(output: Path) -> Iterator[None]:
    """Hold what a new run waits for: tasks may outlive the client that gave them out."""
    (output / "build").mkdir(parents=True, exist_ok=True)
    with (output / TASKS).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def run_part(task: PartTask) -> PartDone:
    """Do one part: afterwards its receipt lies on the disk.

    Raises:
        DataError: The file cannot be read and ``on_error`` is ``stop``; the text names file and part.
        ResourceError: The disk of the output is full, or this process may not open more files.
    """
    _keep_libraries()
    with explained(task.recipe.output), at_work(task.recipe.output):
        return PartDone.of(_run(task))


@cache
def _keep_libraries() -> None:
    """Let the search for garbage pass over what a worker has imported."""
    gc.freeze()


def _run(task: PartTask) -> PartReceipt:
    recipe, planned = task.recipe, task.planned
    output, began = recipe.output, time.thread_time()
    kept, rejects = _read(task)
    batch = kept.batch
    shard, files = None, []
    if len(batch):
        batch.columns["dataset"] = np.full(len(batch), planned.source, dtype=np.uint8)
        split = split_of(batch.columns["group"], tuple(recipe.split.fractions.values()), recipe.split.seed)
        files = [
            *write_table(output, planned.name, kept, split),
            write_json(output, sums_path(output, planned.name), sums_of(kept, split).to_json()),
        ]
        shard = write_shard(
            output / STAGED, planned.name, batch, num_edges=kept.num_edges, split=split,
            dataset_names=[source.name for source in recipe.sources], format=recipe.format, durable=False,
        )  # fmt: skip
    write_rejects(output / "rejects" / f"{planned.name}.jsonl", rejects, task.dataset)
    receipt = PartReceipt(
        digest=task.digest,
        name=planned.name,
        dataset=task.dataset,
        structures=len(batch),
        rejects=_by_reason(rejects),
        shard=shard,
        files=files,
        seconds=round(time.thread_time() - began, 6),
    )
    write_json(output, receipt_path(output, planned.name), receipt.model_dump(mode="json"))
    return receipt


def write_json(output: Path, path: Path, value: Any) -> FileReceipt:
    """Write a JSON value whole, and return its receipt, relative to the output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value).encode()
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(text)
    checksum = f"{google_crc32c.value(text):08x}"
    return FileReceipt(path=path.relative_to(output).as_posix(), bytes=len(text), crc32c=checksum)


def _read(task: PartTask) -> tuple[Kept, list[Reject]]:
    """Return the accepted structures of a part and everything that was refused in it."""
    part = task.planned.part
    accepted: list[Kept] = []
    rejects: list[Reject] = []
    where = f"{part.path} ({part.label})"
    try:
        for block in task.reader.read(part):
            kept, refused = normalise(block.batch, block.sources, task.recipe.filters, task.recipe.edges_cutoff)
            rejects += [*block.rejects, *refused]
            accepted.append(kept)
    except (GfmError, MemoryError) as error:
        if not isinstance(error, DataError):
            raise
        rejects.append(_unreadable(task, error, _left_out(accepted)))
    except Exception as error:
        known = from_system(error) if isinstance(error, OSError) else None
        if isinstance(known, DataError):
            rejects.append(_unreadable(task, known, _left_out(accepted)))
        elif known is not None:
            raise known from error
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{where}: the reader {part.reader} failed with {type(error).__name__}: {error} "
                f"(at {frame.filename}:{frame.lineno}); either the file has a layout it does not know, or this "
                "is a mistake in the reader"
            ) from error
    return Kept.concatenate(accepted), rejects


def _left_out(accepted: list[Kept]) -> int:
    """Leave out what was read of a part before it proved to be damaged (checksums come last); say how many."""
    structures = sum(len(kept.batch) for kept in accepted)
    accepted.clear()
    return structures


def _unreadable(task: PartTask, error: DataError, left_out: int) -> Reject:
    """Return the reject that stands for what could not be read, and for what was left out with it.

    Raises:
        DataError: The recipe wants to stop instead.
    """
    part = task.planned.part
    if task.recipe.on_error == "stop":
        text = str(error) if part.path in str(error) else f"{part.path} ({part.label}): {error}"
        raise type(error)(
            f"{text}. Mend or replace the file and run the same command again: finished parts are kept; or "
            "set on_error: reject to count what cannot be read"
        ) from error
    also = f"; {left_out} structures that were read of {part.label} before are left out" if left_out else ""
    return Reject(part.path, "unreadable-file", f"{error}{also}")


def _by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reject in rejects:
        counts[reject.reason] = counts.get(reject.reason, 0) + 1
    return dict(sorted(counts.items()))


def write_rejects(path: Path, rejects: list[Reject], dataset: str) -> None:
    """Write one line per refused record; no file where there is none."""
    if not rejects:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w") as file:
        for item in rejects:
            line = {"source": item.source, "reason": item.reason, "value": item.value, "dataset": dataset}
            file.write(json.dumps(line) + "\n")
