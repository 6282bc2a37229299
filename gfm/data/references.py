"""Linear energy references: the part of the energy that composition alone explains, from mergeable sums.

Total energies reach 5e4 eV while what a model learns is meV, so the sums of the normal equations are kept
**exactly**: compositions are integers, energies become integers of 2**-32 eV (2e-10 eV). Exact sums merge to
the same bits in any order, and the solution is refined against exact residuals, so forming normal equations
costs no precision (their condition number is the square of the problem's).

Source: iterative refinement, doi:10.1137/1.9780898718027 (chapter 12).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import DataError

__all__ = ["MAX_Z", "EnergyReference", "NormalEquations", "compositions"]

MAX_Z = 118
_QUANTUM = 2.0**-32  # eV
_LIMB = 31
_CHUNK = 1 << 14
# Eigenvalues of the scaled Gram matrix below this share of the largest are rounding, not information.
_RANK_TOLERANCE = 1e-12


def compositions(batch: RaggedBatch) -> NDArray[np.float64]:
    """Return how many atoms of each atomic number each structure has (G, MAX_Z + 1).

    Raises:
        DataError: An atomic number is above `MAX_Z`.
    """
    numbers = batch.columns["numbers"]
    if len(numbers) and numbers.max() > MAX_Z:
        raise DataError(f"atomic number {int(numbers.max())}: there is no such element")
    rows = np.repeat(np.arange(len(batch)), batch.num_atoms)
    flat = np.bincount(rows * (MAX_Z + 1) + numbers, minlength=len(batch) * (MAX_Z + 1))
    return flat.reshape(len(batch), MAX_Z + 1).astype(np.float64)


@dataclass(frozen=True)
class EnergyReference:
    """A reference energy per element, fitted by least squares, and how well that was determined.

    Attributes:
        values: Energy per atom by atomic number (MAX_Z + 1,), eV; 0 for unseen elements.
        seen: Elements the fit knew (MAX_Z + 1,).
        rank: Rank of the compositions fitted; below ``num_elements`` the single values are not determined (the
            minimum-norm ones are given), their sums over compositions like the fitted ones are.
        num_elements: Number of elements seen.
        residual_std: Root mean square of what composition does not explain, eV/atom; structures weigh by their
            squared number of atoms, as they do in the fit.
        count: Number of structures fitted.
    """

    values: NDArray[np.float64]
    seen: NDArray[np.bool_]
    rank: int
    num_elements: int
    residual_std: float
    count: int

    def of(self, compositions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the reference energy of compositions (G, MAX_Z + 1): (G,) eV."""
        return np.asarray(compositions, dtype=np.float64) @ self.values


