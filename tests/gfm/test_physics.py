"""What physics asks of every layer, in both force modes and both precisions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.model.build import LAYERS, ModelConfig, build_potential
from gfm.model.graph import graph_from_structures
from gfm.model.potential import Potential, Prediction

CUTOFF = 3.2
PERIODIC = np.ones(3, dtype=bool)


def make_potential(layer: str, forces: str, dtype=torch.float64, **options) -> Potential:
    config = ModelConfig(layer=layer, forces=forces, hidden=16, num_layers=2, cutoff=CUTOFF, **options)
    references = np.zeros((2, 119))
    references[:, 1:] = -10.0 * np.arange(1, 119)
    references[1] *= 1.5
    potential = build_potential(
        config, ["a", "b"], references, energy_scale=[0.7, 1.3], forces_scale=[0.5, 2.0], seed=1
    )
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.5)  # away from the nearly linear start, so that errors would be seen
    return potential.to(dtype).eval()


@pytest.fixture(params=LAYERS.names())
def layer(request) -> str:
    return request.param


@pytest.fixture(params=["direct", "gradient"])
def forces(request) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def potential(request, layer, forces) -> Potential:
    return make_potential(layer, forces, request.param)


def close(potential: Potential, first, second, scale: float = 1.0) -> None:
    """Compare with the tolerance of the precision."""
    atol = scale * (1e-10 if next(potential.parameters()).dtype == torch.float64 else 2e-4)
    np.testing.assert_allclose(np.asarray(first, float), np.asarray(second, float), atol=atol, rtol=0)


def predict(potential: Potential, *structures: Structure) -> Prediction:
    dtype = next(potential.parameters()).dtype
    config = potential.config
    with torch.no_grad():
        return potential(graph_from_structures(structures, config.cutoff, config.max_neighbors, dtype=dtype))


def crystal(num: int = 6, size: float = 4.5, seed: int = 0, skew: float = 0.3, dataset: int = 0) -> Structure:
    """Atoms on a jittered grid, none closer than about an angstrom, in a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = size * (np.eye(3) + skew * np.tril(rng.uniform(-1, 1, (3, 3)), -1))
    grid = np.stack(np.meshgrid(*[np.arange(3) / 3] * 3), -1).reshape(-1, 3)
    places = rng.choice(27, num, replace=False)
    fractions = grid[places] + rng.uniform(0, 0.1, (num, 3))
    numbers = rng.choice([1, 8, 14, 29], num).astype(np.uint8)
    return Structure(numbers, fractions @ cell, cell, PERIODIC, dataset=dataset)


def slab() -> Structure:
    structure = crystal(seed=3)
    return replace(structure, pbc=np.array([True, True, False]))


def molecule() -> Structure:
    structure = crystal(seed=4)
    return replace(structure, cell=np.zeros((3, 3)), pbc=np.zeros(3, dtype=bool))


def tiny() -> Structure:
    """A primitive cell whose lattice vectors are all shorter than the cutoff."""
    cell = np.full((3, 3), 1.8) - 1.8 * np.eye(3)
    return Structure(np.array([29, 14], np.uint8), np.array([[0, 0, 0], [0.9, 1.0, 0.8]]), cell, PERIODIC)


KINDS = {"crystal": crystal, "slab": slab, "molecule": molecule, "tiny": tiny}


@pytest.fixture(params=list(KINDS))
def structure(request) -> Structure:
    return KINDS[request.param]()


def rotation(reflect: bool) -> NDArray[np.float64]:
    matrix = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0]
    return matrix if (np.linalg.det(matrix) < 0) == reflect else -matrix


@pytest.mark.parametrize("reflect", [False, True])
def test_forces_rotate_and_the_energy_does_not_change(potential, structure, reflect):
    matrix = rotation(reflect)
    turned = replace(structure, positions=structure.positions @ matrix, cell=structure.cell @ matrix)
    before, after = predict(potential, structure), predict(potential, turned)
    close(potential, before.interaction_energy, after.interaction_energy)
    close(potential, before.forces.numpy() @ matrix, after.forces)
    assert before.forces.abs().max() > 5e-3


