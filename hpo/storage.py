"""Where a study lives (a journal file, SQLite, PostgreSQL), and how several workers share it without mistakes.

Optuna's storages know neither turns nor, in a journal, the death of a worker. Two small things add that:

* `turn`: one worker at a time counts the trials and takes the next one, so that the number of trials is exact.
* `Lease`: a file lock that a process holds while it lives. The kernel releases it at any death, `kill -9`
  included, so that a trial whose worker's lease is free has lost its worker. Leases are judged on the host that
  made them only; a database notices the workers of other hosts by their heartbeats.
"""

import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from gfm.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = [
    "JOURNAL",
    "Heartbeat",
    "Lease",
    "fail_silent_trials",
    "holder_is_dead",
    "open_storage",
    "public_url",
    "trial_id",
    "turn",
]

# The default storage, in the folder of the study.
JOURNAL = "study.journal"

# Several silent heartbeats, not one, make a worker dead: a busy node may miss one.
_GRACE_HEARTBEATS = 3

# A key of PostgreSQL's advisory locks, the same for every client of this project.
_ADVISORY_KEY = 0x67666D


def open_storage(
    url: str | None,
    output: Path,
    *,
    heartbeat_seconds: int = 20,
    on_lost: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None,
) -> BaseStorage:
    """Open the storage of a study: the journal in its folder, or a database.

    Args:
        url: None for the journal, else `sqlite:///…` or `postgresql+psycopg://…`.
        output: Folder of the study.
        heartbeat_seconds: How often a running trial says in the database that its worker lives.
        on_lost: What to do with a trial that was failed because its heartbeats stopped.

    Raises:
        ConfigError: The URL is of another kind.
        ResourceError: The database cannot be reached.
    """
    if url is None:
        output.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(output / JOURNAL)))
    if not url.startswith(("sqlite:///", "postgresql")):
        raise ConfigError(
            f"storage {url!r}: expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        )
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, OperationalError
    from sqlalchemy.pool import NullPool

    output.mkdir(parents=True, exist_ok=True)
    # SQLite waits for the other workers' transactions; PostgreSQL tests a connection that idled for an epoch.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        # Optuna makes missing tables without a lock: two clients of a new database would trip over each other.
        if url.startswith("sqlite"):
            making: AbstractContextManager[None] = _file_lock(output)
        else:
            making = _advisory_lock(create_engine(url, poolclass=NullPool))
        with making, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats, since Optuna 2.9
            return RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=heartbeat_seconds,
                grace_period=_GRACE_HEARTBEATS * heartbeat_seconds,
                heartbeat_stale_trial_callback=on_lost,
            )
    except ArgumentError as error:
        raise ConfigError(f"storage {url!r}: {error}") from error
    except OperationalError as error:
        raise ResourceError(
            f"storage {public_url(url)}: the database does not answer; is it running, and may this user "
            f"log in? ({error.orig})"
        ) from error


def public_url(url: str | None) -> str:
    """Return how a storage may be shown: without the password."""
    if url is None:
        return JOURNAL
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)


def trial_id(storage: BaseStorage, study: optuna.Study, number: int) -> int:
    """Return the storage's own id of a trial."""
    return storage.get_trial_id_from_study_id_trial_number(
        storage.get_study_id_from_name(study.study_name), number
    )


@contextmanager
def turn(storage: BaseStorage, output: Path) -> Iterator[None]:
    """Hold the one turn of a study: in PostgreSQL for all its clients, else for all who share the folder."""
    if isinstance(storage, RDBStorage) and storage.url.startswith("postgresql"):
        held = _advisory_lock(storage.engine)
    else:
        held = _file_lock(output)
    with held:
        yield


@contextmanager
def _advisory_lock(engine: "Engine") -> Iterator[None]:
    """Hold this project's lock in a PostgreSQL database; the server frees it when the connection ends."""
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_ADVISORY_KEY})")
        try:
            yield
        finally:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ADVISORY_KEY})")


@contextmanager
def _file_lock(output: Path) -> Iterator[None]:
    """Hold the lock file in a study's folder; the kernel frees it when its holder dies."""
    with (output / "study.turn").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing releases it
        yield


class Lease:
    """A sign of life: held from making to `release` or to the death of the process, however it dies.

    Attributes:
        name: What trials note as their worker: host, process id, and what the process calls itself.
    """

    def __init__(self, output: Path, role: str) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{role}"
        self._path = _lease_path(output, self.name)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        """Return the lease, which is held already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self.release()

    def release(self) -> None:
        """Give the lease back: from now on its holder counts as dead."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def holder_is_dead(output: Path, name: str) -> bool:
    """Say whether the holder of a lease is known to be gone; of other hosts nothing is known, so it is not."""
    if name.partition(":")[0] != socket.gethostname():
        return False
    path = _lease_path(output, name)
    if not path.exists():
        return True
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _lease_path(output: Path, name: str) -> Path:
    return output / "workers" / name.replace(":", "-")


def fail_silent_trials(study: optuna.Study) -> None:
    """Fail the trials whose heartbeats stopped, in a database; a journal has no heartbeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


class Heartbeat:
    """Context manager that records a trial's heartbeats from a thread, where the storage has them."""

    def __init__(self, storage: BaseStorage, identity: int) -> None:
        self._storage = storage
        self._trial_id = identity
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Record the first heartbeat and start the thread."""
        if isinstance(self._storage, RDBStorage):
            self._storage.record_heartbeat(self._trial_id)
            self._thread = threading.Thread(
                target=self._beat, args=(self._storage,), name="heartbeat", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self, storage: RDBStorage) -> None:
        interval = storage.get_heartbeat_interval()
        while not self._over.wait(interval):
            storage.record_heartbeat(self._trial_id)
