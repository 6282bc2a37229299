"""Calibration of an ensemble's spread on validation: one factor per dataset and output, and conformal widths.

The factor minimises the Gaussian NLL of validation errors: with z = error / spread, the derivative of
log s + z^2/(2 s^2) vanishes at s^2 = mean(z^2). The split conformal quantile of |z| gives intervals that hold
without assuming a Gaussian. A spread of nearly zero (symmetry makes all members agree on zero force) has a
floor, and where there is no spread at all sigma is the validation RMSE, with a warning.

Source: variance scaling, Levi et al. 2022, doi:10.3390/s22155540; split conformal prediction with its
finite-sample correction, Angelopoulos & Bates 2021, arXiv:2107.07511. Force components of one structure are
not exchangeable one by one, so for forces the conformal coverage is an average over structures like those of
validation.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hpo.loggrid import LogGrid

__all__ = [
    "FLOORS",
    "OUTPUTS",
    "CalibrationWarning",
    "SpreadSums",
    "calibrate",
]

# Scored outputs and the smallest spread that is believed: float32 noise of the model, in the output's unit.
OUTPUTS = {"energy": "eV/atom", "forces": "eV/angstrom"}
FLOORS = {"energy": 1e-6, "forces": 1e-5}
CONFORMAL_LEVEL = 0.90
THRESHOLD_LEVEL = 0.99
# Fewer validation values than this do not fix a factor; the pooled one is used.
MIN_VALUES = 10

_RATIOS = LogGrid(low=-20, octaves=40, per_octave=256)
_SPREADS = LogGrid(low=-30, octaves=40, per_octave=64)


class CalibrationWarning(UserWarning):
    """A calibration stands on less than it should."""


@dataclass(frozen=True)
class SpreadSums:
    """Sums over validation errors and uncalibrated spreads, from which a calibration follows.

    Attributes:
        count: Number of values.
        at_floor: Values whose spread is at or below the floor; they take no part in fitting the factor.
        squared_z: Sum of (error / spread)^2 over the values above the floor.
        squared_error: Sum of error^2.
        ratios: Counts of |error| / spread (bins,).
        spreads: Counts of the largest spread of each structure (bins,).
    """

    count: int
    at_floor: int
    squared_z: float
    squared_error: float
    ratios: NDArray[np.int64]
    spreads: NDArray[np.int64]

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
        believed = spreads > floor
        z = errors / np.maximum(spreads, floor)
        return cls(
            count=len(errors),
            at_floor=int((~believed).sum()),
            squared_z=float((z[believed] ** 2).sum()),
            squared_error=float((errors**2).sum()),
            ratios=_RATIOS.count(np.abs(z)),
            spreads=_SPREADS.count(np.maximum(largest, floor)),
        )

    def merge(self, other: "SpreadSums") -> "SpreadSums":
        """Return the sums over both."""
        return SpreadSums(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    def fit(self, floor: float, where: str) -> dict[str, Any]:
        """Return the calibration as it stands in ensemble.json.

        Args:
            floor: Smallest spread that is believed, in the output's unit.
            where: Names dataset and output in warnings.

        Returns:
            ``scale`` (sigma = scale x max(spread, floor)) or, with kind "constant", ``rmse`` as the one
            sigma; ``quantile``: half width of the 90 % conformal interval in calibrated sigmas, None where
            there are too few values; ``threshold``: calibrated sigma that one structure in a hundred exceeds
            in its largest component; ``count`` and ``at_floor``.
        """
        rmse = float(np.sqrt(self.squared_error / self.count))
        common = {"count": self.count, "at_floor": self.at_floor, "rmse": rmse, "floor": floor}
        believed = self.count - self.at_floor
        if believed == 0 or self.squared_z == 0:
            warnings.warn(
                f"{where}: the members do not differ on any of {self.count} validation values, so the "
                f"spread says nothing; sigma is the validation RMSE everywhere. Were they trained alike?",
                CalibrationWarning,
                stacklevel=2,
            )
            sigma = max(rmse, floor)
            return common | {"kind": "constant", "scale": None, "quantile": None, "threshold": sigma}
        scale = float(np.sqrt(self.squared_z / believed))
        rank = int(np.ceil((self.count + 1) * CONFORMAL_LEVEL))
        structures = int(self.spreads.sum())
        largest = _SPREADS.quantile(self.spreads, int(np.ceil(structures * THRESHOLD_LEVEL)))
        return common | {
            "kind": "scale",
            "scale": scale,
            "quantile": _RATIOS.quantile(self.ratios, rank) / scale if rank <= self.count else None,
            "threshold": scale * largest,
        }


def calibrate(sums: Mapping[str, Sequence[SpreadSums]], dataset_names: Sequence[str]) -> dict[str, Any]:
    """Fit a calibration for each output, pooled and per dataset.

    Args:
        sums: Output name to its sums by dataset, in the order of ``dataset_names``.
        dataset_names: Names of the datasets.

    Returns:
        ``{output: {"unit", "pooled": {...}, "datasets": {name: {...}}}}``; outputs without validation
        labels are left out, and so are datasets with fewer than `MIN_VALUES` values (the pooled one
        stands in).
    """
    calibration: dict[str, Any] = {}
    for output, by_dataset in sums.items():
        pooled = SpreadSums.empty()
        for part in by_dataset:
            pooled = pooled.merge(part)
        if pooled.count == 0:
            continue
        fitted: dict[str, Any] = {}
        for name, part in zip(dataset_names, by_dataset, strict=True):
            if part.count >= MIN_VALUES:
                fitted[name] = part.fit(FLOORS[output], f"{output} of {name}")
            elif part.count:
                warnings.warn(
                    f"{output} of {name}: only {part.count} validation values; the pooled calibration is used",
                    CalibrationWarning,
                    stacklevel=2,
                )
        calibration[output] = {
            "unit": OUTPUTS[output],
            "pooled": pooled.fit(FLOORS[output], f"{output}, pooled"),
            "datasets": fitted,
        }
    return calibration
