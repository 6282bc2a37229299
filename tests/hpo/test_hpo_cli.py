"""The verbs of `gfm hpo`: what they print, where, and with which exit code."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gfm.errors import ResourceError
from hpo.claims import claim
from hpo.cli import app
from hpo.storage import Lease
from hpo.study import StudyConfig, write_study
from hpo.trials import open_study
from hpo.worker import run_finish, run_trial


@pytest.fixture
def study(make_study: Callable[..., StudyConfig], quick_train: Callable[..., Any]) -> Path:
    """The folder of a study with six trials, the best of which went on."""
    config = make_study(finish={"best": 1, "epochs": 6})
    write_study(config)
    with open_study(config, create=True) as opened, Lease(config.output, "worker-0") as lease:
        while (now := claim(opened, lease.name)).kind != "done":
            if now.trial is not None:
                run_trial(now.trial, config, quick_train)
            else:
                run_finish(opened, now, quick_train)
    return config.output


def _gfm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gfm", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )


def test_status_as_json_is_the_summary(study: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(study), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["trials"] == {"running": 0, "complete": 6, "pruned": 0, "fail": 0, "waiting": 0}
    assert summary["epochs_trained"] == 24
    # Six trials of four epochs and two more for the best one, at two joules each.
    assert summary["joules"] == 52.0
    assert [(row["trial"], row["epochs"]) for row in summary["finished"]] == [(summary["best"]["trial"], 6)]


def test_status_for_people_names_the_best_trial_and_its_settings(study: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(study)])
    assert "6 complete" in result.stdout
    assert "optimizer.learning_rate = " in result.stdout
    assert "estimate: test" in result.stdout


def test_export_writes_a_line_per_trial(study: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(study), "--out", str(tmp_path / "trials.csv")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [str(number) for number in range(6)]
    assert {row["state"] for row in rows} == {"complete"}
    assert all(1e-4 <= float(row["optimizer.learning_rate"]) <= 1e-1 for row in rows)
    assert all(float(row["energy_mae_mev_per_atom"]) == pytest.approx(10 * float(row["value"])) for row in rows)


def test_a_misspelt_setting_is_a_configuration_error_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("output: out\nbase: {dataset: data}\nspace: {model.hiden: {int: [8, 16]}}\n")
    result = _gfm("hpo", "run", str(file))
    assert result.returncode == 2
    assert "Did you mean 'model.hidden'" in result.stderr
    assert result.stdout == ""


def test_a_folder_without_a_study_is_missing_data(tmp_path: Path) -> None:
    result = _gfm("hpo", "status", str(tmp_path))
    assert result.returncode == 3
    assert "no study here" in result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, hpo.cli; "
        "assert not {'torch', 'optuna', 'dask', 'mpi4py.MPI', 'sqlalchemy'} & set(sys.modules), sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_shows_the_verbs_of_people_only() -> None:
    result = CliRunner().invoke(app, ["--help"])
    for verb in ("run", "status", "export", "dashboard"):
        assert verb in result.stdout
    assert "worker " not in result.stdout.replace("workers ", "")


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(study: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["dashboard", str(study), "--port", str(port)])
    assert isinstance(result.exception, ResourceError)
    assert "--port" in str(result.exception)


def test_the_dashboard_serves_the_study_on_loopback_only(study: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "gfm", "hpo", "dashboard", str(study), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    try:
        studies = _get_json(f"http://127.0.0.1:{port}/api/studies")
        assert [one["study_name"] for one in studies["study_summaries"]] == ["small"]
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        places = {line.split()[1] for line in listening if line.split()[1].endswith(f":{port:04X}")}
        assert "00000000" not in {place.partition(":")[0] for place in places}
    finally:
        server.terminate()
        server.wait(30)


def _get_json(address: str) -> Any:
    """Return what an address answers, once somebody listens there."""
    for _ in range(150):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"nothing answers at {address}")
