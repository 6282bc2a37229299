"""The ensemble's calculator: means, calibrated spreads, warnings beyond what validation knew."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from gfm.calculator import EnsembleCalculator, ModelCalculator, UncertaintyWarning
from gfm.errors import ConfigError, DataError, MissingDataError
from gfm.model.build import ModelConfig, build_potential, save_model

NAMES = ("a", "b")


def entry(scale: float, threshold: float) -> dict[str, Any]:
    return {"scale": scale, "offset": 0.0, "floor": 1e-6, "rmse": 0.1, "threshold": threshold}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three untrained members that know H, C, O in both datasets; the second orders these the other way."""
    path = tmp_path_factory.mktemp("ensemble")
    references = np.zeros((2, 119))
    references[:, [1, 6, 8]] = [[-13.0, -1000.0, -2000.0], [-3.0, -8.0, -5.0]]
    members = []
    for number in range(3):
        order = [1, 0] if number == 1 else [0, 1]
        config = ModelConfig(hidden=8, num_layers=1, cutoff=4.0 if number == 2 else 3.0)
        potential = build_potential(config, [NAMES[i] for i in order], references[order], seed=number)
        save_model(potential, path / "members" / f"{number:02d}")
        members.append({"model": f"members/{number:02d}"})
    calibration = {
        "energy": {"pooled": entry(5.0, 1e9), "datasets": {"a": entry(2.0, 1e9)}},
        "forces": {"pooled": entry(7.0, 1e9), "datasets": {"a": entry(3.0, 1e9)}},
    }
    card = {"format_version": 1, "members": members, "calibration": calibration}
    (path / "ensemble.json").write_text(json.dumps(card))
    return path


def with_thresholds(folder: Path, tmp_path: Path, threshold: float) -> Path:
    """Return a copy of the ensemble whose thresholds are these."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    card = json.loads((copy / "ensemble.json").read_text())
    for output in card["calibration"].values():
        for part in (output["pooled"], *output["datasets"].values()):
            part["threshold"] = threshold
    (copy / "ensemble.json").write_text(json.dumps(card))
    return copy


def singles(folder: Path, dataset: str, atoms: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return energies and forces of the members one by one."""
    energies, forces = [], []
    for number in range(3):
        atoms.calc = ModelCalculator(folder / "members" / f"{number:02d}", dataset=dataset)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return np.array(energies), np.array(forces)


@pytest.mark.parametrize(("dataset", "factors"), [("a", (2.0, 3.0)), ("b", (5.0, 7.0))])
def test_mean_and_calibrated_spread_of_the_members(folder: Path, dataset: str, factors: Any) -> None:
    atoms = molecule("CH3OH")
    energies, forces = singles(folder, dataset, atoms)
    atoms.calc = EnsembleCalculator(folder, dataset=dataset)
    assert atoms.get_potential_energy() == pytest.approx(energies.mean(), abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=1e-6)
    results = atoms.calc.results
    assert results["energy_std"] == pytest.approx(factors[0] * energies.std(ddof=1), rel=1e-4)
    np.testing.assert_allclose(results["forces_std"], factors[1] * forces.std(axis=0, ddof=1), atol=1e-5)
    uncertainty = atoms.calc.uncertainty
    assert uncertainty.energy_per_atom == pytest.approx(results["energy_std"] / 6)
    assert uncertainty.largest_force == results["forces_std"].max()
    assert uncertainty.beyond == ()


def test_beyond_the_threshold_it_warns_once(folder: Path, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = EnsembleCalculator(with_thresholds(folder, tmp_path, 1e-9), dataset="a")
    with pytest.warns(UncertaintyWarning, match=r"OH2.* energy .*largest force"):
        atoms.get_forces()
    assert atoms.calc.uncertainty.beyond == ("energy", "forces")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.1)
        atoms.get_forces()


def test_never_trained_elements_are_refused_by_name(folder: Path) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.calc = EnsembleCalculator(folder, dataset="a")
    with pytest.raises(DataError, match="Na, Cl"):
        atoms.get_potential_energy()


def test_dataset_must_be_named_where_there_are_several(folder: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of a, b"):
        EnsembleCalculator(folder)


def test_without_calibration_or_ensemble_it_says_what_to_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="gfm ensemble select"):
        EnsembleCalculator(tmp_path)
    copy = with_thresholds(folder, tmp_path, 1.0)
    card = json.loads((copy / "ensemble.json").read_text())
    (copy / "ensemble.json").write_text(json.dumps(card | {"calibration": None}))
    with pytest.raises(MissingDataError, match="gfm ensemble evaluate"):
        EnsembleCalculator(copy, dataset="a")


def test_uncertainty_before_a_calculation_is_refused(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing has been calculated"):
        _ = EnsembleCalculator(folder, dataset="a").uncertainty


def test_a_single_atom_has_no_forces_and_still_a_sigma(folder: Path) -> None:
    atoms = molecule("O")
    atoms.calc = EnsembleCalculator(folder, dataset="b")
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))
    assert (atoms.calc.results["forces_std"] > 0).all()
