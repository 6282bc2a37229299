"""Whole studies with real trainings in worker processes: deaths, interruptions, databases, ranks."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from hpo.study import finished_trials, read_study
from hpo.trials import open_study

WriteStudy = Callable[..., Path]
Start = Callable[[Path], "subprocess.Popen[str]"]

pytestmark = pytest.mark.slow


@pytest.fixture
def write_study_file(tmp_path: Path, small_dataset: Path) -> WriteStudy:
    """Return a writer of study files with tiny models; keywords replace settings."""

    def write(**changes: Any) -> Path:
        settings: dict[str, Any] = {
            "name": "tiny",
            "output": str(tmp_path / "study"),
            "base": {
                "dataset": str(small_dataset),
                "model": {"layer": "egnn", "hidden": 8, "num_layers": 1, "cutoff": 4.0, "num_radial": 4},
                "batch": {"size": 8},
                "optimizer": {"warmup_steps": 4},
            },
            "space": {"optimizer.learning_rate": {"float": [1e-3, 1e-2], "log": True}},
            "epochs": 2,
            "trials": 4,
            "workers": 2,
        }
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**settings, **changes}))
        return file

    return write


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a starter of `gfm hpo run`; what still runs in the end is stopped."""
    processes: list[subprocess.Popen[str]] = []

    def run(file: Path, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gfm", "hpo", "run", str(file), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=120)


def _summary(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def _trials(output: Path) -> list[FrozenTrial]:
    with open_study(read_study(output)) as opened:
        return opened.trials()


def _wait_for_epoch(output: Path, epoch: int, process: subprocess.Popen[str]) -> FrozenTrial:
    """Return a running trial that has reported this epoch."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        if not (output / "study.yaml").exists():
            continue
        try:
            trials = _trials(output)
        except FileNotFoundError:
            continue
        for trial in trials:
            if trial.state == TrialState.RUNNING and (trial.last_step or 0) >= epoch:
                return trial
    raise AssertionError(f"no trial reached epoch {epoch}: {process.communicate(timeout=60)}")


def _output(file: Path) -> Path:
    """Return the folder that a study file names."""
    return Path(yaml.safe_load(file.read_text())["output"])


def _epochs(output: Path, trial: FrozenTrial) -> list[int]:
    lines = (output / trial.user_attrs["path"] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def test_a_study_is_trained_discarded_finished_and_summed_up(
    write_study_file: WriteStudy, start: Start
) -> None:
    file = write_study_file(
        trials=6,
        epochs=3,
        discard={"kind": "median", "startup_trials": 2, "warmup_epochs": 1},
        finish={"best": 2, "epochs": 4},
    )
    summary = _summary(start(file))
    output = Path(summary["output"])
    assert summary == json.loads((output / "summary.json").read_text())
    states = summary["trials"]
    assert states["complete"] + states["pruned"] == 6
    assert states["fail"] == states["running"] == states["waiting"] == 0
    assert summary["epochs_trained"] + summary["epochs_saved"] == 18
    assert (summary["epochs_saved"] > 0) == (states["pruned"] > 0)
    rows = finished_trials(output)
    assert len(rows) == states["complete"]
    assert sorted(row["trial"] for row in summary["finished"]) == sorted(
        row["trial"] for row in rows if row["finished"]
    )
    assert len(summary["finished"]) == 2
    for row in rows:
        assert (Path(row["path"]) / "model" / "model.safetensors").is_file()
        assert row["joules"] > 0
    trials = _trials(output)
    assert summary["joules"] >= sum(trial.user_attrs["joules"] for trial in trials) > 0
    assert "estimate" in summary["joules_method"] or summary["joules_method"] in ("rapl", "nvml")
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert summary["best"]["value"] == min(
        trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None
    )
    again = start(file)
    assert _summary(again)["trials"] == states
    assert len(_trials(output)) == 6


def test_a_killed_workers_trial_goes_on_from_its_checkpoint(write_study_file: WriteStudy, start: Start) -> None:
    file = write_study_file(trials=2, epochs=60, workers=1)
    process = start(file)
    output = _output(file)
    victim = _wait_for_epoch(output, 2, process)
    os.kill(int(victim.user_attrs["worker"].split(":")[1]), signal.SIGKILL)
    summary = _summary(process)
    assert summary["trials"]["complete"] == 2
    assert summary["retried"] == 1
    trials = _trials(output)
    (taken,) = [trial for trial in trials if trial.user_attrs.get("retried_from") == victim.number]
    assert trials[victim.number].user_attrs["reason"] == "worker died"
    assert taken.user_attrs["path"] == victim.user_attrs["path"]
    assert taken.params == victim.params
    assert _epochs(output, taken) == list(range(61))
    starts = json.loads((output / taken.user_attrs["path"] / "provenance.json").read_text())["starts"]
    assert starts[0]["epoch"] == 0
    assert starts[1]["epoch"] >= 2  # not from the beginning


def test_a_study_that_was_told_to_stop_goes_on_where_it_was(write_study_file: WriteStudy, start: Start) -> None:
    file = write_study_file(trials=2, epochs=80, workers=2, retries=0)
    output = _output(file)
    process = start(file)
    _wait_for_epoch(output, 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(trial.state == TrialState.RUNNING for trial in _trials(output))
    summary = _summary(start(file))
    assert summary["trials"]["complete"] == 2
    for trial in _trials(output):
        if trial.state == TrialState.COMPLETE:
            assert _epochs(output, trial) == list(range(81))


def test_a_worker_that_cannot_work_stops_the_study_with_its_message(
    write_study_file: WriteStudy, start: Start, tmp_path: Path
) -> None:
    file = write_study_file(base={"dataset": str(tmp_path / "nowhere")})
    process = start(file)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "nowhere" in err


@pytest.mark.mpi
def test_trials_train_on_two_ranks(write_study_file: WriteStudy, start: Start, small_dataset: Path) -> None:
    file = write_study_file(workers=1, ranks=2, trials=2, finish={"best": 1, "epochs": 3})
    summary = _summary(start(file))
    assert summary["trials"]["complete"] == 2
    output = Path(summary["output"])
    for trial in _trials(output):
        assert sorted(trial.intermediate_values) == [1, 2]
    record = json.loads((output / "trials/0000/metrics.jsonl").read_text().splitlines()[-1])
    assert record["ranks"] == 2
    assert record["store"] == "rma"
    assert [row["epochs"] for row in summary["finished"]] == [3]


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test's own, on loopback."""
    folder = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = folder[-1] if folder else Path(shutil.which("initdb") or "").parent
    # Another user has to enter it, which pytest's own folders do not allow.
    home = Path(tempfile.mkdtemp(prefix="gfm-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    data = home / "data"
    subprocess.run(
        [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "gfm", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=home,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *as_user,
            str(programs / "postgres"),
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            str(home),
        ],
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
    for _ in range(100):
        if subprocess.run(ready, capture_output=True).returncode == 0:
            break
        time.sleep(0.2)
    yield f"postgresql+psycopg://gfm@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)  # its fast shutdown
    server.wait(30)
    shutil.rmtree(home)


@pytest.mark.postgres
def test_postgresql_keeps_a_study_and_survives_a_killed_worker(
    write_study_file: WriteStudy, start: Start, postgres: str
) -> None:
    file = write_study_file(trials=3, epochs=40, workers=2, storage=postgres, finish={"best": 1, "epochs": 41})
    output = _output(file)
    process = start(file)
    victim = _wait_for_epoch(output, 2, process)
    os.kill(int(victim.user_attrs["worker"].split(":")[1]), signal.SIGKILL)
    summary = _summary(process)
    assert summary["trials"]["complete"] == 3
    assert summary["retried"] == 1
    assert not (output / "study.journal").exists()
    assert [row["epochs"] for row in summary["finished"]] == [41]


@pytest.mark.postgres
def test_clients_that_open_a_new_database_at_once_do_not_trip(postgres: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hpo.storage import open_storage; input();"
        "open_storage(sys.argv[1], Path(sys.argv[2])); print('open')"
    )
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code, postgres, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("\n")
        client.stdin.flush()
    for client in clients:
        output, errors = client.communicate(timeout=120)
        assert output == "open\n", errors
