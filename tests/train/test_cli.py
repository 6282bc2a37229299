"""``gfm train``: run, resume, evaluate, status, and messages that a person can act on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gfm.errors import ConfigError, MissingDataError
from train.cli import app

Settings = Callable[..., dict[str, Any]]


def _gfm_train(*arguments: str) -> str:
    """Run a verb; expected errors come through as they do to the root of the command."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_run_extend_evaluate_status(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").write_text(yaml.safe_dump(settings(output="out/run", epochs=1)))
    report = json.loads(_gfm_train("run", "train.yaml", "--json"))
    assert (report["status"], report["epochs"], report["model"]) == ("finished", 1, "out/run/model")
    with pytest.raises(ConfigError, match="--extend"):
        _gfm_train("run", "train.yaml", "epochs=2")
    assert "finished after 2 epochs" in _gfm_train("run", "train.yaml", "epochs=2", "--extend")
    assert "finished after 1 epochs" in _gfm_train("run", "train.yaml", "--fresh")
    metrics = json.loads(_gfm_train("evaluate", "out/run", "--split", "test", "--json"))
    assert set(metrics["datasets"]) == {"clusters", "alloys"}
    assert metrics["forces_mae_ev_per_angstrom"] > 0
    assert "alloys" in _gfm_train("evaluate", "out/run")
    runs = json.loads(_gfm_train("status", "out", "--json"))["runs"]
    assert [(run["run"], run["status"], run["epochs"]) for run in runs] == [("out/run", "finished", 1)]
    assert runs[0]["joules_method"]
    assert "finished" in _gfm_train("status", "out/run")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no training run"):
        _gfm_train("status", str(tmp_path))
    with pytest.raises(MissingDataError, match="no trained model"):
        _gfm_train("evaluate", str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        _gfm_train("run", str(tmp_path / "train.yaml"))


def test_help_teaches_by_example() -> None:
    text = _gfm_train("run", "--help")
    assert "mpiexec -n 2 gfm train run train.yaml" in text
