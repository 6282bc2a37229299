"""Where Dask workers run, as a recipe or a study file says it: this machine, or jobs of a batch system."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic

from gfm.runtime.config import Config
from gfm.runtime.registry import suggest

__all__ = ["ClusterConfig"]

Kind = Literal["local", "slurm", "pbs", "sge", "lsf", "htcondor", "moab", "oar"]

# What a kind of cluster has no use for; anything else than the default there is a mistake worth saying.
_BATCH_ONLY = (
    *("processes_per_job", "cores", "queue", "account", "walltime", "lifetime", "interface", "host", "disk"),
    *("directives", "prologue", "log_directory", "start_timeout", "death_timeout"),
)
_NOT_CONDOR = ("queue", "account", "walltime")


def _seconds(value: Any) -> Any:
    """Read ``[days-]hours:minutes:seconds``; anything else is left to be read as a number of seconds."""
    if not isinstance(value, str) or ":" not in value:
        return value
    days, _, clock = value.rpartition("-")
    parts = clock.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts) or not (days or "0").isdigit():
        raise ValueError("expected hours:minutes:seconds, like 01:00:00 or 2-12:00:00, or seconds")
    hours, minutes, seconds = (int(part) for part in parts)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


# YAML reads an unquoted 10:00:00 as 36000, so seconds and the clock have to mean the same.
Seconds = Annotated[int, pydantic.BeforeValidator(_seconds), pydantic.Field(ge=1)]


class ClusterConfig(Config):
    """Where Dask workers run; ``local`` alone means all its defaults.

    Durations are seconds or ``[days-]hours:minutes:seconds``.

    Attributes:
        kind: ``local``: worker processes on this machine; otherwise the batch system whose jobs are workers:
            ``slurm``, ``pbs``, ``sge``, ``lsf``, ``htcondor``, ``moab`` or ``oar``.
        workers: Number of worker processes; on this machine by default one per core this process may use.
        minimum: Fewest workers: their number then follows the work, up to ``workers``. By default it is fixed.
        threads: Tasks that one worker computes at once.
        memory: Memory limit of one worker (``4GiB``); on this machine by default its share. A job asks for as
            much as its workers, and what watches over them takes some 150MiB of it.
        dashboard: Where the dashboard listens, port 0 for a free one; null for none.
        processes: False computes on threads of this process: for small jobs and for debugging.
        allowed_failures: How many workers may die on one task without it being given up. By default Dask's (3)
            on this machine and 10 with a batch system, where jobs are preempted and nodes fail.
        local_directory: Where workers keep temporary files; by default the node's temporary directory.
        processes_per_job: Worker processes of one batch job.
        cores: Cores of one batch job; by default one per thread of its workers. SGE has no common way to ask
            for cores: use ``directives``.
        queue: Queue or partition.
        account: Account or project that is charged.
        walltime: Longest life of one job; by default an hour.
        lifetime: Age at which a worker retires, give or take a tenth (two minutes at most), and is replaced by
            a new job; what it was computing is begun again elsewhere. By default a fifth of the walltime, at
            most five minutes, before its end.
        interface: Network interface of scheduler and workers, like ``ib0``.
        host: Address of scheduler and workers instead, where all of them are on one machine.
        directives: More lines for the batch system, without ``#SBATCH`` or the like; with HTCondor
            ``name = value``. SGE and OAR ask for memory here.
        prologue: Shell lines before the worker starts, like ``module load``.
        disk: Disk space of one job; HTCondor only, which needs it.
        log_directory: Where jobs write what they print, on a disk that all nodes see; by default ``job-logs``
            in the working directory.
        start_timeout: How long to wait for the first worker.
        death_timeout: How long workers look for a lost scheduler before they and their jobs end by themselves.
    """

    kind: Kind = "local"
    workers: int | None = pydantic.Field(default=None, ge=1)
    minimum: int | None = pydantic.Field(default=None, ge=1)
    threads: int = pydantic.Field(default=1, ge=1)
    memory: str | int = "auto"
    dashboard: str | None = "127.0.0.1:0"
    processes: bool = True
    allowed_failures: int | None = pydantic.Field(default=None, ge=0)
    local_directory: Path | None = None
    processes_per_job: int = pydantic.Field(default=1, ge=1)
    cores: int | None = pydantic.Field(default=None, ge=1)
    queue: str | None = None
    account: str | None = None
    walltime: Seconds | None = None
    lifetime: Seconds | None = None
    interface: str | None = None
    host: str | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    disk: str | None = None
    log_directory: Path | None = None
    start_timeout: Seconds = 300
    death_timeout: Seconds = 60

    @pydantic.model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @pydantic.field_validator("kind", mode="before")
    @classmethod
    def _kind_is_known(cls, value: Any) -> Any:
        known = get_args(Kind)
        if value not in known:
            raise ValueError(f"expected one of {', '.join(known)}.{suggest(str(value), known)}")
        return value

    @pydantic.field_validator("memory", "disk")
    @classmethod
    def _is_bytes(cls, value: str | int | None) -> str | int | None:
        if value is not None and value != "auto":
            try:
                # Zero would be no limit at all for Dask.
                sensible = pydantic.TypeAdapter(pydantic.ByteSize).validate_python(value) >= 1 << 20
            except pydantic.ValidationError:
                sensible = False
            if not sensible:
                raise ValueError("expected a size of at least 1MiB, like 4GiB, or auto")
        return value

    @pydantic.model_validator(mode="after")
    def _fits_its_kind(self) -> "ClusterConfig":
        unfit = {"local": _BATCH_ONLY, "htcondor": (*_NOT_CONDOR, "processes")}.get(
            self.kind, ("processes", "disk")
        )
        fields = type(self).model_fields
        if changed := [name for name in unfit if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(changed)}: of no use with kind {self.kind}")
        if self.minimum is not None and self.minimum > self.num_workers:
            raise ValueError(f"minimum is {self.minimum}, more than the {self.num_workers} workers")
        if self.kind != "local":
            self._fits_batch_jobs()
        return self

    def _fits_batch_jobs(self) -> None:
        needed = ["disk"] if self.kind == "htcondor" and self.disk is None else []
        needed += [] if self.workers else ["workers"]
        needed += ["memory (of one worker)"] if self.memory == "auto" else []
        if needed:
            raise ValueError(f"kind {self.kind} needs {', '.join(needed)}")
        if any((count or 0) % self.processes_per_job for count in (self.workers, self.minimum)):
            raise ValueError(f"workers come {self.processes_per_job} a job: give multiples of that")
        busy = self.processes_per_job * self.threads
        if self.cores is not None and self.cores < busy:
            raise ValueError(f"cores: {self.cores} a job are fewer than its {busy} computing threads")
        if self.kind == "htcondor" and (odd := [line for line in self.directives if "=" not in line]):
            raise ValueError(f"directives: {odd[0]!r}: expected name = value")
        if self.host is not None and self.interface is not None:
            raise ValueError("host and interface say the same thing: give one of them")
        lifetime, stagger = self.retirement
        if lifetime is not None and self.walltime is not None and lifetime + stagger >= self.walltime:
            raise ValueError(
                f"lifetime: workers of {lifetime} +- {stagger} s do not retire before the walltime"
            )

    @property
    def num_workers(self) -> int:
        """Number of worker processes, at most."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def retirement(self) -> tuple[int | None, int]:
        """Age at which workers retire and how much it varies, both in seconds; None for never."""
        lifetime = self.lifetime
        if lifetime is None and self.kind not in ("local", "htcondor"):
            walltime = self.walltime or 3600
            lifetime = walltime - min(300, max(1, walltime // 5))
        return lifetime, min(120, (lifetime or 0) // 10)
