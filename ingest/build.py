"""Run a recipe on Dask: unpack, plan, read every part, screen, write the shards, commit.

Every task leaves what it made on the disk with a receipt, so nothing is lost with a worker or with the client:
the next run of the same recipe skips what is finished. What is merged are the receipts, in the order of the
plan, so the dataset is the same bytes whatever the number of workers, the order in which they finish, and
crashes between. The client keeps a few numbers of each part, however many structures it holds.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gfm.runtime.cluster import ClusterConfig, open_client
from ingest.flow import Job, run_all, task_name
from ingest.merge import commit
from ingest.once import read_once, settle_once
from ingest.output import (
    PLAN,
    alone,
    announced,
    check_free,
    check_plan,
    check_same,
    read_part,
    settled_shard,
    sweep_all,
    tidy,
)
from ingest.part import PartDone, explained, task_of
from ingest.plan import PackedFile, Plan, PlannedPart, make_plan, packed_files, part_name, scratch_folders
from ingest.recipe import Recipe
from ingest.screen import Stage, screen_all
from ingest.settle import ShardTask
from store.integrity import replacing
from store.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Watcher", "build", "cluster_of"]

_MOST_PARTS = 1000  # joined to one shard, by one task


class Watcher:
    """Is told what happens during `build`; does nothing by itself."""

    def complete(self, manifest: Manifest) -> None:
        """The dataset was complete before; nothing is done."""

    def waiting(self, what: str) -> None:
        """A batch system has not started a worker yet."""

    def started(self, dashboard: str | None) -> None:
        """The cluster is there, with its dashboard at this address if it has one."""

    def planned(self, plan: Plan, read: Sequence[PartDone]) -> None:
        """The plan is made; some parts were read before."""

    def part_read(self, planned: PlannedPart, done: PartDone) -> None:
        """One more part is read."""

    def stage(self, name: str, total: int) -> Callable[[], None]:
        """A stage other than reading begins, of this many tasks; what is returned is called after each."""
        return lambda: None


def build(recipe: Recipe, *, client: "Client | None" = None, watcher: Watcher | None = None) -> Manifest:
    """Make a dataset of a recipe, or finish one that was begun.

    Args:
        recipe: What to do.
        client: A Dask client to compute on; by default a cluster is started as the recipe says.
        watcher: Is told of progress.

    Returns:
        The manifest of the finished dataset.

    Raises:
        ConfigError: The recipe does not fit what is in the output directory, or a reader's option is wrong.
        DataError: A source is missing or cannot be read (with ``on_error: stop``), or nothing was accepted.
        ResourceError: Workers died, the disk is full, or another run is writing to the same place.
    """
    watcher = watcher or Watcher()
    output = recipe.output
    started = datetime.now(UTC)
    if (output / MANIFEST).exists():
        manifest = Manifest.load(output)
        check_same(recipe, manifest)
        watcher.complete(manifest)
        tidy(output)
        return manifest
    check_free(output)
    packed = packed_files(recipe)
    # What is wrong with a recipe is said before a cluster is started, where that needs no unpacking.
    plan = None if packed else _checked_plan(recipe)
    with explained(output), alone(output), contextlib.ExitStack() as stack:
        sweep_all(output)
        client = client or stack.enter_context(open_client(cluster_of(recipe), watcher.waiting))
        dashboard = str(client.dashboard_link) if recipe.cluster.dashboard else None
        tell = stack.enter_context(announced(output, dashboard))
        watcher.started(dashboard)

        def stage(name: str, total: int) -> Callable[[], None]:
            tell(name)
            return watcher.stage(name, total)

        if plan is None:
            _unpack(client, packed, stage)
            plan = _checked_plan(recipe)
        with replacing(output / PLAN) as temporary:
            temporary.write_text(json.dumps(plan.to_json()))
        tell("reading")
        structures, nbytes, settled = _read_all(client, plan, watcher)
        shards = _shards(plan, structures, nbytes)
        missing = [parts for parts in shards if parts[0] not in settled]
        if missing:
            screens = screen_all(client, plan, structures, stage)
            names = [source.name for source in recipe.sources]
            absolute = recipe.model_copy(update={"output": output.absolute()})
            datasets = [names[plan.parts[parts[0]].source] for parts in missing]
            tasks = [
                ShardTask(plan.digest, absolute, dataset, parts, screens[dataset])
                for dataset, parts in zip(datasets, missing, strict=True)
            ]
            _settle_all(client, tasks, stage)
        advance = stage("committing", 1)
        manifest = commit(plan, [part_name(parts[0]) for parts in shards], started)
        advance()
        for folder in scratch_folders(recipe):
            if folder.exists():
                shutil.rmtree(folder)
        tidy(output)
        return manifest


def cluster_of(recipe: Recipe) -> ClusterConfig:
    """Return where to compute; what batch jobs print goes into the output where nothing else is said."""
    cluster = recipe.cluster
    if cluster.kind == "local" or cluster.log_directory is not None:
        return cluster
    return cluster.model_copy(update={"log_directory": recipe.output.absolute() / "build" / "job-logs"})


def _checked_plan(recipe: Recipe) -> Plan:
    plan = make_plan(recipe)
    check_plan(plan)
    return plan


def _unpack(client: "Client", packed: Sequence[PackedFile], stage: Stage) -> None:
    """Unpack all files that must be, those not unpacked before."""
    jobs = [
        Job(task_name(item.dataset, "unpack", number), f"unpacking {item.file}", (item,), item.dataset)
        for number, item in enumerate(packed)
    ]
    advance = stage("unpacking", len(jobs))
    for _ in run_all(client, _unpack_one, jobs):
        advance()


def _unpack_one(item: PackedFile) -> None:
    item.reader.unpack(item.file)


def _read_all(
    client: "Client", plan: Plan, watcher: Watcher
) -> tuple[NDArray[np.int64], NDArray[np.int64], set[int]]:
    """Read what was not read before.

    Returns:
        Structures that each part accepted and bytes it staged (P,), and the first parts of settled shards.
    """
    output = plan.recipe.output
    settled: set[int] = set()
    in_shards: set[str] = set()
    for path in (output / "build" / "shards").glob("*.json"):
        if (shard := settled_shard(output, plan.digest, path.stem)) is not None:
            settled.add(int(shard.name))
            in_shards.update(shard.parts)
    structures, nbytes = np.zeros((2, len(plan.parts)), dtype=np.int64)
    before: list[PartDone] = []
    missing: list[PlannedPart] = []
    for planned in plan.parts:
        staged = planned.name not in in_shards
        receipt = read_part(output, plan.digest, planned.name, staged=staged)
        if receipt is None:
            missing.append(planned)
        else:
            before.append(PartDone.of(receipt))
    watcher.planned(plan, before)
    for done in before:
        structures[int(done.name)], nbytes[int(done.name)] = done.structures, done.nbytes
    for planned, done in _read(client, plan, missing):
        structures[planned.index], nbytes[planned.index] = done.structures, done.nbytes
        watcher.part_read(planned, done)
    return structures, nbytes, settled


def _read(
    client: "Client", plan: Plan, missing: Sequence[PlannedPart]
) -> "Iterable[tuple[PlannedPart, PartDone]]":
    """Yield parts as they are read."""
    names = [source.name for source in plan.recipe.sources]
    jobs = (
        Job(
            task_name(names[planned.source], "read", planned.index),
            f"reading {planned.part.path} ({planned.part.label}) of {names[planned.source]}",
            (task_of(plan, planned),),
            names[planned.source],
        )
        for planned in missing
    )
    for job, done in run_all(client, read_once, jobs):
        yield job.arguments[0].planned, done


def _shards(plan: Plan, structures: NDArray[np.int64], nbytes: NDArray[np.int64]) -> list[list[int]]:
    """Join neighbouring parts of one dataset up to the size of a shard; empty parts are in none."""
    shards: list[list[int]] = []
    size = 0
    for planned in plan.parts:
        index = planned.index
        if not structures[index]:
            continue
        if (
            not shards
            or plan.parts[shards[-1][0]].source != planned.source
            or size + nbytes[index] > int(plan.recipe.shard_bytes)
            or len(shards[-1]) == _MOST_PARTS
        ):
            shards.append([])
            size = 0
        shards[-1].append(index)
        size += int(nbytes[index])
    return shards


def _settle_all(client: "Client", tasks: Sequence[ShardTask], stage: Stage) -> None:
    """Write the final shards."""
    advance = stage("writing", len(tasks))
    jobs = (
        Job(
            task_name(task.dataset, "write", task.parts[0]),
            f"writing shard {task.name} of {task.dataset}",
            (task,),
        )
        for task in tasks
    )
    for _ in run_all(client, settle_once, jobs):
        advance()
