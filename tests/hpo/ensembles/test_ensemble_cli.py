"""The verbs of ``gfm ensemble`` as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gfm.errors import MissingDataError
from hpo.cli import ensemble_app
from store.dataset import Dataset

runner = CliRunner()


def gfm(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("gfm")
    return subprocess.run([str(program), *words], capture_output=True, text=True, timeout=300)


def test_help_teaches() -> None:
    for verb in ("select", "evaluate", "report"):
        result = runner.invoke(ensemble_app, [verb, "--help"])
        assert result.exit_code == 0
        assert "Examples" in result.output


def test_report_of_nothing_is_refused() -> None:
    result = gfm("ensemble", "report")
    assert result.returncode == 2
    assert "nothing to report on" in result.stderr


def test_a_folder_that_is_named_and_not_there_is_not_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for option in ("--dataset", "--run", "--study"):
        result = runner.invoke(ensemble_app, ["report", option, str(tmp_path / "slip"), "--out", str(page)])
        assert isinstance(result.exception, MissingDataError)
        assert "slip" in str(result.exception)
    assert not page.exists()


def test_missing_ensemble_exits_with_the_code_for_data(tmp_path: Path) -> None:
    result = gfm("ensemble", "evaluate", str(tmp_path), "--workers", "1")
    assert result.returncode == 3
    assert "gfm ensemble select" in result.stderr


@pytest.mark.slow
def test_evaluate_with_real_models_in_worker_processes(real_ensemble: Path, dataset: Dataset) -> None:
    result = gfm("ensemble", "evaluate", str(real_ensemble), "--workers", "2", "--json")
    assert result.returncode == 0, result.stderr
    scores: dict[str, Any] = json.loads(result.stdout)
    assert scores == json.loads((real_ensemble / "scores.json").read_text())
    assert scores["structures"]["test"] == int((np.asarray(dataset.split) == 2).sum())
    assert (real_ensemble / "report.html").stat().st_size > 10_000
    # the reference energies carry the labels, so an untrained model is off by their noise of 0.3 eV/atom
    assert 100 < scores["comparison"]["ensemble"]["energy_mae_mev_per_atom"] < 2000

    from ase.build import molecule

    from gfm.calculator import EnsembleCalculator

    atoms = molecule("H2O")
    atoms.calc = EnsembleCalculator(real_ensemble, dataset="organics")
    atoms.get_potential_energy()
    assert atoms.calc.results["energy_std"] > 0
