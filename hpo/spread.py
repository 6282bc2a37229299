"""Mean and spread of the members' predictions on one shard, streamed member by member, and their sums.

One member's predictions of one shard are in memory at a time (Welford's update); the shard's means and spreads
go to a file, and only sums of fixed size leave the task.

Source: B. P. Welford 1962, doi:10.1080/00401706.1962.10490022.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.data.splits import SPLITS
from gfm.model.ensemble_card import calibrated_sigma, find_calibration
from gfm.runtime.runs import write_whole
from hpo.calibrate import FLOORS, OUTPUTS, RATIOS, SpreadSums
from hpo.scores import ScoreSums

__all__ = [
    "EVALUATED",
    "Labels",
    "RunningSpread",
    "ShardSums",
    "combine_shard",
    "mean_file",
    "member_file",
    "ratio_shard",
    "read_arrays",
    "score_shard",
    "write_arrays",
]

# Calibration is fitted on the first and scored on the second.
EVALUATED = ("validation", "test")


class RunningSpread:
    """Mean and unbiased variance over arrays that come one by one.

    Attributes:
        count: Arrays seen.
        mean: Their mean, float64.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self._m2 = np.zeros(shape)

    def add(self, values: NDArray[np.floating]) -> None:
        """Take in one member's values."""
        self.count += 1
        delta = values - self.mean
        self.mean += delta / self.count
        self._m2 += delta * (values - self.mean)

    def std(self) -> NDArray[np.float64]:
        """Return the standard deviation over members, with M - 1 below the sum of squares."""
        spread: NDArray[np.float64] = np.sqrt(self._m2 / (self.count - 1))
        return spread


