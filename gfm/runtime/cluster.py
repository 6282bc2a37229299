"""A Dask client from a few lines of configuration: processes of this machine, or jobs of a batch system.

Scheduler and dashboard run in the calling process. On one machine everything listens on the loopback interface;
with a batch system the scheduler and the workers listen on the one interface that is named. Workers compute on
one thread each, since there is one worker per core, and start with ``PYTHONSAFEPATH`` so that a ``train.py`` in
the working directory never shadows the package of that name.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gfm.errors import GfmError, ResourceError
from gfm.runtime.cluster_config import ClusterConfig

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WORKER_ENVIRONMENT", "ClusterConfig", "batch_script", "open_client"]

WORKER_ENVIRONMENT: dict[str, str] = {
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


def batch_script(config: ClusterConfig) -> str | None:
    """Return the script of one worker's job as it would be submitted; None where there are no jobs.

    Nothing is started for it; the scheduler's address is a stand-in.

    Raises:
        ResourceError: No interface is named, or this machine has none of that name.
    """
    if config.kind == "local":
        return None
    from gfm.runtime.jobqueue import script

    return script(config)


@contextlib.contextmanager
def open_client(config: ClusterConfig, tell: Callable[[str], None] | None = None) -> "Iterator[Client]":
    """Start a cluster and yield a client of it; both are gone afterwards, whatever happened between.

    A worker that dies is replaced: on this machine by its nanny, with a batch system by a new job. A task on
    which more than ``allowed_failures`` workers died ends with Dask's ``KilledWorker``.

    Args:
        config: Where workers run.
        tell: Is told what is waited for, now and then, until the first batch job has become a worker.

    Raises:
        ResourceError: No worker started; the text says why, as far as the batch system does.
    """
    import dask
    from distributed import Client

    before = dict(os.environ)
    try:
        with (
            dask.config.set(_settings(config)),
            contextlib.ExitStack() as calm,
            contextlib.ExitStack() as stack,
        ):
            try:
                try:
                    with _interrupts_ignored():
                        cluster = stack.enter_context(_start(config))
                    if config.kind != "local":
                        from gfm.runtime.keeper import wait_for_worker

                        wait_for_worker(cluster, config.start_timeout, tell)
                    client = stack.enter_context(
                        Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
                    )
                except GfmError:
                    raise
                except (OSError, RuntimeError, TimeoutError) as error:
                    raise ResourceError(f"the {config.kind} Dask cluster did not start: {error}") from error
                yield client
            finally:
                # A second Ctrl-C in the middle of closing would make it longer, not shorter.
                calm.enter_context(_interrupts_ignored())
    finally:
        # To pass variables on to its workers, the nanny sets them (and a few of its own) in this process.
        os.environ.update(before)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _settings(config: ClusterConfig) -> dict[str, Any]:
    """Return what is set in Dask's own configuration while a cluster lives."""
    # The interpreter reads these as it starts, before the nanny could set them inside the worker.
    settings: dict[str, Any] = {
        f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()
    }
    failures = config.allowed_failures
    if config.kind != "local":
        failures = 10 if failures is None else failures
        # Whether a job is lost is for gfm.runtime.keeper to say, which asks the batch system as well.
        settings["distributed.deploy.lost-worker-timeout"] = "1000 days"
    if failures is not None:
        settings["distributed.scheduler.allowed-failures"] = failures
    return settings


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that ignore Ctrl-C and hang-ups: a terminal sends them to all of its group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, signal.SIG_IGN) for name in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _start(config: ClusterConfig) -> Any:
    """Return the cluster: a context manager that Client accepts."""
    if config.kind == "local":
        return _local(config)
    from gfm.runtime.jobqueue import start

    return start(config)


def _local(config: ClusterConfig) -> Any:
    """Return a cluster of processes (or threads) of this machine."""
    from distributed import LocalCluster

    directory = {} if config.local_directory is None else {"local_directory": str(config.local_directory)}
    cluster = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=config.minimum or config.num_workers,
        threads_per_worker=config.threads,
        processes=config.processes,
        memory_limit=config.memory,
        host="127.0.0.1",
        protocol="tcp",
        # Without an address the scheduler's own pages would listen everywhere.
        dashboard_address=config.dashboard or "127.0.0.1:0",
        scheduler_kwargs={"dashboard": config.dashboard is not None},
        worker_dashboard_address=None,
        # A failing task reaches the client as its exception; the worker logs it once more, as an error, with
        # all its arguments.
        silence_logs=logging.CRITICAL,
        **directory,
    )
    if config.minimum is not None:
        cluster.adapt(minimum=config.minimum, maximum=config.num_workers)
    return cluster
