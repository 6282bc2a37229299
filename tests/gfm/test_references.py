"""Energy references: as exact as the energies, the same in any order, honest about what is not determined."""

import itertools
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z, EnergyReference, NormalEquations, compositions
from gfm.data.structure import Structure
from gfm.errors import DataError

# Atomic energies of a PBE0 calculation with all electrons, eV: total energies to -5e4 eV and beyond.
ATOMS = {1: -13.64, 6: -1027.59, 7: -1484.27, 8: -2039.73, 16: -10828.7, 17: -12516.4}


def _molecules(rng: np.random.Generator, num: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    counts = np.zeros((num, MAX_Z + 1))
    counts[:, list(ATOMS)] = rng.integers(0, 9, size=(num, len(ATOMS)))
    counts[:, 1] += 1
    energies = counts[:, list(ATOMS)] @ np.array(list(ATOMS.values())) + rng.normal(scale=0.3, size=num)
    return counts, energies


def _lstsq(counts: NDArray[np.float64], energies: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    seen = counts.any(axis=0)
    solution, _, rank, _ = np.linalg.lstsq(counts[:, seen], energies, rcond=None)
    values = np.zeros(MAX_Z + 1)
    values[seen] = solution
    return values, int(rank)


def test_compositions_count_atoms_by_element() -> None:
    water = Structure(np.array([8, 1, 1], np.uint8), np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    argon = Structure(np.array([18], np.uint8), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    counts = compositions(RaggedBatch.from_structures([water, argon]))
    assert counts.shape == (2, MAX_Z + 1)
    assert (counts[0, 1], counts[0, 8], counts[1, 18], counts.sum()) == (2, 1, 1, 4)


def test_the_fit_is_that_of_numpy_to_a_microelectronvolt() -> None:
    counts, energies = _molecules(np.random.default_rng(0), 5_000)
    fit = NormalEquations.of(counts, energies).solve()
    values, rank = _lstsq(counts, energies)
    assert (fit.rank, fit.num_elements, fit.count) == (rank, len(ATOMS), 5_000)
    np.testing.assert_allclose(fit.of(counts), counts @ values, atol=1e-6, rtol=0)
    np.testing.assert_allclose(fit.values, values, atol=1e-7, rtol=0)
    assert np.flatnonzero(fit.seen).tolist() == list(ATOMS)
    residuals = energies - counts @ values
    expected = np.sqrt((residuals**2).sum() / (counts.sum(axis=1) ** 2).sum())
    assert fit.residual_std == pytest.approx(expected, rel=1e-6)


def test_energies_that_are_linear_come_back_to_a_nanoelectronvolt() -> None:
    counts, _ = _molecules(np.random.default_rng(1), 300)
    exact = np.zeros(MAX_Z + 1)
    exact[list(ATOMS)] = list(ATOMS.values())
    fit = NormalEquations.of(counts, counts @ exact).solve()
    np.testing.assert_allclose(fit.values, exact, atol=1e-8, rtol=0)
    assert fit.residual_std < 1e-9


def test_nearly_collinear_compositions_keep_their_precision() -> None:
    """Slabs of hundreds of atoms that differ by one: the Gram matrix alone has a condition number of 1e7."""
    rng = np.random.default_rng(2)
    counts = np.zeros((400, MAX_Z + 1))
    counts[:, 29] = 300 + rng.integers(0, 2, 400)
    counts[:, 79] = 300 + rng.integers(0, 2, 400)
    counts[:, 8] = rng.integers(0, 3, 400)
    energies = counts[:, [29, 79, 8]] @ np.array([-45_000.0, -38_000.0, -2_039.7])
    fit = NormalEquations.of(counts, energies).solve()
    np.testing.assert_allclose(fit.of(counts), energies, atol=1e-6, rtol=0)
    np.testing.assert_allclose(fit.values[[29, 79, 8]], [-45_000.0, -38_000.0, -2_039.7], atol=1e-6, rtol=0)


def test_any_order_and_any_cut_give_the_same_bits() -> None:
    counts, energies = _molecules(np.random.default_rng(3), 90)
    whole = NormalEquations.of(counts, energies).to_json()
    parts = [NormalEquations.of(counts[i : i + 30], energies[i : i + 30]) for i in (0, 30, 60)]
    for order in itertools.permutations(parts):
        merged = NormalEquations()
        for part in order:
            merged = merged.merge(NormalEquations.from_json(json.loads(json.dumps(part.to_json()))))
        assert merged.to_json() == whole


def test_a_deficient_rank_is_said_and_the_minimum_norm_solution_given() -> None:
    rng = np.random.default_rng(4)
    counts = np.zeros((50, MAX_Z + 1))
    counts[:, 8] = rng.integers(1, 5, 50)
    counts[:, 1] = 2 * counts[:, 8]
    counts[:, 6] = rng.integers(0, 5, 50)
    energies = counts @ np.where(np.arange(MAX_Z + 1) == 8, -2081.0, -1000.0) + rng.normal(size=50)
    fit = NormalEquations.of(counts, energies).solve()
    values, rank = _lstsq(counts, energies)
    assert (fit.rank, fit.num_elements, rank) == (2, 3, 2)
    np.testing.assert_allclose(fit.values, values, atol=1e-6, rtol=0)


def test_a_single_structure_and_none_at_all_are_fits_too() -> None:
    counts = np.zeros((1, MAX_Z + 1))
    counts[0, [1, 8]] = 2, 1
    fit = NormalEquations.of(counts, np.array([-2081.0])).solve()
    assert fit.rank == 1
    assert fit.of(counts)[0] == pytest.approx(-2081.0, abs=1e-9)
    empty = NormalEquations().solve()
    assert isinstance(empty, EnergyReference)
    assert (empty.rank, empty.num_elements, empty.count, empty.residual_std) == (0, 0, 0, 0.0)
    assert not empty.values.any()


@pytest.mark.parametrize("energy", [np.nan, np.inf, -2e9])
def test_energies_that_no_sum_survives_are_refused(energy: float) -> None:
    with pytest.raises(DataError, match="not finite or beyond"):
        NormalEquations.of(np.ones((1, MAX_Z + 1)), np.array([energy]))
