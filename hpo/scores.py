"""How good predictions with a Gaussian sigma are, from sums that merge: no prediction need stay in memory.

Every score follows from `ScoreSums`, made for one shard and added up in the order of the shards. Exact: MAE,
RMSE, NLL, CRPS, coverage, sharpness and the calibration curve. From logarithmic bins: ENCE (sigma known to
2 %) and the rank correlation (both ranks to 9 %, ties as mean ranks).

Source: NLL and CRPS, Gneiting & Raftery 2007, doi:10.1198/016214506000001437; calibration curve, Kuleshov et
al. 2018, arXiv:1807.00263; ENCE, Levi et al. 2022, doi:10.3390/s22155540.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.loggrid import LogGrid

__all__ = ["COVERAGES", "LEVELS", "ScoreSums", "gaussian_crps", "gaussian_nll", "score"]

# Central intervals for which the observed share is counted, and those of them that tables show.
LEVELS: NDArray[np.float64] = np.arange(1, 100) / 100
COVERAGES = (0.68, 0.90, 0.95)

_SIGMA = LogGrid(low=-30, octaves=40, per_octave=32)
_COARSE = LogGrid(low=-30, octaves=40, per_octave=8)
_MAX_BINS = 20
_PER_BIN = 10


def gaussian_nll(errors: NDArray[np.float64], sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the negative log-likelihood of errors under N(0, sigma^2), in nats."""
    nll: NDArray[np.float64] = 0.5 * np.log(2 * np.pi * sigmas**2) + 0.5 * (errors / sigmas) ** 2
    return nll


