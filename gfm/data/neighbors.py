"""Periodic neighbour lists: every pair of atoms closer than the cutoff, in both directions, sorted by target.

Pairs are found once (a half list) in a frame whose first axes span the periodic lattice vectors, so the cell is
a triangular matrix: along each vector the images that can lie inside the cutoff sphere are an interval that is
computed, not searched. Nothing is assumed of the cell: it may be skewed, smaller than the cutoff, periodic in
some directions only, and atoms may lie outside of it. Small structures are searched pair by pair, large ones
in bins. The kernels release the GIL, so a prefetch thread builds graphs beside the training step.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gfm.errors import ConfigError, DataError

__all__ = ["EdgeList", "count_edges", "count_pairs", "edge_vectors", "neighbor_edges"]

BINNED_FROM = 300  # atoms; above this number bins are faster than all pairs
SHELL = 1e-3  # angstrom; neighbours whose distances differ by less form one shell, which the cap does not split
FLATTEST = 1e-2  # angstrom; the least height of a periodic cell
_FLAT_CELL, _NOT_FINITE = 1, 2


@dataclass(frozen=True)
class EdgeList:
    """The directed edges of G structures with N atoms in all.

    The vector of edge e, from the target atom to its neighbour, is
    ``positions[sources[e]] + shifts[e] @ cell - positions[targets[e]]``.

    Attributes:
        sources: Index of the neighbour (E,) int64, counted over all structures.
        targets: Index of the atom whose neighbour it is (E,) int64, ascending; sources ascend within.
        shifts: Lattice multiples (E, 3) int32.
        offsets: Row pointer (G + 1,) int64: edges of structure i are ``offsets[i]:offsets[i + 1]``.
    """

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    shifts: NDArray[np.int32]
    offsets: NDArray[np.int64]


def neighbor_edges(
    positions: ArrayLike,
    cells: ArrayLike,
    pbc: ArrayLike,
    offsets: ArrayLike,
    cutoff: float,
    max_neighbors: int | None = None,
) -> EdgeList:
    """Find all edges shorter than a cutoff.

    Args:
        positions: Cartesian positions (N, 3), angstrom.
        cells: Lattice vectors as rows (G, 3, 3), angstrom; vectors that are not periodic are not looked at.
        pbc: Periodic along each lattice vector (G, 3).
        offsets: Row pointer (G + 1,): atoms of structure i are ``offsets[i]:offsets[i + 1]``.
        cutoff: Largest distance, angstrom.
        max_neighbors: Keep an edge only if each of its atoms is among the nearest this many of the other. The
            list stays symmetric, and a shell of equally distant neighbours is kept or dropped as a whole: the
            result depends neither on orientation nor on the order of atoms; an atom can therefore keep more.

    Raises:
        ConfigError: The cutoff or the cap is not positive.
        DataError: A periodic cell is flat, or a position is not finite.
    """
    points, vectors, periodic, pointer = _checked(positions, cells, pbc, offsets, cutoff)
    if max_neighbors is not None and max_neighbors < 1:
        raise ConfigError(f"max_neighbors is {max_neighbors}, expected at least 1, or null for no cap")
    sources, targets, shifts, edge_offsets, _, bad, code = _all_edges(
        points, vectors, periodic, pointer, float(cutoff), max_neighbors or 0, True
    )
    _raise_for(bad, code)
    return EdgeList(sources, targets, shifts, edge_offsets)


def count_edges(
    positions: ArrayLike, cells: ArrayLike, pbc: ArrayLike, offsets: ArrayLike, cutoff: float
) -> NDArray[np.int64]:
    """Count the edges of each structure (G,) without keeping them; arguments and errors of `neighbor_edges`."""
    return count_pairs(positions, cells, pbc, offsets, cutoff)[0]


def count_pairs(
    positions: ArrayLike, cells: ArrayLike, pbc: ArrayLike, offsets: ArrayLike, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count the edges of each structure (G,) and find its shortest distance (G,), angstrom, in one search.

    The distance is infinite where no two atoms are closer than the cutoff; arguments and errors of
    `neighbor_edges`.
    """
    points, vectors, periodic, pointer = _checked(positions, cells, pbc, offsets, cutoff)
    *_, edge_offsets, shortest, bad, code = _all_edges(
        points, vectors, periodic, pointer, float(cutoff), 0, False
    )
    _raise_for(bad, code)
    return np.diff(edge_offsets), np.sqrt(shortest)


