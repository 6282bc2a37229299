"""A Dask client from a few lines of configuration: processes of this machine, by kind of cluster.

Everything listens on the loopback interface, the dashboard too. Workers compute on one thread each, since there
is one worker per core, and start with ``PYTHONSAFEPATH`` so that a ``train.py`` in the working directory never
shadows the package of that name.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from gfm.errors import ResourceError
from gfm.runtime.config import Config

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WORKER_ENVIRONMENT", "ClusterConfig", "open_client"]

WORKER_ENVIRONMENT: dict[str, str] = {
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


class ClusterConfig(Config):
    """Where Dask workers run; ``local`` alone means all its defaults.

    Attributes:
        kind: ``local``: worker processes on this machine.
        workers: Number of worker processes; by default one per core this process may use.
        threads: Tasks that one worker computes at once.
        memory: Memory limit of one worker (``4GiB``); by default its share of the machine.
        dashboard: Where the dashboard listens, port 0 for a free one; null for none.
        processes: False computes on threads of this process: for small jobs and for debugging.
    """

    kind: Literal["local"] = "local"
    workers: int | None = pydantic.Field(default=None, ge=1)
    threads: int = pydantic.Field(default=1, ge=1)
    memory: str | int = "auto"
    dashboard: str | None = "127.0.0.1:0"
    processes: bool = True

    @pydantic.model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @pydantic.field_validator("memory")
    @classmethod
    def _memory_is_bytes(cls, value: str | int) -> str | int:
        if value != "auto":
            try:
                # Zero would be no limit at all for Dask.
                sensible = pydantic.TypeAdapter(pydantic.ByteSize).validate_python(value) >= 1 << 20
            except pydantic.ValidationError:
                sensible = False
            if not sensible:
                raise ValueError("expected a size of at least 1MiB, like 4GiB, or auto")
        return value


@contextlib.contextmanager
def open_client(config: ClusterConfig) -> "Iterator[Client]":
    """Start a cluster and yield a client of it; both are gone afterwards, whatever happened between.

    Raises:
        ResourceError: The workers did not start.
    """
    import dask
    from distributed import Client

    before = dict(os.environ)
    # The interpreter reads these as it starts, before the nanny could set them inside the worker.
    spawn_environment = {f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in WORKER_ENVIRONMENT.items()}
    try:
        with (
            dask.config.set(spawn_environment),
            contextlib.ExitStack() as calm,
            contextlib.ExitStack() as stack,
        ):
            try:
                with _interrupts_ignored():
                    cluster = stack.enter_context(_KINDS[config.kind](config))
                client = stack.enter_context(
                    Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
                )
            except (OSError, RuntimeError, TimeoutError) as error:
                raise ResourceError(f"the {config.kind} Dask cluster did not start: {error}") from error
            try:
                yield client
            finally:
                # A second Ctrl-C in the middle of closing would make it longer, not shorter.
                calm.enter_context(_interrupts_ignored())
    finally:
        # To pass variables on to its workers, the nanny sets them (and a few of its own) in this process.
        os.environ.update(before)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


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


def _local(config: ClusterConfig) -> Any:
    """Return a cluster of processes (or threads) of this machine."""
    from distributed import LocalCluster

    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=config.workers or len(os.sched_getaffinity(0)),
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
    )


# One entry per kind of cluster: configuration -> a context manager that Client accepts.
_KINDS: dict[str, Callable[[ClusterConfig], Any]] = {"local": _local}
