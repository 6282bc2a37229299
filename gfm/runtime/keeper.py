"""Keeps the number of Dask workers that are jobs of a batch system: lost jobs are noticed and replaced.

Dask's own cluster replaces a worker only after it was seen, only where a job is one worker, and does not say
why a job did not come. The keeper therefore watches jobs, not workers, and asks the batch system where it can.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.diagnostics.plugin import SchedulerPlugin

from gfm.errors import ResourceError
from gfm.runtime.jobqueue_library import Job

__all__ = ["Keeper", "WatchedJob", "wait_for_worker"]

_LOG = logging.getLogger(__name__)

# Seconds between two questions to the batch system; its operators do not like many.
ASK_SECONDS = 10.0

# Seconds for which a job may be without its workers until it is given up: its nanny may be starting them again.
LOST_SECONDS = 60.0

# Longest pause between attempts, in seconds, while jobs end before their worker comes.
LONGEST_PAUSE = 300.0

# Attempts without a worker, one after the other, until a start is called hopeless.
_ATTEMPTS = 3

# Jobs in these states are over, whatever the list says.
_ENDING = ("COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT")


class WatchedJob:
    """What is added to dask-jobqueue's classes of jobs; ``threads`` is set by the class made of both.

    Attributes:
        refused: Why the batch system did not take the job.
        arrived: Whether a worker of it was seen.
        missing: Since when (monotonic seconds) all of its workers are gone.
    """

    threads: int
    submit_command: str
    refused: str | None = None
    arrived: bool = False
    missing: float | None = None
    job_id: str | None
    status: Status

    @property
    def worker_process_threads(self) -> int:
        """Threads of one worker, which may be fewer than its share of the cores."""
        return self.threads

    async def start(self) -> None:
        """Submit the job. A refusal is left to the keeper: raised here, it would reach nobody."""
        try:
            await super().start()  # type: ignore[misc]
        except FileNotFoundError:
            self._refuse(f"there is no program {self.submit_command} on this machine")
        except (OSError, RuntimeError, ValueError) as error:
            answer = str(error).partition("stderr:\n")[2].strip() or str(error)
            self._refuse(f"{self.submit_command.strip()} answered: {' '.join(answer.split())}")

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self.status = Status.running

    async def close(self) -> None:
        """Cancel the job."""
        await super().close()  # type: ignore[misc]
        self.status = Status.closed

    @staticmethod
    async def _call(command: Sequence[str], *, shell: bool = False, **options: Any) -> str:
        # In a session of its own: a terminal's Ctrl-C must not cut off sbatch before the job's number is known.
        call: Callable[..., Awaitable[str]] = Job._call
        return await call(command, shell=shell, start_new_session=True, **options)


class _Arrivals(SchedulerPlugin):
    """Remembers which workers came: one may be gone again when the keeper looks."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note the name of a worker that came."""
        self.names.add(str(scheduler.workers[worker].name))


