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


def test_the_whole_line(tmp_path: Path) -> None:
    """One run, as a user's, then everything that has to be true of it."""
    out = tmp_path / "out"
    process = subprocess.run(
        [sys.executable, "-m", "gfm", "demo", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500, check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-6000:]
    assert str(out / "report.html") in process.stdout
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert Path(summary["report"]).is_file()
    all_five_sources_are_in(summary)
    two_ranks_trained_from_the_memory_store(summary, out)
    validation_errors_fell_clearly(summary)
    the_study_accounts_for_every_trial(summary)
    the_ensemble_is_no_worse_than_its_best_member(summary)
    calibration_helped(summary)
    the_calculator_opens_the_ensemble(out)


def all_five_sources_are_in(summary: dict[str, Any]) -> None:
    assert {entry["name"] for entry in summary["datasets"]} == SOURCES
    for entry in summary["datasets"]:
        assert entry["structures"] >= 150, entry
        # The QM7-X sample names duplicates in DupMols.dat, as the published one does.
        assert set(entry["rejected"]) <= {"duplicate"}, entry
    assert summary["store"]["structures"] == sum(entry["structures"] for entry in summary["datasets"])
    assert summary["store"]["bytes_per_structure"] > 0


def two_ranks_trained_from_the_memory_store(summary: dict[str, Any], out: Path) -> None:
    training = summary["train"]
    assert (training["ranks"], training["store"]) == (2, "rma")
    lines = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(training["epochs"] + 1))
    assert training["joules"] > 0
    assert training["joules_method"]
    assert training["structures_per_second"] > 0


def validation_errors_fell_clearly(summary: dict[str, Any]) -> None:
    first, last = summary["train"]["first"], summary["train"]["last"]
    zero = last["forces_mae_zero_model_ev_per_angstrom"]
    assert last["forces_mae_ev_per_angstrom"] < 0.5 * zero
    assert last["energy_mae_mev_per_atom"] < first["energy_mae_mev_per_atom"]
    assert set(last["datasets"]) == SOURCES


def the_study_accounts_for_every_trial(summary: dict[str, Any]) -> None:
    study = summary["hpo"]
    assert sum(study["trials"].values()) >= 8
    assert study["trials"]["fail"] == 0
    assert study["workers"] == 2
    assert study["best"]["joules"] > 0


def the_ensemble_is_no_worse_than_its_best_member(summary: dict[str, Any]) -> None:
    test = summary["ensemble"]["test"]
    for key in ("energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom"):
        assert test["ensemble"][key] <= min(member[key] for member in test["members"]), key


def calibration_helped(summary: dict[str, Any]) -> None:
    scores = summary["ensemble"]["calibration"]
    for output in ("energy", "forces"):
        assert scores["after"][output]["nll"] <= scores["before"][output]["nll"], output


def the_calculator_opens_the_ensemble(out: Path) -> None:
    from ase.build import bulk

    from gfm.calculator import EnsembleCalculator

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EnsembleCalculator(out / "ensemble", dataset="mptrj")
    assert atoms.get_forces().shape == (4, 3)
    assert atoms.calc.results["energy_std"] > 0
