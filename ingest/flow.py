"""Many tasks through a Dask scheduler that is never given more than it needs: results come as they finish.

A task leaves what it made on the disk and returns a few numbers, which are taken off the workers at once.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from gfm.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

__all__ = ["Job", "run_all", "task_name"]

# Tasks given to the scheduler ahead of those being computed: enough to keep workers busy, few enough for its
# memory not to grow with the number of parts.
_AHEAD = 256
_AHEAD_PER_THREAD = 4


@dataclass(frozen=True)
class Job:
    """One call on a worker.

    Attributes:
        name: What people read on the dashboard, as `task_name` makes it; no two alike in one `run_all`.
        what: What an error calls it.
        arguments: Of the function.
        dataset: Name of the dataset it is for, if it is for one.
    """

    name: str
    what: str
    arguments: tuple[Any, ...]
    dataset: str = ""


def task_name(dataset: str, stage: str, number: int) -> str:
    """Return the name of a task: the dashboard shows all tasks of one dataset and stage as one group.

    Dask ends the name of a group at the first dash before a word that is not of letters alone, so that
    ``OC20-2M-read-000001`` would be ``OC20``; dashes of a dataset's name become underscores.
    """
    return f"{dataset.replace('-', '_')}-{stage}-{number:06d}"


def run_all(
    client: "Client", function: "Callable[..., Any]", jobs: Iterable[Job]
) -> "Iterator[tuple[Job, Any]]":
    """Yield each job with the function's result, as they finish.

    Raises:
        ResourceError: Workers died, one after the other, at the same job.
    """
    import dask
    from distributed import KilledWorker, as_completed

    # The token keeps two builds on one client apart.
    token = uuid.uuid4().hex[:8]
    waiting = iter(jobs)
    running: dict[Any, Job] = {}

    def submit(job: Job) -> Any:
        future = client.submit(function, *job.arguments, key=f"{job.name}-{token}", pure=False)
        running[future] = job
        return future

    threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
    ahead = max(_AHEAD, _AHEAD_PER_THREAD * threads)
    try:
        completed = as_completed(  # type: ignore[no-untyped-call]
            [submit(job) for job in islice(waiting, ahead)], loop=client.loop
        )
        for future in completed:
            job = running.pop(future)
            try:
                result = future.result()
            except KilledWorker as error:
                died = dask.config.get("distributed.scheduler.allowed-failures") + 1
                raise ResourceError(
                    f"{died} workers died one after the other while {job.what}. "
                    "Most often memory ran out: use fewer workers or give each more (cluster.workers, "
                    "cluster.memory). Run the same command again: finished parts are kept"
                ) from error
            # Released here, so that no result stays on a worker.
            future.release()
            yield job, result
            for following in islice(waiting, 1):
                completed.add(submit(following))  # type: ignore[no-untyped-call]
    finally:
        if running:
            client.cancel(list(running))  # type: ignore[no-untyped-call]