class Keeper(Adaptive):
    """Dask's adaptive scaling, which also replaces lost jobs.

    Where the batch system is not asked, a job that ends before its worker came looks like one that still waits.

    Attributes:
        trouble: Why the latest job that never became a worker did not.
    """

    cluster: Any

    def __init__(self, cluster: Any, *, processes: int, queue: Sequence[str] | None, **options: Any) -> None:
        """Add to Dask's options the workers of a job and the command that lists jobs: id, state and reason."""
        self.trouble: str | None = None
        self._attempts = 0
        self._ended = 0
        self._accepted = False
        self._processes = processes
        self._queue = queue
        self._asked = -math.inf
        self._not_before = -math.inf
        self._arrivals = _Arrivals()
        cluster.scheduler.add_plugin(self._arrivals)
        super().__init__(cluster, worker_key=_job_name if processes > 1 else None, **options)

    @property
    def hopeless(self) -> bool:
        """Whether waiting for the first worker makes no sense."""
        return self._ended >= _ATTEMPTS or (self.trouble is not None and not self._accepted)

    @property
    def program(self) -> str:
        """Name of the command that lists jobs."""
        return self._queue[0] if self._queue else "nobody"

    async def safe_target(self) -> int:
        """Return the number of workers wanted: whole jobs, else the last would come and go."""
        return math.ceil(await super().safe_target() / self._processes) * self._processes

    async def adapt(self) -> None:
        """Take lost jobs out of the cluster's books, then scale: what is planned and not there is submitted."""
        await self._drop_lost()
        if time.monotonic() >= self._not_before:
            await super().adapt()

    async def queue_states(self) -> dict[str, str] | None:
        """Return the jobs the batch system has: id -> state and reason; None where it does not say."""
        if self._queue is None:
            return None
        try:
            lines = (await WatchedJob._call(self._queue)).splitlines()
        except (OSError, RuntimeError) as error:
            _LOG.debug("the queue is not known now: %s", error)
            return None
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    async def _drop_lost(self) -> None:
        now = time.monotonic()
        jobs: dict[str, Any] = dict(self.cluster.workers)
        missing = [name for name, job in jobs.items() if not self._is_here(name, job, now)]
        lost = {name for name in missing if jobs[name].refused is not None}
        if len(missing) > len(lost) and now - self._asked >= ASK_SECONDS:
            self._asked = now
            states = await self.queue_states()
            lost |= {name for name in missing if _is_over(jobs[name], states)}
        lost |= {name for name in missing if (jobs[name].missing or now) <= now - LOST_SECONDS}
        if not lost:
            return
        for name in lost:
            self.cluster.workers.pop(name, None)
            self._arrivals.names -= self._workers_of(name)  # its replacement has the same name
        await asyncio.gather(*(jobs[name].close() for name in lost))
        self._judge([jobs[name] for name in lost])

    def _is_here(self, name: str, job: Any, now: float) -> bool:
        """Whether a job has workers; note when it was first seen and since when they are gone."""
        self._accepted |= job.job_id is not None
        names = self._workers_of(name)
        if not job.arrived and names & self._arrivals.names:
            job.arrived = True
            self._attempts = self._ended = 0
        if names & self.observed:
            job.missing = None
            return True
        if job.arrived and job.missing is None:
            # A job that just lost its worker is worth a question now.
            job.missing, self._asked = now, -math.inf
        return False

    def _workers_of(self, name: str) -> set[str]:
        """Return the names of a job's workers."""
        return {f"{name}-{number}" for number in range(self._processes)} if self._processes > 1 else {name}

    def _judge(self, lost: Sequence[Any]) -> None:
        """Say what was lost; after jobs that never became workers, wait before the next attempt."""
        ids = ", ".join(job.job_id for job in lost if job.arrived)
        if ids:
            _LOG.info("jobs that ended or were lost and are replaced: %s", ids)
        early = [job for job in lost if not job.arrived]
        if early:
            self._attempts += 1
            self._ended += any(job.refused is None for job in early)
            pause = min(LONGEST_PAUSE, 2.0 ** min(self._attempts, 20))
            self._not_before = time.monotonic() + pause
            self.trouble = _reason(early[-1])
            _LOG.warning("%s; next attempt in %g s", self.trouble, pause)


def wait_for_worker(cluster: Any, seconds: float, tell: Callable[[str], None] | None) -> None:
    """Wait until the first worker is there.

    Raises:
        ResourceError: None came in time, or jobs end without becoming workers.
    """
    keeper: Keeper = cluster._adaptive
    began = told = time.monotonic()
    while not cluster.observed:
        now = time.monotonic()
        if keeper.hopeless:
            raise ResourceError(f"the batch system gives no workers: {keeper.trouble}")
        if now - began > seconds:
            raise ResourceError(
                f"no worker after {seconds:g} s: {_queue_in_words(cluster, keeper)}. If the queue is so long, "
                "set cluster.start_timeout higher; if jobs run, see their output in cluster.log_directory, and "
                "whether compute nodes reach this machine on cluster.interface"
            )
        if tell is not None and now - told > ASK_SECONDS:
            told = now
            tell(f"waiting for the first worker: {_queue_in_words(cluster, keeper)}")
        time.sleep(0.1)


def _queue_in_words(cluster: Any, keeper: Keeper) -> str:
    """Return how many jobs are in which state, as the batch system says."""
    mine = [job.job_id for job in list(cluster.workers.values()) if job.job_id]
    states: dict[str, str] | None = cluster.sync(keeper.queue_states)
    if states is None:
        return f"{len(mine)} jobs are submitted ({', '.join(mine[:8])})"
    found = [states.get(job, "ENDED") for job in mine]
    counts = Counter(text.split()[0] for text in found)
    text = ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing"
    reasons = sorted({text.partition(" ")[2] for text in found} - {"", "None"})
    return f"{keeper.program} says of {len(mine)} jobs: {text}" + (
        f" ({'; '.join(reasons)})" if reasons else ""
    )


def _job_name(worker: Any) -> str:
    """Return the job of one of several workers that are one job."""
    return str(worker.name).rpartition("-")[0]


def _is_over(job: Any, states: Mapping[str, str] | None) -> bool:
    return (
        states is not None and job.job_id is not None and states.get(job.job_id, _ENDING[0]).startswith(_ENDING)
    )


def _reason(job: Any) -> str:
    """Say why a job never was a worker: what the batch system answered, or the end of its output."""
    if job.refused is not None:
        return str(job.refused)
    last = ""
    if job.log_directory is not None:
        for path in sorted(Path(job.log_directory).glob(f"*{job.job_id}*")):
            last = last or " | ".join(_told(path.read_text(errors="replace"))[-3:])
    return f"job {job.job_id} ended before its worker came" + (f"; its last lines: {last}" if last else "")


def _told(output: str) -> list[str]:
    """Return the lines that say something: of a Python traceback its last."""
    lines = [line for line in output.splitlines() if line.strip()]
    # The frames of a traceback are indented.
    return [line for line in lines if not line[0].isspace() and not line.startswith("Traceback ")]
