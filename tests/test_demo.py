"""``gfm demo``: the whole line, by the commands a user types, and what must come out of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = {"ani1x", "qm7x", "oc20", "oc22", "mptrj"}

pytestmark = [pytest.mark.slow, pytest.mark.mpi]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo as it is, once."""
    out = tmp_path_factory.mktemp("demo") / "out"
    process = subprocess.run(
        [sys.executable, "-m", "gfm", "demo", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500, check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-6000:]
    assert str(out / "report.html") in process.stdout.replace("\n", "")
    return out


@pytest.fixture(scope="module")
def summary(demo: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((demo / "summary.json").read_text())
    return data


def test_all_five_sources_are_in(summary: dict[str, Any]) -> None:
    assert {entry["name"] for entry in summary["datasets"]} == SOURCES
    for entry in summary["datasets"]:
        assert entry["structures"] >= 150, entry
        # The QM7-X sample names duplicates in DupMols.dat, as the published one does.
        assert set(entry["rejected"]) <= {"duplicate"}, entry
    assert summary["store"]["structures"] == sum(entry["structures"] for entry in summary["datasets"])
    assert summary["store"]["bytes_per_structure"] > 0


def test_two_ranks_trained_from_the_memory_store(summary: dict[str, Any], demo: Path) -> None:
    training = summary["train"]
    assert (training["ranks"], training["store"]) == (2, "rma")
    lines = [json.loads(line) for line in (demo / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(training["epochs"] + 1))
    assert training["joules"] > 0
    assert training["joules_method"]
    assert training["structures_per_second"] > 0


def test_validation_errors_fall_clearly(summary: dict[str, Any]) -> None:
    first, last = summary["train"]["first"], summary["train"]["last"]
    zero = last["forces_mae_zero_model_ev_per_angstrom"]
    assert last["forces_mae_ev_per_angstrom"] < 0.5 * zero
    assert last["energy_mae_mev_per_atom"] < first["energy_mae_mev_per_atom"]
    assert set(last["datasets"]) == SOURCES


def test_the_study_accounts_for_every_trial(summary: dict[str, Any]) -> None:
    study = summary["hpo"]
    assert sum(study["trials"].values()) >= 8
    assert study["trials"]["fail"] == 0
    assert study["workers"] == 2
    assert study["best"]["joules"] > 0


def test_the_ensemble_is_no_worse_than_its_best_member(summary: dict[str, Any]) -> None:
    test = summary["ensemble"]["test"]
    for key in ("energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom"):
        assert test["ensemble"][key] <= min(member[key] for member in test["members"]), key


def test_calibration_helps(summary: dict[str, Any]) -> None:
    scores = summary["ensemble"]["calibration"]
    for output in ("energy", "forces"):
        assert scores["after"][output]["nll"] <= scores["before"][output]["nll"], output


def test_the_calculator_opens_the_ensemble(demo: Path) -> None:
    from ase.build import bulk

    from gfm.calculator import EnsembleCalculator

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EnsembleCalculator(demo / "ensemble", dataset="mptrj")
    assert atoms.get_forces().shape == (4, 3)
    assert atoms.calc.results["energy_std"] > 0
