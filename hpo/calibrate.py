"""Calibration of an ensemble's spread on validation, for each dataset and output; conformal intervals.

The calibrated sigma is ``sqrt((scale x spread)^2 + offset^2)`` with the scale and offset that minimise the
Gaussian NLL of validation errors. The offset is what all members share: without it, errors where the members
happen to agree would blow the scale up. Scale alone would be the closed form sqrt(mean((error / spread)^2)), a
constant sigma the other end. A few members agree by chance now and then, which a small validation set need not
show; so the offset is never less than one further degree of freedom at the typical spread would give,
``scale x rms spread / sqrt(members - 1)``: an empirical Bayes estimate of the variance with the weakest prior.
The split conformal quantile of |error| / sigma gives intervals that hold without assuming a Gaussian.

Source: linear calibration by NLL, Palmer et al. 2022, doi:10.1038/s41524-022-00794-8; variance scaling, Levi et
al. 2022, doi:10.3390/s22155540; moderated variances, Smyth 2004, doi:10.2202/1544-6115.1027; split conformal
prediction with its finite-sample correction, Angelopoulos & Bates 2021, arXiv:2107.07511. Force components of
one structure are not exchangeable one by one, so for forces the conformal coverage is an average over
structures like those of validation.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.loggrid import LogGrid

__all__ = [
    "FLOORS",
    "OUTPUTS",
    "RATIOS",
    "CalibrationWarning",
    "SpreadSums",
    "add_conformal",
    "calibrate",
    "conformal_quantile",
]

# Scored outputs and the smallest spread that is believed: float32 noise of the model, in the output's unit.
OUTPUTS = {"energy": "eV/atom", "forces": "eV/angstrom"}
FLOORS = {"energy": 1e-6, "forces": 1e-5}
CONFORMAL_LEVEL = 0.90
THRESHOLD_LEVEL = 0.99
# With fewer validation structures than this (a factor known to worse than 11 %, 1 / sqrt(2 n)) the pooled
# calibration is used. Structures are counted, not values: the force components of one are not independent.
MIN_STRUCTURES = 40

RATIOS = LogGrid(low=-20, octaves=40, per_octave=256)
_SPREADS = LogGrid(low=-30, octaves=40, per_octave=64)


class CalibrationWarning(UserWarning):
    """A calibration stands on less than it should."""


@dataclass(frozen=True)
class SpreadSums:
    """Sums over validation errors and uncalibrated spreads, from which a calibration follows.

    Attributes:
        count: Number of values.
        at_floor: Values whose spread is at or below the floor.
        squared_error: Sum of error^2.
        bins: Count, sum of spread^2, sum of error^2 by bin of the spread (3, bins).
        largest: Counts of the largest spread of each structure (bins,).
    """

    count: int
    at_floor: int
    squared_error: float
    bins: NDArray[np.float64]
    largest: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Self:
        """Return the sums over nothing."""
        return cls.of(np.empty(0), np.empty(0), np.empty(0), 1.0)

    @classmethod
    def of(
        cls,
        errors: NDArray[np.float64],
        spreads: NDArray[np.float64],
        largest: NDArray[np.float64],
        floor: float,
    ) -> Self:
        """Sum over errors (n,), spreads (n,) and the largest spread of each structure (g,), in one unit."""
        spreads, largest = np.maximum(spreads, floor), np.maximum(largest, floor)
        places = _SPREADS.index(spreads)
        weights = (None, spreads**2, errors**2)
        return cls(
            count=len(errors),
            at_floor=int((spreads <= floor).sum()),
            squared_error=float((errors**2).sum()),
            bins=np.array([np.bincount(places, weight, _SPREADS.size) for weight in weights], float),
            largest=_SPREADS.count(largest),
        )

    def merge(self, other: "SpreadSums") -> "SpreadSums":
        """Return the sums over both."""
        return SpreadSums(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    def fit(self, floor: float, members: int, where: str) -> dict[str, Any]:
        """Return the calibration as it stands in ensemble.json, without its conformal quantile.

        Args:
            floor: Smallest spread that is believed, and smallest offset, in the output's unit.
            members: How many members the spread is of.
            where: Names dataset and output in warnings.

        Returns:
            ``scale`` and ``offset`` of sigma; ``rmse`` of the values; ``threshold``: calibrated sigma that one
            structure in a hundred exceeds in its largest component; ``count``, ``at_floor`` and ``floor``.
        """
        rmse = float(np.sqrt(self.squared_error / self.count))
        if self.at_floor == self.count:
            warnings.warn(
                f"{where}: the members do not differ on any of {self.count} validation values, so the "
                f"spread says nothing; sigma is the validation RMSE everywhere. Were they trained alike?",
                CalibrationWarning,
                stacklevel=2,
            )
            scale, offset = 0.0, max(rmse, floor)
        else:
            bins = self.bins[:, self.bins[0] > 0]
            chance = float(np.sqrt(bins[1].sum() / bins[0].sum() / (members - 1)))
            scale, offset = _most_likely(bins, floor, max(rmse, floor), chance)
        structures = int(self.largest.sum())
        largest = _SPREADS.quantile(self.largest, int(np.ceil(structures * THRESHOLD_LEVEL)))
        return {
            "count": self.count,
            "at_floor": self.at_floor,
            "rmse": rmse,
            "floor": floor,
            "scale": scale,
            "offset": offset,
            "threshold": float(np.hypot(scale * largest, offset)),
            "quantile": None,
        }


def _most_likely(bins: NDArray[np.float64], floor: float, rmse: float, chance: float) -> tuple[float, float]:
    """Return scale and offset that minimise the NLL of binned values (count, spread^2, error^2 by bin).

    The offset is at least ``scale x chance``.
    """
    from scipy.optimize import minimize

    counts, variances, squares = bins
    spread, square = (variances / counts + chance**2) / rmse**2, squares / counts / rmse**2

    def nll(logs: NDArray[np.float64]) -> float:
        sigma2 = np.exp(logs[0]) * spread + np.exp(logs[1])
        return float((counts * (np.log(sigma2) + square / sigma2)).sum() / counts.sum())

    lowest = 2 * np.log(floor / rmse)
    bounds = [(-30.0, 30.0), (min(lowest, 0.0), 2.0)]
    alone = float(np.log(np.clip((counts * square / spread).sum() / counts.sum(), 1e-12, 1e12)))
    starts = [(alone, max(lowest, -8.0)), (0.0, -1.0), (-10.0, 0.0)]
    found = [minimize(nll, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    log_scale, log_offset = min(found, key=lambda result: float(result.fun)).x
    scale = float(np.exp(log_scale / 2))
    return scale, float(np.hypot(scale * chance, rmse * np.exp(log_offset / 2)))


def calibrate(
    sums: Mapping[str, Sequence[SpreadSums]], dataset_names: Sequence[str], members: int
) -> dict[str, Any]:
    """Fit a calibration for each output, pooled and per dataset.

    Args:
        sums: Output name to its sums by dataset, in the order of ``dataset_names``.
        dataset_names: Names of the datasets.
        members: How many members the spread is of, at least 2.

    Returns:
        ``{output: {"unit", "pooled": {...}, "datasets": {name: {...}}}}``; outputs without validation
        labels are left out, and so are datasets with fewer than `MIN_STRUCTURES` structures (the pooled
        one stands in).
    """
    calibration: dict[str, Any] = {}
    for output, by_dataset in sums.items():
        pooled = SpreadSums.empty()
        for part in by_dataset:
            pooled = pooled.merge(part)
        if pooled.count == 0:
            continue
        fitted: dict[str, Any] = {}
        few: list[str] = []
        for name, part in zip(dataset_names, by_dataset, strict=True):
            structures = int(part.largest.sum())
            if structures >= MIN_STRUCTURES:
                fitted[name] = part.fit(FLOORS[output], members, f"{output} of {name}")
            elif part.count:
                few.append(f"{name} ({structures})")
        if few:
            warnings.warn(
                f"{output}: the pooled calibration stands in for datasets with fewer than {MIN_STRUCTURES} "
                f"validation structures: {', '.join(few)}",
                CalibrationWarning,
                stacklevel=2,
            )
        calibration[output] = {
            "unit": OUTPUTS[output],
            "pooled": pooled.fit(FLOORS[output], members, f"{output}, pooled"),
            "datasets": fitted,
        }
    return calibration


def add_conformal(
    calibration: dict[str, Any], ratios: Mapping[str, Sequence[NDArray[np.int64]]], names: Sequence[str]
) -> None:
    """Note the half width of the 90 % interval, in calibrated sigmas; None where there are too few values.

    Args:
        calibration: As `calibrate` returned it; its ``quantile`` entries are set.
        ratios: Output to counts of |error| / sigma in the bins of `RATIOS`, by dataset.
        names: Names of the datasets.
    """
    for output, entry in calibration.items():
        for name, counts in zip(names, ratios[output], strict=True):
            if name in entry["datasets"]:
                entry["datasets"][name]["quantile"] = conformal_quantile(counts)
        entry["pooled"]["quantile"] = conformal_quantile(np.sum(ratios[output], axis=0))


def conformal_quantile(counts: NDArray[np.int64]) -> float | None:
    """Return the split conformal quantile of binned scores, rounded up by at most one bin; None if too few."""
    count = int(counts.sum())
    rank = int(np.ceil((count + 1) * CONFORMAL_LEVEL))
    return RATIOS.quantile(counts, rank) if rank <= count else None