def test_translation_changes_nothing(potential, structure):
    moved = replace(structure, positions=structure.positions + np.array([11.0, -3.3, 0.7]))
    before, after = predict(potential, structure), predict(potential, moved)
    close(potential, before.interaction_energy, after.interaction_energy)
    close(potential, before.forces, after.forces)


def test_permutation_of_atoms_permutes_forces(potential, structure):
    order = np.random.default_rng(8).permutation(len(structure))
    other = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    before, after = predict(potential, structure), predict(potential, other)
    close(potential, before.interaction_energy, after.interaction_energy)
    close(potential, before.forces[order], after.forces)


def test_wrapping_atoms_through_the_cell_changes_nothing(potential, structure):
    turns = np.random.default_rng(9).integers(-2, 3, (len(structure), 3)) * structure.pbc
    moved = replace(structure, positions=structure.positions + turns @ structure.cell)
    before, after = predict(potential, structure), predict(potential, moved)
    close(potential, before.interaction_energy, after.interaction_energy)
    close(potential, before.forces, after.forces)


@pytest.mark.parametrize("kind", ["crystal", "tiny", "slab"])
def test_a_supercell_has_the_energy_of_its_cells(potential, kind):
    structure = KINDS[kind]()
    repeats = np.where(structure.pbc, [2, 1, 3], 1)
    images = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    positions = np.concatenate([structure.positions + image @ structure.cell for image in images])
    large = replace(
        structure,
        numbers=np.tile(structure.numbers, len(images)),
        positions=positions,
        cell=structure.cell * repeats[:, None],
    )
    one, many = predict(potential, structure), predict(potential, large)
    close(potential, many.interaction_energy, len(images) * one.interaction_energy, scale=len(images))
    close(potential, many.forces, np.tile(one.forces, (len(images), 1)))


def test_energy_and_forces_are_smooth_where_a_neighbour_crosses_the_cutoff(layer, forces):
    potential = make_potential(layer, forces)
    step = 1e-4
    distances = CUTOFF + step * np.arange(-40, 41)
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    numbers = np.array([8, 1, 29], np.uint8)
    trimers = [
        Structure(numbers, np.array([[0.0, 0, 0], [0.6, 0.8, 0], [d, 0, 0]]), cell, pbc) for d in distances
    ]
    result = predict(potential, *trimers)
    energies = result.interaction_energy.numpy()
    components = result.forces.reshape(len(distances), -1).numpy()
    for values in (energies[:, None], components):
        jumps = np.abs(np.diff(values, axis=0))
        assert jumps.max() < 20 * step  # a slope, not a step
        kinks = np.abs(np.diff(values, n=2, axis=0))
        assert kinks.max() < 100 * step**2 + 1e-12 + 0.05 * jumps.max()
    near = Structure(numbers[:2], trimers[0].positions[:2], cell, pbc)
    alone = Structure(numbers[2:], np.zeros((1, 3)), cell, pbc)
    apart = predict(potential, near).interaction_energy + predict(potential, alone).interaction_energy
    beyond = Structure(numbers, np.array([[0.0, 0, 0], [0.6, 0.8, 0], [9.0, 0, 0]]), cell, pbc)
    close(potential, predict(potential, beyond).interaction_energy, apart)


def test_forces_by_gradient_are_minus_the_slope_of_the_energy(layer, structure):
    potential = make_potential(layer, "gradient")
    analytic = predict(potential, structure).forces
    step = 1e-4
    moved = []
    for atom in range(len(structure)):
        for axis in range(3):
            for sign in (1, -1):
                positions = structure.positions.copy()
                positions[atom, axis] += sign * step
                moved.append(replace(structure, positions=positions))
    energies = predict(potential, *moved).interaction_energy.reshape(-1, 3, 2)
    numeric = -(energies[..., 0] - energies[..., 1]) / (2 * step)
    np.testing.assert_allclose(analytic, numeric, atol=2e-6)
    np.testing.assert_allclose(analytic.sum(0), 0.0, atol=1e-10)


