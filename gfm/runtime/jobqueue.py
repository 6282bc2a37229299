"""Dask workers as jobs of a batch system, by dask-jobqueue: what each system calls things, the job script."""

import getpass
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pydantic

from gfm.errors import ResourceError
from gfm.runtime.cluster import WORKER_ENVIRONMENT
from gfm.runtime.cluster_config import ClusterConfig
from gfm.runtime.jobqueue_library import dask_jobqueue
from gfm.runtime.keeper import Keeper, WatchedJob
from gfm.runtime.registry import suggest

__all__ = ["JOB_NAME", "log_directory", "script", "start"]

JOB_NAME = "gfm-worker"

# An adaptive cluster gives a worker back after so many seconds without work: queueing for it took longer.
IDLE_SECONDS = 60


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _clock_without_seconds(seconds: int) -> str:
    return _clock(seconds + 59)[:-3]


@dataclass(frozen=True)
class _System:
    """What one batch system calls things; ``queue`` lists one's jobs as lines of id, state and reason."""

    cluster: str
    account: str | None = "account"
    walltime: Callable[[int], str] | None = _clock
    options: Mapping[str, Any] = field(default_factory=dict)
    directives: tuple[str, ...] = ()
    queue: tuple[str, ...] | None = None


_SYSTEMS = {
    "slurm": _System(
        "SLURMCluster",
        # A job that Slurm queues again by itself would meet its own replacement, of the same name.
        directives=("--no-requeue",),
        queue=("squeue", "--noheader", "--format=%i %T %r", "--user"),
    ),
    "pbs": _System("PBSCluster"),
    "moab": _System("MoabCluster"),
    "sge": _System("SGECluster", "project"),
    "lsf": _System("LSFCluster", "project", _clock_without_seconds),
    # What OAR calls the memory of a core differs from site to site: left to directives, without a warning.
    "oar": _System("OARCluster", "project", options={"memory_per_core_property_name": "not_applicable"}),
    "htcondor": _System("HTCondorCluster", None, None),
}


def script(config: ClusterConfig) -> str:
    """Return the job script of one worker, with stand-ins for what is known only when the scheduler runs.

    Raises:
        ResourceError: No interface is named, or this machine has none of that name.
    """
    _check_network(config)
    # Making a job makes its log directory; here nothing shall be left.
    with tempfile.TemporaryDirectory() as stand_in:
        options = {**_options(config), "log_directory": stand_in}
        job = _job_class(config)(scheduler="tcp://SCHEDULER:PORT", name=f"{JOB_NAME}-0", **options)
        return str(job.job_script()).replace(stand_in, str(log_directory(config)))


def start(config: ClusterConfig) -> Any:
    """Start the scheduler in this process, submit jobs, and keep their number from now on.

    Raises:
        ResourceError: No interface is named, or this machine has none of that name.
    """
    _check_network(config)
    system = _SYSTEMS[config.kind]
    cluster = getattr(dask_jobqueue, system.cluster)(
        name=JOB_NAME,
        job_cls=_job_class(config),
        # A failing task reaches the client as its exception; lost jobs are told by the keeper.
        silence_logs=logging.CRITICAL,
        scheduler_options={
            **({"interface": config.interface} if config.host is None else {"host": config.host}),
            "port": 0,
            # Without an address the scheduler's own pages would listen everywhere.
            "dashboard_address": config.dashboard or "127.0.0.1:0",
            "dashboard": config.dashboard is not None,
        },
        **_options(config),
    )
    minimum = config.minimum or config.num_workers
    cluster.scale(minimum)
    cluster.adapt(
        Adaptive=Keeper,
        minimum=minimum,
        maximum=config.num_workers,
        interval="1s",
        wait_count=IDLE_SECONDS,
        processes=config.processes_per_job,
        queue=None if system.queue is None else [*system.queue, getpass.getuser()],
    )
    return cluster


def log_directory(config: ClusterConfig) -> Path:
    """Return where jobs write what they print: an absolute path, since jobs may start elsewhere."""
    return (config.log_directory or Path("job-logs")).absolute()


def _job_class(config: ClusterConfig) -> Any:
    """Return dask-jobqueue's class of a job, with what `WatchedJob` adds."""
    base = getattr(dask_jobqueue, _SYSTEMS[config.kind].cluster).job_cls
    return type(base.__name__, (WatchedJob, base), {"threads": config.threads})


def _options(config: ClusterConfig) -> dict[str, Any]:
    """Return what dask-jobqueue is told about one job."""
    system, processes = _SYSTEMS[config.kind], config.processes_per_job
    memory = pydantic.TypeAdapter(pydantic.ByteSize).validate_python(config.memory)
    directives: Any = [*system.directives, *config.directives]
    if config.kind == "htcondor":
        directives = {name.strip(): value.strip() for name, _, value in (d.partition("=") for d in directives)}
    options: dict[str, Any] = {
        **system.options,
        "cores": config.cores or processes * config.threads,
        "processes": processes,
        "memory": f"{memory * processes}B",
        "interface": config.interface,
        "death_timeout": config.death_timeout,
        "local_directory": None if config.local_directory is None else str(config.local_directory),
        "log_directory": str(log_directory(config)),
        "python": shlex.quote(sys.executable),
        "job_name": JOB_NAME,
        "job_extra_directives": directives,
        # Last, so that no module of the prologue has another opinion.
        "job_script_prologue": [
            *config.prologue,
            *(f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items()),
        ],
        "worker_extra_args": _worker_arguments(config),
    }
    if system.walltime is not None:
        options |= {"queue": config.queue, "walltime": system.walltime(config.walltime or 3600)}
    if system.account is not None:
        options[system.account] = config.account
    if config.disk is not None:
        options["disk"] = config.disk
    return options


def _worker_arguments(config: ClusterConfig) -> list[str]:
    """Return what is added to the command that starts a worker."""
    # A worker's pages would listen where its tasks are received.
    arguments = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    if config.host is not None:
        arguments += ["--host", config.host]
    lifetime, stagger = config.retirement
    if lifetime is not None:
        arguments += [
            "--lifetime",
            f"{lifetime}s",
            "--lifetime-stagger",
            f"{stagger}s",
            "--no-lifetime-restart",
        ]
    return arguments


def _check_network(config: ClusterConfig) -> None:
    """Refuse to listen everywhere: whoever reaches a Dask scheduler runs code as its owner."""
    if config.host is not None:
        return
    addresses = {
        name: ", ".join(entry.address for entry in entries if entry.family.name == "AF_INET")
        for name, entries in psutil.net_if_addrs().items()
    }
    here = f"This machine has {', '.join(f'{name} ({text})' for name, text in addresses.items() if text)}"
    if config.interface is None:
        raise ResourceError(
            f"cluster.interface is not given, and on all interfaces anybody could use the workers. {here}; "
            "name the one that compute nodes see (or cluster.host where all is on one machine)"
        )
    if not addresses.get(config.interface):
        raise ResourceError(
            f"cluster.interface: there is no {config.interface!r} with an address here."
            f"{suggest(config.interface, addresses)} {here}"
        )
