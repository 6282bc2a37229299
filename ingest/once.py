"""Tasks that may be given out twice and are done once: a worker may die, or be given up, when its work is done.

The scheduler then has somebody else do the task. What lies finished on the disk is only looked at.
"""

from gfm.errors import GfmError
from ingest.output import read_part, settled_shard
from ingest.part import PartDone, PartTask, run_part
from ingest.settle import ShardTask, settle_shard

__all__ = ["read_once", "settle_once"]


def read_once(task: PartTask) -> PartDone:
    """Read a part, unless it is read.

    Raises:
        DataError: The file cannot be read and ``on_error`` is ``stop``.
        ResourceError: The disk of the output is full, or this process may not open more files.
    """
    if (done := _read(task)) is not None:
        return done
    try:
        return run_part(task)
    except (GfmError, OSError):
        # The worker that was given up may have lived on and finished: two that rename at once are in each
        # other's way.
        if (done := _read(task)) is not None:
            return done
        raise


def settle_once(task: ShardTask) -> str:
    """Write a shard, unless it is written; return its name.

    Raises:
        CorruptDataError: A staged file is not what was written.
        ResourceError: The disk of the output is full.
    """
    if _is_settled(task):
        return task.name
    try:
        return settle_shard(task)
    except (GfmError, OSError):
        # The worker that was given up may have lived on, finished, and removed what was staged.
        if _is_settled(task):
            return task.name
        raise


def _read(task: PartTask) -> PartDone | None:
    receipt = read_part(task.recipe.output, task.digest, task.planned.name, staged=True)
    return None if receipt is None else PartDone.of(receipt)


def _is_settled(task: ShardTask) -> bool:
    return settled_shard(task.recipe.output, task.digest, task.name) is not None