@pytest.mark.parametrize("kind", ["crystal", "tiny"])
def test_stress_is_the_slope_of_the_energy_by_strain(layer, kind):
    potential = make_potential(layer, "gradient")
    structure = KINDS[kind]()
    graph = graph_from_structures([structure], CUTOFF, dtype=torch.float64)
    stress = potential(graph, stress=True).stress[0].numpy()
    step = 1e-5
    numeric = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * step / 2
                strain[b, a] += sign * step / 2
                strained = replace(
                    structure, positions=structure.positions @ strain, cell=structure.cell @ strain
                )
                energies.append(float(predict(potential, strained).interaction_energy))
            numeric[a, b] = (energies[0] - energies[1]) / (2 * step) / abs(np.linalg.det(structure.cell))
    np.testing.assert_allclose(stress, numeric, atol=1e-6)
    np.testing.assert_allclose(stress, stress.T, atol=1e-12)


def test_stress_is_refused_of_direct_forces_and_is_nan_without_a_cell(layer):
    graph = graph_from_structures([molecule(), crystal()], CUTOFF, dtype=torch.float64)
    stress = make_potential(layer, "gradient")(graph, stress=True).stress
    assert stress[0].isnan().all()
    assert stress[1].isfinite().all()
    with pytest.raises(ValueError, match="forces: gradient"):
        make_potential(layer, "direct")(graph, stress=True)


def test_a_batch_gives_what_each_structure_gives_alone(potential):
    structures = [crystal(), slab(), molecule(), tiny(), lone_atom(), crystal(seed=5, dataset=1)]
    together = predict(potential, *structures)
    alone = [predict(potential, structure) for structure in structures]
    close(potential, together.interaction_energy, torch.cat([one.interaction_energy for one in alone]))
    close(potential, together.energy, torch.cat([one.energy for one in alone]))
    close(potential, together.forces, torch.cat([one.forces for one in alone]))
    backwards = predict(potential, *structures[::-1])
    close(potential, together.interaction_energy, backwards.interaction_energy.flip(0))


def lone_atom() -> Structure:
    return Structure(np.array([8], np.uint8), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))


def test_a_lone_atom_has_an_energy_and_no_force(potential):
    result = predict(potential, lone_atom())
    assert result.interaction_energy.isfinite().all()
    close(potential, result.forces, np.zeros((1, 3)))


def test_coincident_atoms_give_finite_numbers(potential):
    pair = replace(molecule(), numbers=np.array([8, 8], np.uint8), positions=np.zeros((2, 3)))
    result = predict(potential, pair)
    assert result.interaction_energy.isfinite().all()
    assert result.forces.isfinite().all()


@pytest.mark.parametrize("cap", [4, 8])
def test_a_neighbour_cap_keeps_forces_in_balance_and_turns_with_the_structure(layer, cap):
    potential = make_potential(layer, "gradient", max_neighbors=cap)
    structure = crystal(10)
    matrix = rotation(False)
    order = np.random.default_rng(1).permutation(10)
    turned = replace(
        structure,
        numbers=structure.numbers[order],
        positions=structure.positions[order] @ matrix,
        cell=structure.cell @ matrix,
    )
    before, after = predict(potential, structure), predict(potential, turned)
    close(potential, before.interaction_energy, after.interaction_energy)
    close(potential, before.forces[order].numpy() @ matrix, after.forces)
    np.testing.assert_allclose(before.forces.sum(0), 0.0, atol=1e-10)


def test_datasets_with_their_own_heads_differ_and_shared_ones_differ_in_scale_only(layer):
    first, second = crystal(), crystal(dataset=1)
    own, shared = make_potential(layer, "direct"), make_potential(layer, "direct", heads="shared")
    ratio = {}
    for potential in (own, shared):
        a, b = predict(potential, first), predict(potential, second)
        ratio[potential] = (b.forces / a.forces).numpy()
    np.testing.assert_allclose(ratio[shared], 4.0)
    assert np.ptp(ratio[own]) > 0.1
