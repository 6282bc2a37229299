"""ensemble.json: what an ensemble's folder says of itself, and how its calibration is applied.

It is written by ``gfm ensemble select`` and ``evaluate`` and read by the calculator, which needs nothing else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.errors import DataError, MissingDataError

__all__ = ["ENSEMBLE_FILE", "FORMAT_VERSION", "calibrated_sigma", "find_calibration", "read_ensemble"]

FORMAT_VERSION = 1
ENSEMBLE_FILE = "ensemble.json"


def read_ensemble(directory: str | Path) -> dict[str, Any]:
    """Read ensemble.json of an ensemble's folder.

    Raises:
        MissingDataError: The folder holds no ensemble.
        DataError: It was written by a version that this one does not know.
    """
    path = Path(directory) / ENSEMBLE_FILE
    if not path.is_file():
        raise MissingDataError(f"{path}: not there; an ensemble is made by `gfm ensemble select`")
    ensemble: dict[str, Any] = json.loads(path.read_text())
    if ensemble.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {ensemble.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    return ensemble


def find_calibration(calibration: Mapping[str, Any], output: str, dataset: str | None) -> dict[str, Any]:
    """Return the calibration of an output for a dataset; the pooled one where it has none of its own."""
    entry = calibration[output]
    found: dict[str, Any] = entry["datasets"].get(dataset, entry["pooled"])
    return found


def calibrated_sigma(entry: Mapping[str, Any], spreads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return calibrated sigmas for the members' standard deviations, in the same unit."""
    sigmas: NDArray[np.float64] = np.hypot(
        entry["scale"] * np.maximum(spreads, entry["floor"]), entry["offset"]
    )
    return sigmas