class NormalEquations:
    """The sums that a least-squares fit of energy on composition needs, exact.

    Attributes:
        gram: Sum of products of counts (MAX_Z + 1, MAX_Z + 1) int64.
        moment: Sum of count times energy by atomic number, integers of 2**-32 eV.
        square: Sum of squared energies, integer of 2**-64 eV^2.
        count: Number of structures.
    """

    __slots__ = ("count", "gram", "moment", "square")

    def __init__(
        self,
        gram: NDArray[np.int64] | None = None,
        moment: list[int] | None = None,
        square: int = 0,
        count: int = 0,
    ) -> None:
        """Take sums as they are; without any, those of no structures."""
        self.gram = np.zeros((MAX_Z + 1, MAX_Z + 1), dtype=np.int64) if gram is None else gram
        self.moment = [0] * (MAX_Z + 1) if moment is None else moment
        self.square = square
        self.count = count

    @classmethod
    def of(cls, compositions: NDArray[np.floating], energies: NDArray[np.float64]) -> "NormalEquations":
        """Sum over structures.

        Args:
            compositions: Atoms of each atomic number (G, MAX_Z + 1).
            energies: Total energies (G,), eV.

        Raises:
            DataError: An energy is not finite or beyond 2**30 eV, or the shapes do not fit.
        """
        energies = np.asarray(energies, dtype=np.float64)
        if compositions.shape != (len(energies), MAX_Z + 1):
            raise DataError(f"compositions {compositions.shape} do not fit {len(energies)} energies")
        if not (np.abs(energies) < 2.0**30).all():
            raise DataError("an energy is not finite or beyond 1e9 eV; filter such structures first")
        gram = np.zeros((MAX_Z + 1, MAX_Z + 1), dtype=np.int64)
        moment = [0] * (MAX_Z + 1)
        quanta = np.rint(energies / _QUANTUM).astype(np.int64)
        elements = np.flatnonzero(compositions.any(axis=0))
        for start in range(0, len(quanta), _CHUNK):
            part = slice(start, start + _CHUNK)
            # Products of integers in float64 are exact far below 2**53, in whatever order BLAS adds them.
            counts = np.ascontiguousarray(compositions[part][:, elements], dtype=np.float64)
            gram[np.ix_(elements, elements)] += (counts.T @ counts).astype(np.int64)
            # Two limbs keep the sums inside int64.
            low, high = quanta[part] & ((1 << _LIMB) - 1), quanta[part] >> _LIMB
            columns = counts.T.astype(np.int64)
            lows, highs = (columns * low).sum(axis=1).tolist(), (columns * high).sum(axis=1).tolist()
            for z, low_sum, high_sum in zip(elements.tolist(), lows, highs, strict=True):
                moment[z] += (high_sum << _LIMB) + low_sum
        return cls(gram, moment, sum(q * q for q in quanta.tolist()), len(quanta))

    def merge(self, other: "NormalEquations") -> "NormalEquations":
        """Return the sums over both sets of structures; exact, so any order gives the same."""
        moment = [a + b for a, b in zip(self.moment, other.moment, strict=True)]
        return NormalEquations(
            self.gram + other.gram, moment, self.square + other.square, self.count + other.count
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values of the elements seen; integers beyond 64 bits as text."""
        seen = np.flatnonzero(np.diag(self.gram))
        return {
            "elements": seen.tolist(),
            "gram": self.gram[np.ix_(seen, seen)].tolist(),
            "moment": [str(self.moment[z]) for z in seen],
            "square": str(self.square),
            "count": self.count,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        result = cls(square=int(data["square"]), count=data["count"])
        seen = np.array(data["elements"], dtype=np.int64)
        if len(seen):
            result.gram[np.ix_(seen, seen)] = np.array(data["gram"], dtype=np.int64)
        for z, moment in zip(data["elements"], data["moment"], strict=True):
            result.moment[z] = int(moment)
        return result

    def solve(self) -> EnergyReference:
        """Fit the reference energies: least squares, of minimum norm where the rank is deficient."""
        seen = np.diag(self.gram) > 0
        elements = np.flatnonzero(seen)
        values = np.zeros(MAX_Z + 1)
        if not len(elements):
            return EnergyReference(values, seen, 0, 0, 0.0, self.count)
        gram = self.gram[np.ix_(elements, elements)]
        moment = [Fraction(self.moment[z], 1 << 32) for z in elements]
        # Unit diagonal: a rare element weighs no less in the judgement of rank than a common one.
        scale = 1.0 / np.sqrt(np.diag(gram).astype(np.float64))
        eigenvalues, vectors = np.linalg.eigh(gram * np.outer(scale, scale))
        kept = eigenvalues > _RANK_TOLERANCE * eigenvalues[-1]
        inverse = (vectors[:, kept] / eigenvalues[kept]) @ vectors[:, kept].T
        solution = np.zeros(len(elements))
        for _ in range(4):
            residual = _residual(gram, solution, moment)
            solution += scale * (inverse @ (scale * residual))
        if not kept.all():
            null_space, _ = np.linalg.qr(scale[:, None] * vectors[:, ~kept])
            solution -= null_space @ (null_space.T @ solution)
        values[elements] = solution
        # sum r^2 = y.y - x.(A'y) - x.(A'y - A'A x), without rounding; divided by sum n^2.
        exact = [Fraction(value) for value in solution.tolist()]
        gap = _exact_residual(gram, exact, moment)
        squares = Fraction(self.square, 1 << 64) - sum(
            (x * (b + r) for x, b, r in zip(exact, moment, gap, strict=True)), Fraction(0)
        )
        residual_std = float(np.sqrt(max(0.0, float(squares / int(gram.sum())))))
        return EnergyReference(values, seen, int(kept.sum()), len(elements), residual_std, self.count)


def _residual(
    gram: NDArray[np.int64], solution: NDArray[np.float64], moment: list[Fraction]
) -> NDArray[np.float64]:
    exact = [Fraction(value) for value in solution.tolist()]
    return np.array([float(value) for value in _exact_residual(gram, exact, moment)])


def _exact_residual(
    gram: NDArray[np.int64], solution: list[Fraction], moment: list[Fraction]
) -> list[Fraction]:
    """Return ``moment - gram @ solution`` without rounding."""
    return [
        b - sum((count * x for count, x in zip(row, solution, strict=True) if count), Fraction(0))
        for row, b in zip(gram.tolist(), moment, strict=True)
    ]
