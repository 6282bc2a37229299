"""Storages, turns and leases: who may act, and who is known to be dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from gfm.errors import ConfigError, ResourceError
from hpo.storage import (
    Heartbeat,
    Lease,
    fail_silent_trials,
    holder_is_dead,
    open_storage,
    public_url,
    trial_id,
    turn,
)

_HOLD = """
import sys, time
from pathlib import Path
from hpo.storage import Lease
lease = Lease(Path(sys.argv[1]), "worker-0")
print(lease.name, flush=True)
time.sleep(60)
"""


def test_a_lease_is_alive_while_held_and_dead_afterwards(tmp_path: Path) -> None:
    with Lease(tmp_path, "run") as lease:
        assert not holder_is_dead(tmp_path, lease.name)
    assert holder_is_dead(tmp_path, lease.name)


def test_a_killed_process_holds_no_lease(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not holder_is_dead(tmp_path, name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert holder_is_dead(tmp_path, name)


def test_nothing_is_said_of_other_hosts(tmp_path: Path) -> None:
    assert not holder_is_dead(tmp_path, "another-host:1:worker-0")


def test_only_one_has_the_turn(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    inside, most = [], []

    def act() -> None:
        with turn(storage, tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_the_journal_lies_in_the_folder(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(None, tmp_path), study_name="one")
    study.tell(study.ask(), 1.0)
    again = optuna.load_study(storage=open_storage(None, tmp_path), study_name="one")
    assert [trial.value for trial in again.trials] == [1.0]
    assert (tmp_path / "study.journal").is_file()


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[tuple[optuna.Study, list[int], optuna.storages.RDBStorage]]:
    """A study in SQLite whose heartbeats come every second, and the numbers of the trials that fell silent."""
    numbers: list[int] = []

    def note(study: optuna.Study, trial: FrozenTrial) -> None:
        numbers.append(trial.number)

    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url, tmp_path, heartbeat_seconds=1, on_lost=note)
    assert isinstance(storage, optuna.storages.RDBStorage)
    yield optuna.create_study(storage=storage, study_name="one"), numbers, storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_a_database_notices_silence_and_nothing_else(
    lost: tuple[optuna.Study, list[int], optuna.storages.RDBStorage],
) -> None:
    study, numbers, storage = lost
    alive, silent = study.ask(), study.ask()
    with Heartbeat(storage, trial_id(storage, study, alive.number)):
        with Heartbeat(storage, trial_id(storage, study, silent.number)):
            fail_silent_trials(study)
            assert numbers == []
        deadline = time.monotonic() + 30
        while not numbers and time.monotonic() < deadline:
            time.sleep(0.5)
            fail_silent_trials(study)
        assert numbers == [silent.number]
        assert study.trials[silent.number].state == TrialState.FAIL
        assert study.trials[alive.number].state == TrialState.RUNNING


def test_another_kind_of_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected sqlite"):
        open_storage("redis://localhost", tmp_path)


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="does not answer") as failure:
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/studies", tmp_path)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (None, "study.journal"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("postgresql+psycopg://me:secret@host/studies", "postgresql+psycopg://me:***@host/studies"),
    ],
)
def test_a_storage_is_shown_without_its_password(url: str | None, shown: str) -> None:
    assert public_url(url) == shown