def gaussian_crps(errors: NDArray[np.float64], sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the continuous ranked probability score of N(0, sigma^2) at the errors, in their unit."""
    from scipy.special import ndtr

    z = errors / sigmas
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    crps: NDArray[np.float64] = sigmas * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    return crps


@dataclass(frozen=True)
class ScoreSums:
    """Sums over errors with their sigmas, from which all scores follow.

    Attributes:
        count: Number of errors.
        totals: Sums of |error|, error^2, NLL, CRPS, sigma, sigma^2 (6,).
        inside: Errors whose central interval has a level in ``(LEVELS[i - 1], LEVELS[i]]``;
            last: beyond (100,).
        variance_bins: Count, sum of sigma^2, sum of error^2 by bin of sigma (3, bins).
        cells: Occupied cells of the grid over (sigma, |error|), ascending (K,).
        cell_counts: Errors in each occupied cell (K,).
    """

    count: int
    totals: NDArray[np.float64]
    inside: NDArray[np.int64]
    variance_bins: NDArray[np.float64]
    cells: NDArray[np.int64]
    cell_counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Self:
        """Return the sums over nothing."""
        return cls.of(np.empty(0), np.empty(0))

    @classmethod
    def of(cls, errors: NDArray[np.float64], sigmas: NDArray[np.float64]) -> Self:
        """Sum over errors (n,) and their standard deviations (n,), both in one unit; sigmas are above 0."""
        from scipy.special import ndtri

        errors, sigmas = np.asarray(errors, np.float64), np.asarray(sigmas, np.float64)
        absolute, variances = np.abs(errors), sigmas**2
        nll, crps = gaussian_nll(errors, sigmas), gaussian_crps(errors, sigmas)
        terms = (absolute, errors**2, nll, crps, sigmas, variances)
        half_widths = ndtri(0.5 + LEVELS / 2)
        levels = np.searchsorted(half_widths, absolute / sigmas)
        bins = _SIGMA.index(sigmas)
        weights = (None, variances, errors**2)
        cells = _COARSE.index(sigmas) * _COARSE.size + _COARSE.index(absolute)
        occupied, counts = np.unique(cells, return_counts=True)
        return cls(
            count=len(errors),
            totals=np.array([term.sum() for term in terms]),
            inside=np.bincount(levels, minlength=len(LEVELS) + 1),
            variance_bins=np.array([np.bincount(bins, weight, _SIGMA.size) for weight in weights], float),
            cells=occupied,
            cell_counts=counts,
        )

    def merge(self, other: "ScoreSums") -> "ScoreSums":
        """Return the sums over both."""
        cells, inverse = np.unique(np.concatenate([self.cells, other.cells]), return_inverse=True)
        counts = np.zeros(len(cells), dtype=np.int64)
        np.add.at(counts, inverse, np.concatenate([self.cell_counts, other.cell_counts]))
        plain = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("cells", "cell_counts")
        }
        return ScoreSums(**plain, cells=cells, cell_counts=counts)

    def observed(self) -> NDArray[np.float64]:
        """Return the share of errors inside the central interval of each of `LEVELS` (99,)."""
        return np.cumsum(self.inside)[:-1] / self.count

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return (root mean variance, RMSE, count) in bins of about equal count, by ascending sigma."""
        counts = self.variance_bins[0]
        num_bins = int(np.clip(self.count // _PER_BIN, 1, _MAX_BINS))
        middle = np.cumsum(counts) - counts / 2
        owner = np.minimum((middle * num_bins / max(self.count, 1)).astype(int), num_bins - 1)
        merged = np.array([np.bincount(owner, row, num_bins) for row in self.variance_bins])
        return [
            (float(np.sqrt(variance / count)), float(np.sqrt(squared / count)), int(count))
            for count, variance, squared in merged.T
            if count
        ]

    def density(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return sigma, |error| and count of the occupied cells (K,) each, at the centres of the cells."""
        sigmas, errors = np.divmod(self.cells, _COARSE.size)
        return _COARSE.centre(sigmas), _COARSE.centre(errors), self.cell_counts

    def spearman(self) -> float | None:
        """Return the rank correlation of |error| with sigma; None where either is the same everywhere."""
        sigma_ranks, error_ranks = (_mean_ranks(axis, self.cell_counts) for axis in np.divmod(
            self.cells, _COARSE.size
        ))  # fmt: skip
        weights = self.cell_counts
        if self.count < 2 or np.ptp(sigma_ranks) == 0 or np.ptp(error_ranks) == 0:
            return None
        middle = (self.count - 1) / 2
        a, b = sigma_ranks - middle, error_ranks - middle
        return float((weights * a * b).sum() / np.sqrt((weights * a * a).sum() * (weights * b * b).sum()))

    def scores(self) -> dict[str, Any]:
        """Return all scores; errors, CRPS and sharpness in the unit of the errors, NLL in nats."""
        if self.count == 0:
            return {"count": 0}
        mae, mse, nll, crps, sharpness, _ = (float(value) for value in self.totals / self.count)
        observed = self.observed()
        gap = np.abs(np.concatenate([[0.0], observed - LEVELS, [0.0]]))
        bins = self.reliability()
        return {
            "count": self.count,
            "mae": mae,
            "rmse": float(np.sqrt(mse)),
            "nll": nll,
            "crps": crps,
            "miscalibration_area": float(np.trapezoid(gap, np.concatenate([[0.0], LEVELS, [1.0]]))),
            "ence": float(np.mean([abs(rmv - rmse) / rmv for rmv, rmse, _ in bins])),
            "coverage": {
                f"{level:.0%}": float(observed[round(level * 100) - 1]) for level in COVERAGES
            },
            "sharpness": sharpness,
            "spearman": self.spearman(),
        }  # fmt: skip

    def constant_nll(self, sigma: float) -> float | None:
        """Return the mean NLL of the same errors under one constant sigma: what any spread must beat."""
        if self.count == 0 or sigma <= 0:
            return None
        mean_square = float(self.totals[1]) / self.count
        return float(0.5 * np.log(2 * np.pi * sigma**2) + 0.5 * mean_square / sigma**2)


def score(errors: NDArray[np.float64], sigmas: NDArray[np.float64]) -> dict[str, Any]:
    """Return all scores of errors with their sigmas, when both fit into memory."""
    return ScoreSums.of(errors, sigmas).scores()


def _mean_ranks(places: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the rank of each cell along one axis, those of one place sharing their mean (from 0)."""
    per_place = np.bincount(places, counts)
    before = np.cumsum(per_place) - per_place
    ranks: NDArray[np.float64] = (before + (per_place - 1) / 2)[places]
    return ranks
