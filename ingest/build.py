"""Run the plan on Dask: one task per part, receipts collected at once, merged in the plan's order, committed.

A task leaves its shard and receipt on the disk, so nothing is lost with a worker or with the client: the next
run of the same recipe skips what is finished. What is merged are the receipts, in the order of the plan, so the
dataset is the same bytes whatever the number of workers, the order in which they finish, and crashes between.
"""

import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gfm.errors import ResourceError
from gfm.runtime.cluster import open_client
from ingest.merge import commit
from ingest.output import PLAN, alone, announced, check_place, check_same, finished_receipt
from ingest.part import PartReceipt, explained, run_part, task_of
from ingest.plan import Plan, PlannedPart, make_plan
from ingest.recipe import Recipe
from store.integrity import replacing, sweep
from store.manifest import MANIFEST, Manifest
from store.writer import SHARDS

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Watcher", "build"]

# Tasks given to the scheduler ahead of those being computed: enough for any cluster, few enough for its memory.
_AHEAD = 256


class Watcher:
    """Is told what happens during `build`; does nothing by itself."""

    def complete(self, manifest: Manifest) -> None:
        """The dataset was complete before; nothing is done."""

    def planned(self, plan: Plan, finished: Sequence[PartReceipt]) -> None:
        """The plan is made; some parts are finished from before."""

    def started(self, dashboard: str | None) -> None:
        """The cluster is there, with its dashboard at this address if it has one."""

    def part_finished(self, receipt: PartReceipt) -> None:
        """One more part is finished."""


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
    began = time.monotonic()
    if (recipe.output / MANIFEST).exists():
        manifest = Manifest.load(recipe.output)
        check_same(recipe, manifest)
        watcher.complete(manifest)
        return manifest
    plan = make_plan(recipe)
    check_place(plan)
    with explained(recipe.output), alone(recipe.output):
        sweep(recipe.output / SHARDS)
        with replacing(recipe.output / PLAN) as temporary:
            temporary.write_text(json.dumps(plan.to_json()))
        receipts: dict[str, PartReceipt] = {}
        for planned in plan.parts:
            if (receipt := finished_receipt(recipe.output, plan.digest, planned.name)) is not None:
                receipts[planned.name] = receipt
        watcher.planned(plan, list(receipts.values()))
        missing = [planned for planned in plan.parts if planned.name not in receipts]
        if missing:
            with contextlib.ExitStack() as stack:
                client = client or stack.enter_context(open_client(recipe.cluster))
                dashboard = str(client.dashboard_link) if recipe.cluster.dashboard else None
                watcher.started(dashboard)
                stack.enter_context(announced(recipe.output, dashboard))
                for receipt in _compute(client, plan, missing):
                    receipts[receipt.name] = receipt
                    watcher.part_finished(receipt)
        return commit(plan, [receipts[planned.name] for planned in plan.parts], time.monotonic() - began)


def _compute(client: "Client", plan: Plan, missing: Sequence[PlannedPart]) -> Iterator[PartReceipt]:
    """Yield receipts as parts finish; a bounded number of tasks is with the scheduler at any time."""
    import dask
    from distributed import KilledWorker, as_completed

    # Names that people read on the dashboard; the token keeps two builds on one client apart.
    token = uuid.uuid4().hex[:8]
    names = [source.name for source in plan.recipe.sources]
    waiting = iter(missing)
    running: dict[Any, PlannedPart] = {}

    def submit(planned: PlannedPart) -> Any:
        key = f"{names[planned.source]}-read-{planned.name}-{token}"
        future = client.submit(run_part, task_of(plan, planned), key=key, pure=False)
        running[future] = planned
        return future

    try:
        completed = as_completed(  # type: ignore[no-untyped-call]
            [submit(planned) for planned in itertools.islice(waiting, _AHEAD)], loop=client.loop
        )
        for future in completed:
            planned = running.pop(future)
            try:
                receipt = PartReceipt.model_validate(future.result())
            except KilledWorker as error:
                died = dask.config.get("distributed.scheduler.allowed-failures") + 1
                raise ResourceError(
                    f"{died} workers died one after the other while reading {planned.part.path} "
                    f"({planned.part.label}) of {names[planned.source]}. "
                    "Most often memory ran out: use fewer workers or give each more (cluster.workers, "
                    "cluster.memory). Run the same command again: finished parts are kept"
                ) from error
            # Released here, so that no result stays on a worker.
            future.release()
            yield receipt
            for following in itertools.islice(waiting, 1):
                completed.add(submit(following))  # type: ignore[no-untyped-call]
    finally:
        if running:
            client.cancel(list(running))  # type: ignore[no-untyped-call]