@dataclass(frozen=True)
class Labels:
    """The labels of one shard's evaluated rows, flat for each output, with dataset and split of every value.

    Attributes:
        num_atoms: Atoms of each structure (g,).
        values: Output to labels: energy (g,) in eV/atom, forces (3N,) in eV/angstrom.
        known: Output to which values are labelled, likewise.
        structure: Output to the structure each value belongs to.
        dataset: Dataset of each structure (g,).
        split: Split of each structure (g,).
    """

    num_atoms: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    known: dict[str, NDArray[np.bool_]]
    structure: dict[str, NDArray[np.int64]]
    dataset: NDArray[np.int64]
    split: NDArray[np.int64]

    @classmethod
    def of(cls, batch: RaggedBatch, split: NDArray[np.integer]) -> Self:
        """Take the labels of a batch whose structures are in these splits (g,)."""
        owner = np.repeat(np.arange(len(batch)), 3 * batch.num_atoms)
        missing = {"energy": np.zeros(len(batch)), "forces": np.zeros((len(owner) // 3, 3))}
        columns = {output: batch.columns.get(output, missing[output]) for output in OUTPUTS}
        return cls(
            num_atoms=batch.num_atoms,
            values={
                "energy": columns["energy"] / batch.num_atoms,
                "forces": columns["forces"].reshape(-1).astype(np.float64),
            },
            known={"energy": batch.has("energy"), "forces": batch.has("forces")[owner]},
            structure={"energy": np.arange(len(batch)), "forces": owner},
            dataset=batch.columns["dataset"].astype(np.int64),
            split=np.asarray(split, dtype=np.int64),
        )

    def mask(self, output: str, dataset: int, split: str) -> NDArray[np.bool_]:
        """Return which values of an output are labelled, of this dataset and in this split."""
        chosen = (self.dataset == dataset) & (self.split == SPLITS.index(split))
        mask: NDArray[np.bool_] = chosen[self.structure[output]] & self.known[output]
        return mask


@dataclass(frozen=True)
class ShardSums:
    """What leaves the combining of one shard.

    Attributes:
        spread: Output to sums over validation, by dataset.
        errors: Number, sum of |error| and of error^2 for each member and, last, their mean
            (M + 1, evaluated splits, datasets, outputs, 3); energy in eV/atom, forces in eV/angstrom.
    """

    spread: dict[str, list[SpreadSums]]
    errors: NDArray[np.float64]

    def merge(self, other: "ShardSums") -> "ShardSums":
        """Return the sums over both shards."""
        spread = {
            output: [a.merge(b) for a, b in zip(parts, other.spread[output], strict=True)]
            for output, parts in self.spread.items()
        }
        return ShardSums(spread, self.errors + other.errors)


def member_file(directory: Path, member: int, shard: int) -> Path:
    """Return where one member's predictions of one shard lie."""
    return directory / "predictions" / f"member-{member:02d}" / f"{shard:06d}.npz"


def mean_file(directory: Path, shard: int) -> Path:
    """Return where the ensemble's means and spreads of one shard lie."""
    return directory / "predictions" / "ensemble" / f"{shard:06d}.npz"


def write_arrays(path: Path, **arrays: Any) -> bytes:
    """Write arrays as an uncompressed npz, whole; return its bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())
    return buffer.getvalue()


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz into memory."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def combine_shard(
    directory: Path, shard: int, num_members: int, labels: Labels, num_datasets: int
) -> ShardSums:
    """Stream the members' predictions of one shard into means and spreads, write these, and return sums.

    Args:
        directory: Folder of the ensemble.
        shard: Index of the shard.
        num_members: Number of members; at least 2.
        labels: Labels of the rows that were predicted.
        num_datasets: Number of datasets that sums are kept for.
    """
    running = {output: RunningSpread(labels.values[output].shape) for output in OUTPUTS}
    errors = np.zeros((num_members + 1, len(EVALUATED), num_datasets, len(OUTPUTS), 3))
    for member in range(num_members):
        arrays = read_arrays(member_file(directory, member, shard))
        predicted = _outputs(arrays["energy"], arrays["forces"], labels)
        for output in OUTPUTS:
            running[output].add(predicted[output])
        errors[member] = _error_sums(predicted, labels, num_datasets)
    means = {output: running[output].mean for output in OUTPUTS}
    stds = {output: running[output].std() for output in OUTPUTS}
    errors[num_members] = _error_sums(means, labels, num_datasets)
    write_arrays(
        mean_file(directory, shard),
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        energy=means["energy"] * labels.num_atoms,
        energy_std=stds["energy"] * labels.num_atoms,
        forces=means["forces"].reshape(-1, 3).astype(np.float32),
        forces_std=stds["forces"].reshape(-1, 3).astype(np.float32),
    )
    spread = {
        output: [
            _spread_sums(output, means[output], stds[output], labels, index) for index in range(num_datasets)
        ]
        for output in OUTPUTS
    }
    return ShardSums(spread, errors)


def ratio_shard(
    directory: Path, shard: int, labels: Labels, calibration: dict[str, Any], dataset_names: Sequence[str]
) -> dict[str, list[NDArray[np.int64]]]:
    """Return, for each output and dataset, counts of |error| / calibrated sigma over validation."""
    arrays = read_arrays(mean_file(directory, shard))
    means = _outputs(arrays["energy"], arrays["forces"], labels)
    stds = _outputs(arrays["energy_std"], arrays["forces_std"], labels)
    result: dict[str, list[NDArray[np.int64]]] = {}
    for output in calibration:
        result[output] = []
        for index, name in enumerate(dataset_names):
            mask = labels.mask(output, index, "validation")
            errors = means[output][mask] - labels.values[output][mask]
            sigmas = calibrated_sigma(find_calibration(calibration, output, name), stds[output][mask])
            result[output].append(RATIOS.count(np.abs(errors) / sigmas))
    return result


def score_shard(
    directory: Path, shard: int, labels: Labels, calibration: dict[str, Any], dataset_names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each output and dataset, what test scores are made of.

    Returns:
        Output to one entry for each dataset: ``before`` and ``after`` calibration (`ScoreSums`), and
        ``conformal``: values inside the conformal interval, and values that have one (2,) int64.
    """
    arrays = read_arrays(mean_file(directory, shard))
    means = _outputs(arrays["energy"], arrays["forces"], labels)
    stds = _outputs(arrays["energy_std"], arrays["forces_std"], labels)
    result: dict[str, list[dict[str, Any]]] = {}
    for output in calibration:
        result[output] = []
        for index, name in enumerate(dataset_names):
            mask = labels.mask(output, index, "test")
            entry = find_calibration(calibration, output, name)
            errors = means[output][mask] - labels.values[output][mask]
            spreads = stds[output][mask]
            sigmas = calibrated_sigma(entry, spreads)
            width = entry["quantile"]
            inside = 0 if width is None else int((np.abs(errors) <= width * sigmas).sum())
            result[output].append(
                {
                    "before": ScoreSums.of(errors, np.maximum(spreads, entry["floor"])),
                    "after": ScoreSums.of(errors, sigmas),
                    "conformal": np.array([inside, 0 if width is None else len(errors)]),
                }
            )
    return result


def _outputs(
    energy: NDArray[np.float64], forces: NDArray[np.floating], labels: Labels
) -> dict[str, NDArray[np.float64]]:
    """Return total energies (g,) and forces (N, 3) in the shape and unit of the labels."""
    return {"energy": energy / labels.num_atoms, "forces": forces.reshape(-1).astype(np.float64)}


def _error_sums(
    predicted: dict[str, NDArray[np.float64]], labels: Labels, num_datasets: int
) -> NDArray[np.float64]:
    """Return number, sum of |error| and of error^2 (evaluated splits, datasets, outputs, 3)."""
    sums = np.zeros((len(EVALUATED), num_datasets, len(OUTPUTS), 3))
    for column, output in enumerate(OUTPUTS):
        errors = predicted[output] - labels.values[output]
        for row, split in enumerate(EVALUATED):
            for index in range(num_datasets):
                chosen = errors[labels.mask(output, index, split)]
                sums[row, index, column] = len(chosen), np.abs(chosen).sum(), (chosen**2).sum()
    return sums


def _spread_sums(
    output: str, means: NDArray[np.float64], stds: NDArray[np.float64], labels: Labels, dataset: int
) -> SpreadSums:
    """Return the sums over validation values of one dataset."""
    mask = labels.mask(output, dataset, "validation")
    errors, spreads, owner = (means - labels.values[output])[mask], stds[mask], labels.structure[output][mask]
    _, owner = np.unique(owner, return_inverse=True)
    largest = np.zeros(int(owner.max()) + 1 if len(owner) else 0)
    np.maximum.at(largest, owner, spreads)
    return SpreadSums.of(errors, spreads, largest, FLOORS[output])
