"""The ASE calculator: same numbers as the model, refusals, relaxation and dynamics."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

from gfm.calculator import ModelCalculator
from gfm.errors import ConfigError, DataError, MissingDataError, ResourceError
from gfm.model.build import ModelConfig, build_potential, save_model


@pytest.fixture
def saved(tmp_path):
    def save(names=("metal", "molecules"), dtype=torch.float64, **options):
        config = ModelConfig(**{"hidden": 16, "num_layers": 2, "forces": "gradient", **options})
        references = np.zeros((len(names), 119))
        references[0, [1, 29]] = -3.0
        references[-1, [1, 8, 29]] = -5.0
        potential = build_potential(config, names, references, seed=2).to(dtype)
        return save_model(potential, tmp_path / "model")

    return save


def rattled() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def test_forces_and_stress_are_the_slopes_of_the_energy(saved):
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = rattled()
    atoms.calc = ModelCalculator(saved(), "metal")
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
    numeric = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), numeric, atol=1e-7)


def test_dynamics_with_forces_by_gradient_conserve_energy(saved):
    atoms = rattled()
    atoms.calc = ModelCalculator(saved(), "metal")
    totals = []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(20)
    kinetic = atoms.get_kinetic_energy()
    assert kinetic > 0
    assert np.ptp(totals) < 0.05 * kinetic


def test_results_follow_the_dataset_that_is_named(saved):
    path = saved()
    energies = []
    for name in ("metal", "molecules"):
        atoms = rattled()
        atoms.calc = ModelCalculator(path, name)
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) > 4.0
    with pytest.raises(ConfigError, match="choose one of metal, molecules"):
        ModelCalculator(path)
    with pytest.raises(ConfigError, match="Did you mean 'metal'"):
        ModelCalculator(path, "metals")
    assert ModelCalculator(saved(names=("only",))).dataset == "only"


def test_elements_that_were_never_trained_are_refused_by_name(saved):
    atoms = molecule("H2O")
    atoms.calc = ModelCalculator(saved(), "metal")
    with pytest.raises(DataError, match=r"never trained on O in 'metal'.*molecules"):
        atoms.get_potential_energy()
    gold = bulk("Au")
    gold.calc = ModelCalculator(saved(), "metal")
    with pytest.raises(DataError, match="never trained on Au"):
        gold.get_forces()


def test_stress_exists_for_gradients_and_full_cells_only(saved):
    atoms = molecule("H2O")
    atoms.calc = ModelCalculator(saved(), "molecules")
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    direct = rattled()
    direct.calc = ModelCalculator(saved(forces="direct", dtype=torch.float32), "metal")
    assert not direct.calc.conservative
    assert np.isfinite(direct.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        direct.get_stress()


def test_what_cannot_be_calculated_is_refused_by_name(saved):
    path = saved()
    atoms = Atoms()
    atoms.calc = ModelCalculator(path, "metal")
    with pytest.raises(DataError, match="no atoms"):
        atoms.get_potential_energy()
    with pytest.raises(MissingDataError, match=r"did you mean .*/model\?"):
        ModelCalculator(path.parent, "metal")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(saved):
    with pytest.raises(ResourceError, match="no GPU"):
        ModelCalculator(saved(), "metal", device="cuda")
