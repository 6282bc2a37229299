"""Neighbour lists against vesin and exhaustion for every kind of cell; what their order and cap promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vesin import NeighborList

import gfm.data.neighbors as module
from gfm.data.neighbors import EdgeList, count_edges, neighbor_edges
from gfm.errors import ConfigError, DataError


def edges_of(positions, cell, pbc, cutoff, cap=None) -> EdgeList:
    offsets = np.array([0, len(positions)])
    return neighbor_edges(positions, np.asarray(cell)[None], np.asarray(pbc)[None], offsets, cutoff, cap)


def as_set(edges: EdgeList) -> set[tuple[int, ...]]:
    rows = np.column_stack([edges.targets, edges.sources, edges.shifts])
    assert len(np.unique(rows, axis=0)) == len(rows)
    return set(map(tuple, rows.tolist()))


def lengths(edges: EdgeList, positions, cell) -> NDArray[np.float64]:
    vectors = positions[edges.sources] + edges.shifts @ np.asarray(cell) - positions[edges.targets]
    return np.linalg.norm(vectors, axis=1)


def by_exhaustion(positions, cell, pbc, cutoff) -> set[tuple[int, ...]]:
    """Try every image in a box that is surely large enough."""
    cell = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    ranges = []
    for k in range(3):
        others = [v for i, v in enumerate(cell) if i != k and pbc[i]]
        vector = cell[k].copy()
        if others:
            basis = np.linalg.qr(np.array(others).T)[0]
            vector -= basis @ (basis.T @ vector)
        dual = vector / (vector @ vector) if pbc[k] else np.zeros(3)
        n = int(np.ceil(np.ptp(positions @ dual) + cutoff * np.linalg.norm(dual)))
        ranges.append(range(-n, n + 1))
    images = np.array(np.meshgrid(*ranges, indexing="ij")).reshape(3, -1).T
    separation = positions[None] - positions[:, None]
    distances = np.linalg.norm(separation[None] + (images @ cell)[:, None, None], axis=-1)
    near = np.argwhere(distances < cutoff)
    rows = {(int(i), int(j), *map(int, images[k])) for k, i, j in near}
    return rows - {(i, i, 0, 0, 0) for i in range(len(positions))}


def random_cell(rng: np.random.Generator, size: float, skew: float) -> NDArray[np.float64]:
    return size * np.eye(3) + skew * size * np.tril(rng.uniform(-1, 1, (3, 3)), -1)


@pytest.mark.parametrize("binned", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num=st.integers(1, 5),
    size=st.floats(2.0, 7.0),
    skew=st.floats(0.0, 1.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    spread=st.sampled_from([1.0, 2.0]),
)
def test_every_pair_inside_the_cutoff_is_found_once(binned, seed, num, size, skew, pbc, spread):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, size, skew)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = cell[rng.permutation(3)] @ rotation
    positions = spread * (rng.random((num, 3)) - 0.5) @ cell  # half of them outside of the cell
    edges = run_with(binned, positions, cell, pbc, 2.6)
    assert as_set(edges) == by_exhaustion(positions, cell, pbc, 2.6)


def run_with(binned: bool, positions, cell, pbc, cutoff) -> EdgeList:
    """Run one of the two searches, whatever the number of atoms, through the compiled pieces of the module."""
    if not binned:
        return edges_of(positions, cell, pbc, cutoff)
    axes, triangular, order, m = module._frame(np.ascontiguousarray(cell), np.array(pbc))
    points, fractions, wraps = module._wrapped(positions, axes, triangular, order, m)
    pairs, _, count = module._by_bins(
        points, fractions, triangular, order, m, cutoff, np.empty((1, 5), dtype=np.int32), np.empty(1), 0
    )
    i, j, shifts = pairs[:count, 0], pairs[:count, 1], pairs[:count, 2:]
    shifts = shifts + wraps[i] - wraps[j]
    return EdgeList(np.r_[j, i], np.r_[i, j], np.r_[shifts, -shifts], np.array([0, 2 * count]))


@pytest.mark.parametrize("num", [1, 2, 41, 200, 700])
@pytest.mark.parametrize("periodic", [True, False])
def test_agrees_with_vesin(num, periodic):
    rng = np.random.default_rng(num)
    cell = random_cell(rng, (12.0 * num) ** (1 / 3) + 1.0, 0.4)
    positions = rng.random((num, 3)) @ cell
    edges = edges_of(positions, cell, [periodic] * 3, 5.0)
    i, j, shifts = NeighborList(cutoff=5.0, full_list=True).compute(
        points=positions, box=cell, periodic=periodic, quantities="ijS"
    )
    assert as_set(edges) == set(map(tuple, np.column_stack([i, j, shifts]).tolist()))
    assert (np.diff(edges.targets) >= 0).all()


def test_a_flat_sheet_without_a_cell_is_searched_in_bins():
    grid = np.stack(np.meshgrid(np.arange(25), np.arange(20)), -1).reshape(-1, 2)
    positions = np.column_stack([1.5 * grid, np.zeros(len(grid))])
    edges = edges_of(positions, np.zeros((3, 3)), [False] * 3, 1.6)
    assert len(edges.sources) == 2 * (25 * 19 + 24 * 20)


def test_slab_with_atoms_on_both_sides_and_no_third_vector():
    cell = np.array([[2.5, 0, 0], [1.25, 2.2, 0], [0, 0, 0]])
    positions = np.array([[0, 0, 0.0], [0, 0, 2.0], [40.0, -7.0, 30.0]])
    edges = edges_of(positions, cell, [True, True, False], 4.0)
    assert as_set(edges) == by_exhaustion(positions, cell, [True, True, False], 4.0)
    assert (edges.shifts[:, 2] == 0).all()
    assert 2 in edges.targets  # its own images


def test_a_molecule_needs_no_cell_and_a_lone_atom_has_no_edges():
    zero = np.zeros((2, 3, 3))
    edges = neighbor_edges(
        np.array([[0, 0, 0], [0, 0, 0.97], [5.0, 5, 5]]), zero, np.zeros((2, 3), bool), np.array([0, 2, 3]), 5.0
    )
    assert edges.sources.tolist() == [1, 0]
    assert edges.offsets.tolist() == [0, 2, 2]


def test_wrapping_changes_shifts_but_not_vectors():
    rng = np.random.default_rng(3)
    cell = random_cell(rng, 4.0, 0.5)
    positions = rng.random((5, 3)) @ cell
    moved = positions + rng.integers(-3, 4, (5, 3)) @ cell
    before, after = (edges_of(p, cell, [True] * 3, 5.0) for p in (positions, moved))
    assert len(before.sources) == len(after.sources)
    np.testing.assert_allclose(
        np.sort(lengths(before, positions, cell)), np.sort(lengths(after, moved, cell)), atol=1e-9
    )


def test_a_batch_is_its_structures_one_after_the_other_and_counts_agree():
    rng = np.random.default_rng(4)
    sizes = [3, 1, 0, 350, 12]
    cells = np.array([random_cell(rng, 3.0 + n ** (1 / 3) * 2, 0.3) for n in sizes])
    parts = [rng.random((n, 3)) @ cell for n, cell in zip(sizes, cells, strict=True)]
    pbc = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]], dtype=bool)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    batch = neighbor_edges(np.concatenate(parts), cells, pbc, offsets, 4.5)
    for g, part in enumerate(parts):
        alone = edges_of(part, cells[g], pbc[g], 4.5)
        rows = slice(batch.offsets[g], batch.offsets[g + 1])
        np.testing.assert_array_equal(batch.sources[rows] - offsets[g], alone.sources)
        np.testing.assert_array_equal(batch.targets[rows] - offsets[g], alone.targets)
        np.testing.assert_array_equal(batch.shifts[rows], alone.shifts)
    counted = count_edges(np.concatenate(parts), cells, pbc, offsets, 4.5)
    np.testing.assert_array_equal(counted, np.diff(batch.offsets))


@pytest.mark.parametrize("cap", [1, 6, 20])
def test_the_cap_is_symmetric_keeps_the_nearest_and_ignores_the_order_of_atoms(cap):
    rng = np.random.default_rng(5)
    cell = random_cell(rng, 7.0, 0.4)
    positions = rng.random((30, 3)) @ cell
    edges = edges_of(positions, cell, [True] * 3, 5.0, cap)
    rows = as_set(edges)
    assert all((j, i, -a, -b, -c) in rows for i, j, a, b, c in rows)
    assert np.bincount(edges.targets).max() <= cap
    full = edges_of(positions, cell, [True] * 3, 5.0)
    distances = lengths(full, positions, cell)
    farthest = np.array([np.sort(distances[full.targets == i])[cap - 1] for i in range(30)]) + 1e-6
    both = (distances <= farthest[full.targets]) & (distances <= farthest[full.sources])
    assert both.sum() == len(edges.sources)
    permutation = rng.permutation(30)
    again = edges_of(positions[permutation], cell, [True] * 3, 5.0, cap)
    renamed = {(int(permutation[i]), int(permutation[j]), a, b, c) for i, j, a, b, c in as_set(again)}
    assert renamed == rows


def test_the_cap_does_not_split_a_shell():
    cell = np.full((3, 3), 1.8) - 1.8 * np.eye(3)  # face-centred cubic: 12 nearest neighbours at 2.55 angstrom
    edges = edges_of(np.zeros((1, 3)), cell, [True] * 3, 5.0, 5)
    assert len(edges.sources) == 12


def test_what_cannot_be_a_structure_is_refused_by_name():
    positions, pbc = np.zeros((2, 3)), [True, True, True]
    flat = np.array([[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 0]])
    with pytest.raises(DataError, match=r"structure 0 .* lower than"):
        edges_of(positions, flat, pbc, 5.0)
    with pytest.raises(DataError, match="not finite"):
        edges_of(np.full((1, 3), np.nan), np.eye(3) * 9, pbc, 5.0)
    with pytest.raises(DataError, match="row pointer"):
        neighbor_edges(positions, flat[None], [pbc], np.array([0, 3]), 5.0)
    with pytest.raises(ConfigError, match="cutoff"):
        edges_of(positions, np.eye(3) * 9, pbc, 0.0)
    with pytest.raises(ConfigError, match="max_neighbors"):
        edges_of(positions, np.eye(3) * 9, pbc, 5.0, 0)