def edge_vectors(edges: EdgeList, positions: ArrayLike, cells: ArrayLike) -> NDArray[np.float64]:
    """Return the vectors (E, 3) from each target to its neighbour, angstrom; arguments of `neighbor_edges`."""
    vectors: NDArray[np.float64] = _all_vectors(
        edges.sources,
        edges.targets,
        edges.shifts,
        edges.offsets,
        np.ascontiguousarray(positions, dtype=np.float64),
        np.ascontiguousarray(cells, dtype=np.float64),
    )
    return vectors


def _checked(
    positions: ArrayLike, cells: ArrayLike, pbc: ArrayLike, offsets: ArrayLike, cutoff: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Cast to what the kernels are compiled for, and check shapes."""
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ConfigError(f"the cutoff is {cutoff} angstrom, expected a positive number")
    pointer = np.ascontiguousarray(offsets, dtype=np.int64)
    num = len(pointer) - 1
    points = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    vectors = np.ascontiguousarray(cells, dtype=np.float64)
    periodic = np.ascontiguousarray(pbc, dtype=np.bool_)
    if num < 0 or pointer[0] != 0 or len(points) != pointer[-1] or (np.diff(pointer) < 0).any():
        raise DataError(f"{len(points)} positions do not fit the row pointer of {num} structures")
    if vectors.shape != (num, 3, 3) or periodic.shape != (num, 3):
        raise DataError(f"cells {vectors.shape} and pbc {periodic.shape} do not fit {num} structures")
    return points, vectors, periodic, pointer


def _raise_for(structure: int, code: int) -> None:
    if code == _FLAT_CELL:
        raise DataError(
            f"structure {structure} of the batch has a periodic cell lower than {FLATTEST} angstrom (or a zero "
            "lattice vector along a periodic direction); correct its cell or its pbc"
        )
    if code == _NOT_FINITE:
        raise DataError(f"structure {structure} of the batch has a position or cell that is not finite")


@numba.njit(nogil=True, cache=True)
def _frame(cell, periodic):  # type: ignore[no-untyped-def]
    """Return axes (3, 3; rows), triangular cell (3, 3), order of lattice vectors (3,), how many are periodic.

    The first m axes span the m periodic vectors, one more with each; in this frame row a of the triangular cell
    (the periodic vector ``order[a]``) has components along axes 0..a only. Rows from m on are zero. m is -1
    where the periodic vectors are (nearly) dependent.
    """
    axes = np.zeros((3, 3))
    triangular = np.zeros((3, 3))
    order = np.zeros(3, dtype=np.int64)
    m = 0
    for k in range(3):
        if periodic[k]:
            order[m] = k
            m += 1
    rest = m
    for k in range(3):
        if not periodic[k]:
            order[rest] = k
            rest += 1
    for a in range(3):
        if a < m:
            for c in range(3):
                axes[a, c] = cell[order[a], c]
        else:  # complete by the Cartesian axis least covered so far
            best = 0
            least = 2.0
            for c in range(3):
                covered = 0.0
                for b in range(a):
                    covered += axes[b, c] ** 2
                if covered < least - 1e-9:
                    best, least = c, covered
            axes[a, best] = 1.0
        for _ in range(2):  # twice: Gram-Schmidt loses orthogonality in skewed cells
            for b in range(a):
                overlap = 0.0
                for c in range(3):
                    overlap += axes[a, c] * axes[b, c]
                for c in range(3):
                    axes[a, c] -= overlap * axes[b, c]
        norm = np.sqrt(axes[a, 0] ** 2 + axes[a, 1] ** 2 + axes[a, 2] ** 2)
        if a < m and not norm > FLATTEST:
            return axes, triangular, order, -1
        for c in range(3):
            axes[a, c] /= norm
    for a in range(m):
        for b in range(a + 1):
            for c in range(3):
                triangular[a, b] += cell[order[a], c] * axes[b, c]
    return axes, triangular, order, m


@numba.njit(nogil=True, cache=True)
def _grown(pairs, squares):  # type: ignore[no-untyped-def]
    """Return the buffers with twice the room."""
    more_pairs = np.empty((2 * len(pairs), 5), dtype=np.int32)
    more_squares = np.empty(2 * len(squares))
    for k in range(len(pairs)):  # loops, here and below: assigning slices takes seconds to compile
        more_squares[k] = squares[k]
        for a in range(5):
            more_pairs[k, a] = pairs[k, a]
    return more_pairs, more_squares


@numba.njit(nogil=True, cache=True)
def _pair_by_pair(points, triangular, order, m, cutoff, pairs, squares, count):  # type: ignore[no-untyped-def]
    """Append the half list of one structure: (i, j >= i, shift of j) with the squared distance; any cell."""
    limit = cutoff * cutoff
    tiny = 1e-9 * cutoff
    # Products are several times faster than quotients; what they round off is covered by ``tiny``.
    per_c = 1.0 / triangular[2, 2] if m > 2 else 0.0
    per_b = 1.0 / triangular[1, 1] if m > 1 else 0.0
    per_a = 1.0 / triangular[0, 0] if m > 0 else 0.0
    low, high = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for i in range(len(points)):
        for j in range(i, len(points)):
            dx = points[j, 0] - points[i, 0]
            dy = points[j, 1] - points[i, 1]
            dz = points[j, 2] - points[i, 2]
            low[2] = high[2] = 0
            if m > 2:
                low[2] = int(np.ceil((-cutoff - tiny - dz) * per_c))
                high[2] = int(np.floor((cutoff + tiny - dz) * per_c))
            elif abs(dz) > cutoff:
                continue
            for c in range(low[2], high[2] + 1):
                z = dz + c * triangular[2, 2]
                left = limit - z * z
                if left < -tiny:
                    continue
                reach = np.sqrt(max(left, 0.0)) + tiny
                y0 = dy + c * triangular[2, 1]
                low[1] = high[1] = 0
                if m > 1:
                    low[1] = int(np.ceil((-reach - y0) * per_b))
                    high[1] = int(np.floor((reach - y0) * per_b))
                elif abs(y0) > reach:
                    continue
                for b in range(low[1], high[1] + 1):
                    y = y0 + b * triangular[1, 1]
                    left = limit - z * z - y * y
                    if left < -tiny:
                        continue
                    reach_x = np.sqrt(max(left, 0.0)) + tiny
                    x0 = dx + c * triangular[2, 0] + b * triangular[1, 0]
                    low[0] = high[0] = 0
                    if m > 0:
                        low[0] = int(np.ceil((-reach_x - x0) * per_a))
                        high[0] = int(np.floor((reach_x - x0) * per_a))
                    for a in range(low[0], high[0] + 1):
                        if i == j and (c < 0 or (c == 0 and (b < 0 or (b == 0 and a <= 0)))):
                            continue
                        x = x0 + a * triangular[0, 0]
                        square = x * x + y * y + z * z
                        if square < limit:
                            if count == len(pairs):
                                pairs, squares = _grown(pairs, squares)
                            pairs[count, 0] = i
                            pairs[count, 1] = j
                            pairs[count, 2 + order[0]] = a
                            pairs[count, 2 + order[1]] = b
                            pairs[count, 2 + order[2]] = c
                            squares[count] = square
                            count += 1
    return pairs, squares, count


@numba.njit(nogil=True, cache=True)
def _by_bins(points, fractions, triangular, order, m, cutoff, pairs, squares, count):  # type: ignore[no-untyped-def]
    """Append the same half list as `_pair_by_pair`, in the same order up to images; time linear in atoms."""
    num = len(points)
    limit = cutoff * cutoff
    inverse = np.zeros((3, 3))
    for a in range(3):
        inverse[a, a] = 1.0 / triangular[a, a] if a < m else 1.0
        for b in range(a - 1, -1, -1):
            for c in range(b + 1, a + 1):
                inverse[a, b] -= inverse[a, c] * triangular[c, b]
            inverse[a, b] *= inverse[b, b]
    start, bins, reach = np.zeros(3), np.ones(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    width = np.ones(3)
    most_bins = 4 * (int(np.ceil(num ** (1.0 / 3.0))) + 1)
    for a in range(3):
        height = 1.0 / np.sqrt(
            inverse[0, a] ** 2 + inverse[1, a] ** 2 + inverse[2, a] ** 2
        )  # of the unit of this coordinate
        extent = 1.0
        if a >= m:
            least, most = fractions[0, a], fractions[0, a]
            for i in range(1, num):
                least, most = min(least, fractions[i, a]), max(most, fractions[i, a])
            start[a] = least
            extent = max(most - least, 1e-3) * (1.0 + 1e-9)
        bins[a] = max(1, min(int(extent * height / (cutoff * (1.0 + 1e-9))), most_bins))
        width[a] = extent / bins[a]
        reach[a] = int(np.ceil(cutoff * (1.0 + 1e-9) / (width[a] * height)))
        if a >= m:
            reach[a] = min(reach[a], bins[a] - 1)
    where = np.empty((num, 3), dtype=np.int64)
    first = np.zeros(bins[0] * bins[1] * bins[2] + 1, dtype=np.int64)
    for i in range(num):
        for a in range(3):
            where[i, a] = min(max(int((fractions[i, a] - start[a]) / width[a]), 0), bins[a] - 1)
        first[(where[i, 0] * bins[1] + where[i, 1]) * bins[2] + where[i, 2] + 1] += 1
    for k in range(1, len(first)):
        first[k] += first[k - 1]
    members = np.empty(num, dtype=np.int64)
    filled = first[:-1].copy()
    for i in range(num):
        k = (where[i, 0] * bins[1] + where[i, 1]) * bins[2] + where[i, 2]
        members[filled[k]] = i
        filled[k] += 1
    keys = np.empty(64, dtype=np.int64)
    image, bin_ = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for i in range(num):
        found = 0
        for o0 in range(-reach[0], reach[0] + 1):
            for o1 in range(-reach[1], reach[1] + 1):
                for o2 in range(-reach[2], reach[2] + 1):
                    outside = False
                    for a in range(3):
                        offset = o0 if a == 0 else (o1 if a == 1 else o2)
                        place = where[i, a] + offset
                        image[a] = place // bins[a]
                        bin_[a] = place - image[a] * bins[a]
                        if a >= m and image[a] != 0:
                            outside = True
                    if outside:
                        continue
                    same_or_before = image[2] < 0 or (
                        image[2] == 0 and (image[1] < 0 or (image[1] == 0 and image[0] <= 0))
                    )
                    sx = image[0] * triangular[0, 0] + image[1] * triangular[1, 0] + image[2] * triangular[2, 0]
                    sy = image[1] * triangular[1, 1] + image[2] * triangular[2, 1]
                    sz = image[2] * triangular[2, 2]
                    k = (bin_[0] * bins[1] + bin_[1]) * bins[2] + bin_[2]
                    for slot in range(first[k], first[k + 1]):
                        j = members[slot]
                        if j < i or (j == i and same_or_before):
                            continue
                        x = points[j, 0] + sx - points[i, 0]
                        y = points[j, 1] + sy - points[i, 1]
                        z = points[j, 2] + sz - points[i, 2]
                        if x * x + y * y + z * z < limit:
                            if found == len(keys):
                                more = np.empty(2 * found, dtype=np.int64)
                                for old in range(found):
                                    more[old] = keys[old]
                                keys = more
                            keys[found] = (
                                (j << 36)
                                | ((image[2] + 2048) << 24)
                                | ((image[1] + 2048) << 12)
                                | (image[0] + 2048)
                            )
                            found += 1
        ordered = np.sort(keys[:found])
        for key in ordered:
            if count == len(pairs):
                pairs, squares = _grown(pairs, squares)
            j = key >> 36
            c, b, a = ((key >> 24) & 4095) - 2048, ((key >> 12) & 4095) - 2048, (key & 4095) - 2048
            x = points[j, 0] - points[i, 0] + a * triangular[0, 0] + b * triangular[1, 0] + c * triangular[2, 0]
            y = points[j, 1] - points[i, 1] + b * triangular[1, 1] + c * triangular[2, 1]
            z = points[j, 2] - points[i, 2] + c * triangular[2, 2]
            pairs[count, 0] = i
            pairs[count, 1] = j
            pairs[count, 2 + order[0]] = a
            pairs[count, 2 + order[1]] = b
            pairs[count, 2 + order[2]] = c
            squares[count] = x * x + y * y + z * z
            count += 1
    return pairs, squares, count


@numba.njit(nogil=True, cache=True)
def _wrapped(positions, axes, triangular, order, m):  # type: ignore[no-untyped-def]
    """Return points in the frame (N, 3), their fractions (N, 3), and the lattice vectors taken off (N, 3).

    Fractions of periodic vectors are in [0, 1); the other columns are lengths along their axes.
    """
    num = len(positions)
    points, fractions = np.empty((num, 3)), np.empty((num, 3))
    wraps = np.zeros((num, 3), dtype=np.int64)
    for i in range(num):
        for a in range(3):
            points[i, a] = (
                positions[i, 0] * axes[a, 0] + positions[i, 1] * axes[a, 1] + positions[i, 2] * axes[a, 2]
            )
            fractions[i, a] = points[i, a]
        for a in range(m - 1, -1, -1):
            fractions[i, a] /= triangular[a, a]
            for b in range(a):
                fractions[i, b] -= fractions[i, a] * triangular[a, b]
        for a in range(m):
            turns = np.floor(fractions[i, a])
            fractions[i, a] -= turns
            wraps[i, order[a]] = int(turns)
            for b in range(a + 1):
                points[i, b] -= turns * triangular[a, b]
    return points, fractions, wraps


@numba.njit(nogil=True, cache=True)
def _half_list(positions, cell, periodic, cutoff, pairs, squares, count):  # type: ignore[no-untyped-def]
    """Append the half list of one structure, atoms counted from 0; the last value returned is an error code."""
    for i in range(len(positions)):
        if not np.isfinite(positions[i, 0] + positions[i, 1] + positions[i, 2]):
            return pairs, squares, count, _NOT_FINITE
    axes, triangular, order, m = _frame(cell, periodic)
    if m < 0:
        return pairs, squares, count, _FLAT_CELL
    points, fractions, wraps = _wrapped(positions, axes, triangular, order, m)
    before = count
    if len(positions) > BINNED_FROM:
        pairs, squares, count = _by_bins(points, fractions, triangular, order, m, cutoff, pairs, squares, count)
    else:
        pairs, squares, count = _pair_by_pair(points, triangular, order, m, cutoff, pairs, squares, count)
    for k in range(before, count):
        i, j = pairs[k, 0], pairs[k, 1]
        for a in range(3):
            pairs[k, 2 + a] += wraps[i, a] - wraps[j, a]
    return pairs, squares, count, 0


@numba.njit(nogil=True, cache=True)
def _capped(num, pairs, squares, before, count, cap):  # type: ignore[no-untyped-def]
    """Keep the pairs from ``before`` on that lie inside the nearest shells of both of their atoms."""
    first = np.zeros(num + 1, dtype=np.int64)
    for k in range(before, count):
        first[pairs[k, 0] + 1] += 1
        first[pairs[k, 1] + 1] += 1
    for i in range(num):
        first[i + 1] += first[i]
    filled = first[:-1].copy()
    distances = np.empty(first[num])
    for k in range(before, count):
        for end in range(2):
            i = pairs[k, end]
            distances[filled[i]] = squares[k]
            filled[i] += 1
    limits = np.full(num, np.inf)
    for i in range(num):
        if first[i + 1] - first[i] > cap:
            nearest = np.sort(distances[first[i] : first[i + 1]])
            limits[i] = (np.sqrt(nearest[cap - 1]) + SHELL) ** 2
    kept = before
    for k in range(before, count):
        if squares[k] <= limits[pairs[k, 0]] and squares[k] <= limits[pairs[k, 1]]:
            for a in range(5):
                pairs[kept, a] = pairs[k, a]
            squares[kept] = squares[k]
            kept += 1
    return kept


@numba.njit(nogil=True, cache=True)
def _all_edges(positions, cells, pbc, offsets, cutoff, cap, keep):  # type: ignore[no-untyped-def]
    """Return sources, targets, shifts, row pointer, squares of shortest distances (G,), and an error.

    The error is the number of a structure and a code, 0 for none. Without ``keep`` edges are only counted, and
    the first three are empty.
    """
    num_structures = len(offsets) - 1
    pairs, squares = (
        np.empty((1024 + 32 * len(positions), 5), dtype=np.int32),
        np.empty(1024 + 32 * len(positions)),
    )
    edge_offsets = np.zeros(num_structures + 1, dtype=np.int64)
    shortest = np.full(num_structures, np.inf)
    degrees = np.zeros(len(positions) + 1, dtype=np.int64)
    count, bad, code = 0, 0, 0
    for g in range(num_structures):
        start, stop = offsets[g], offsets[g + 1]
        before = count
        pairs, squares, count, code = _half_list(
            positions[start:stop], cells[g], pbc[g], cutoff, pairs, squares, count
        )
        if code != 0:
            bad, count = g, 0
            break
        for k in range(before, count):
            shortest[g] = min(shortest[g], squares[k])
        if cap > 0:
            count = _capped(stop - start, pairs, squares, before, count, cap)
        edge_offsets[g + 1] = edge_offsets[g] + 2 * (count - before)
        if not keep:
            count = 0
        for k in range(before, count):
            pairs[k, 0] += start
            pairs[k, 1] += start
            degrees[pairs[k, 0] + 1] += 1
            degrees[pairs[k, 1] + 1] += 1
    for i in range(len(positions)):
        degrees[i + 1] += degrees[i]
    sources = np.empty(2 * count, dtype=np.int64)
    targets = np.empty(2 * count, dtype=np.int64)
    shifts = np.empty((2 * count, 3), dtype=np.int32)
    for k in range(count):
        i, j = pairs[k, 0], pairs[k, 1]
        e = degrees[i]
        degrees[i] += 1
        targets[e], sources[e] = i, j
        back = degrees[j]
        degrees[j] += 1
        targets[back], sources[back] = j, i
        for a in range(3):
            shifts[e, a] = pairs[k, 2 + a]
            shifts[back, a] = -pairs[k, 2 + a]
    return sources, targets, shifts, edge_offsets, shortest, bad, code


@numba.njit(nogil=True, cache=True)
def _all_vectors(sources, targets, shifts, offsets, positions, cells):  # type: ignore[no-untyped-def]
    """Return ``positions[sources] + shifts @ cell - positions[targets]`` (E, 3)."""
    vectors = np.empty((len(sources), 3))
    for g in range(len(offsets) - 1):
        for e in range(offsets[g], offsets[g + 1]):
            for c in range(3):
                moved = 0.0
                for a in range(3):
                    if shifts[e, a] != 0:
                        moved += shifts[e, a] * cells[g, a, c]
                vectors[e, c] = positions[sources[e], c] - positions[targets[e], c] + moved
    return vectors
