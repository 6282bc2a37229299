"""Evaluate an ensemble: members x shards on Dask, streaming mean and spread, calibration, scores.

Waves of small tasks, each of which writes what is large to a file and returns a receipt or sums: every
member predicts the validation and test rows of every shard; each shard's members are combined; its validation
rows calibrate, its test rows are scored with that calibration. Sums are added in the order of shards, so the
result does not depend on workers. A rerun skips predictions that are whole and of the same model and rows.
"""

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gfm.data.splits import SPLITS
from gfm.errors import DataError, MissingDataError
from gfm.model.ensemble_card import ENSEMBLE_FILE, read_ensemble
from hpo.calibrate import OUTPUTS, add_conformal, calibrate
from hpo.scores import LEVELS, ScoreSums
from hpo.select import SelectionWarning, write_json
from hpo.spread import (
    EVALUATED,
    Labels,
    ShardSums,
    combine_shard,
    member_file,
    ratio_shard,
    score_shard,
    write_arrays,
)

if TYPE_CHECKING:
    from distributed import Client

    from store.dataset import Dataset

__all__ = ["SCORES_FILE", "evaluate", "predict_shard"]

SCORES_FILE = "scores.json"
CURVES_FILE = "curves.json"

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


def evaluate(
    directory: str | Path,
    dataset: str | Path | None = None,
    *,
    client: "Client",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict, calibrate on validation and score on test.

    Args:
        directory: Folder of the ensemble, as `hpo.select.select` made it; ``predictions/``, ``scores.json`` and
            ``curves.json`` are written there, and the calibration into ``ensemble.json``.
        dataset: Dataset to evaluate on; by default the one the members were trained on.
        client: Dask client whose workers see the same files.
        batch_size: Structures that a model predicts at once.
        on_progress: Called with the wave's name, tasks done and tasks in all.

    Returns:
        What was written to ``scores.json``.

    Raises:
        DataError: The ensemble has fewer than 2 members, or there is nothing to calibrate on.
        CorruptDataError: A shard is not what was written.
    """
    from store import open_dataset

    directory = Path(directory).resolve()
    ensemble = read_ensemble(directory)
    members = [directory / member["model"] for member in ensemble["members"]]
    if len(members) < 2:
        raise DataError(f"{directory}: {len(members)} member; a spread needs at least 2")
    if dataset is None and ensemble["dataset"] is None:
        raise MissingDataError(f"{directory / ENSEMBLE_FILE} names no dataset: give one with --dataset")
    opened = open_dataset(dataset if dataset is not None else ensemble["dataset"])
    names = opened.dataset_names
    known = _known_datasets(members, opened)
    shards = [k for k in range(opened.num_shards) if len(evaluated_rows(opened, k, known))]
    report = on_progress or (lambda wave, done, total: None)

    contents = {k: _content_digest(opened, k, known) for k in shards}
    wanted = []
    todo = []
    for member, model in enumerate(members):
        model_digest = _model_digest(model)
        for k in shards:
            digest = _hash(f"{model_digest} {contents[k]}".encode())
            task = (str(directory), member, str(model), str(opened.path), k, known, digest, batch_size)
            wanted.append(task)
            if not _is_whole(directory, member, k, digest):
                todo.append(task)
    report("predict", len(wanted) - len(todo), len(wanted))
    _gather(client, predict_shard, todo, "predict", report, len(wanted))

    combined = _gather(
        client,
        _combine,
        [(str(directory), str(opened.path), k, known, len(members)) for k in shards],
        "combine",
        report,
    )
    sums = _merge(combined, ShardSums.merge)
    if sums is None or sums.errors[0, 0, :, :, 0].sum() == 0:
        raise DataError(
            f"{opened.path}: no labelled structure in the validation split; nothing to calibrate on"
        )
    calibration = calibrate(sums.spread, names, len(members))
    counted = _gather(
        client,
        _count_ratios,
        [(str(directory), str(opened.path), k, known, calibration) for k in shards],
        "calibrate",
        report,
    )
    ratios = _merge(counted, _add_counts)
    add_conformal(calibration, ratios or {}, names)
    scored = _gather(
        client,
        _score,
        [(str(directory), str(opened.path), k, known, calibration) for k in shards],
        "score",
        report,
    )
    tests = _merge(scored, _merge_scores) or {}

    comparison = _comparison(ensemble["members"], sums.errors, names)
    scores = {
        "format_version": 1,
        "dataset": str(opened.path),
        "content_hash": opened.manifest.content_hash,
        "split": "test",
        "members": len(members),
        "structures": {
            split: int(np.count_nonzero(opened.split == SPLITS.index(split))) for split in EVALUATED
        },
        "comparison": comparison,
        **{output: _output_scores(tests[output], calibration[output], names) for output in tests},
    }  # fmt: skip
    write_json(directory / SCORES_FILE, scores)
    write_json(directory / CURVES_FILE, {output: _curves(parts, names) for output, parts in tests.items()})
    write_json(directory / ENSEMBLE_FILE, ensemble | {"dataset": str(opened.path), "calibration": calibration})
    return scores


def evaluated_rows(dataset: "Dataset", shard: int, known: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows of a shard in the validation or test split and of a known dataset, ascending."""
    start, stop = (int(edge) for edge in dataset.shard_starts[shard : shard + 2])
    splits = [SPLITS.index(split) for split in EVALUATED]
    datasets = [index for index, name in enumerate(dataset.dataset_names) if name in known]
    chosen = np.isin(dataset.split[start:stop], splits)
    chosen &= np.isin(dataset.dataset_index[start:stop], datasets)
    return start + np.flatnonzero(chosen).astype(np.int64)


def predict_shard(
    directory: str,
    member: int,
    model: str,
    dataset: str,
    shard: int,
    known: tuple[str, ...],
    digest: str,
    batch_size: int,
) -> dict[str, Any]:
    """Write one member's predictions of one shard, and then its receipt; return the receipt.

    The receipt is written last: predictions without one are made again.
    """
    from train.predict import cached_model, predict

    opened = _dataset(dataset)
    rows = evaluated_rows(opened, shard, known)
    with _LOADING:
        potential = cached_model(model)
    predicted = predict(potential, opened, rows, batch_size=batch_size)
    path = member_file(Path(directory), member, shard)
    content = write_arrays(
        path,
        ids=predicted.ids,
        offsets=predicted.offsets,
        energy=predicted.energy,
        forces=predicted.forces,
    )
    receipt = {"digest": digest, "structures": len(rows), "blake2b": _hash(content)}
    write_json(path.with_suffix(".json"), receipt)
    return receipt


# A model is loaded once for each worker process, whatever the number of its tasks and threads.
_LOADING = threading.Lock()


@lru_cache(maxsize=2)
def _dataset(path: str) -> "Dataset":
    from store import open_dataset

    # Damaged labels or positions would become scores and a calibration that nothing shows to be wrong.
    return open_dataset(path, verify=True)


def _combine(directory: str, dataset: str, shard: int, known: tuple[str, ...], num_members: int) -> ShardSums:
    opened = _dataset(dataset)
    labels = _labels(opened, shard, known)
    return combine_shard(Path(directory), shard, num_members, labels, len(opened.dataset_names))


def _count_ratios(
    directory: str, dataset: str, shard: int, known: tuple[str, ...], calibration: dict[str, Any]
) -> dict[str, list[NDArray[np.int64]]]:
    opened = _dataset(dataset)
    labels = _labels(opened, shard, known)
    return ratio_shard(Path(directory), shard, labels, calibration, opened.dataset_names)


def _add_counts(
    a: dict[str, list[NDArray[np.int64]]], b: dict[str, list[NDArray[np.int64]]]
) -> dict[str, list[NDArray[np.int64]]]:
    return {output: [x + y for x, y in zip(parts, b[output], strict=True)] for output, parts in a.items()}


def _score(
    directory: str, dataset: str, shard: int, known: tuple[str, ...], calibration: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    opened = _dataset(dataset)
    labels = _labels(opened, shard, known)
    return score_shard(Path(directory), shard, labels, calibration, opened.dataset_names)


def _labels(dataset: "Dataset", shard: int, known: tuple[str, ...]) -> Labels:
    rows = evaluated_rows(dataset, shard, known)
    return Labels.of(dataset.batch(rows), dataset.split[rows])


def _gather(
    client: "Client",
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    wave: str,
    report: Progress,
    total: int | None = None,
) -> list[T]:
    """Run one task for each tuple of arguments and return the results in their order."""
    from distributed import as_completed

    total = len(tasks) if total is None else total
    done = total - len(tasks)
    places = {}
    for place, arguments in enumerate(tasks):
        # A task writes a file, so it must run again when asked again. Dask runs it anew when its worker dies;
        # an error it raises would only come again, so it is not retried.
        places[client.submit(function, *arguments, pure=False)] = place
    results: dict[int, T] = {}
    for future in as_completed(list(places), loop=client.loop):  # type: ignore[no-untyped-call]
        results[places[future]] = future.result()
        future.release()
        done += 1
        report(wave, done, total)
    return [results[place] for place in range(len(tasks))]


def _merge(parts: Iterable[T], merge: Callable[[T, T], T]) -> T | None:
    """Add up in the order given."""
    total: T | None = None
    for part in parts:
        total = part if total is None else merge(total, part)
    return total


def _merge_scores(
    a: dict[str, list[dict[str, Any]]], b: dict[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    return {
        output: [
            {
                "before": x["before"].merge(y["before"]),
                "after": x["after"].merge(y["after"]),
                "conformal": x["conformal"] + y["conformal"],
            }
            for x, y in zip(parts, b[output], strict=True)
        ]
        for output, parts in a.items()
    }


def _pool(parts: Sequence[dict[str, Any]], key: str) -> ScoreSums:
    return _merge((part[key] for part in parts), ScoreSums.merge) or ScoreSums.empty()


def _output_scores(
    parts: list[dict[str, Any]], calibration: dict[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of one output: pooled and by dataset, before and after calibration."""

    def entry(before: ScoreSums, after: ScoreSums, conformal: NDArray[np.int64], rmse: float) -> dict[str, Any]:
        inside, total = (int(value) for value in conformal)
        return {
            "before": before.scores(),
            "after": after.scores(),
            "constant_sigma_nll": after.constant_nll(rmse),
            "conformal_coverage_90": inside / total if total else None,
        }

    pooled = entry(
        _pool(parts, "before"),
        _pool(parts, "after"),
        sum((part["conformal"] for part in parts), np.zeros(2, dtype=np.int64)),
        calibration["pooled"]["rmse"],
    )
    datasets = {}
    for name, part in zip(names, parts, strict=True):
        if part["after"].count:
            own = calibration["datasets"].get(name, calibration["pooled"])
            datasets[name] = entry(part["before"], part["after"], part["conformal"], own["rmse"])
    return {"unit": calibration["unit"], "pooled": pooled, "datasets": datasets}


def _curves(parts: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return what the report draws: calibration curve, reliability bins and density, pooled and by dataset."""

    def entry(before: ScoreSums, after: ScoreSums) -> dict[str, Any]:
        sigmas, errors, counts = after.density()
        return {
            "levels": LEVELS.tolist(),
            "observed_before": before.observed().tolist(),
            "observed_after": after.observed().tolist(),
            "reliability_before": before.reliability(),
            "reliability_after": after.reliability(),
            "density": {
                "sigma": [float(f"{value:.4g}") for value in sigmas],
                "error": [float(f"{value:.4g}") for value in errors],
                "count": counts.tolist(),
            },
        }

    curves = {
        name: entry(part["before"], part["after"])
        for name, part in zip(names, parts, strict=True)
        if part["after"].count
    }
    before, after = _pool(parts, "before"), _pool(parts, "after")
    return {"pooled": entry(before, after) if after.count else None, "datasets": curves}


def _comparison(
    members: Sequence[dict[str, Any]], errors: NDArray[np.float64], names: Sequence[str]
) -> dict[str, Any]:
    """Return test errors of every member, of the one that was best on validation, and of the mean."""

    def entry(sums: NDArray[np.float64]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        units = {
            "energy": ("mev_per_atom", 1000.0),
            "forces": ("ev_per_angstrom", 1.0),
        }
        for column, output in enumerate(OUTPUTS):
            count, absolute, squared = (float(value) for value in sums[column])
            unit, factor = units[output]
            result[f"{output}_mae_{unit}"] = factor * absolute / count if count else None
            result[f"{output}_rmse_{unit}"] = factor * float(np.sqrt(squared / count)) if count else None
        return result

    test = EVALUATED.index("test")
    tables = []
    for sums in errors[:, test]:
        by_dataset = {name: entry(part) for name, part in zip(names, sums, strict=True) if part[:, 0].any()}
        tables.append(entry(sums.sum(axis=0)) | {"datasets": by_dataset})
    best = min(range(len(members)), key=lambda m: (members[m]["value"], m))
    listed = [
        {"member": number, "trial": member.get("trial")} | table
        for number, (member, table) in enumerate(zip(members, tables, strict=False))
    ]
    return {"single_best": listed[best], "ensemble": tables[-1], "members": listed}


def _known_datasets(members: Sequence[Path], dataset: "Dataset") -> tuple[str, ...]:
    """Return the datasets that every member has a head for; others are left out, with a warning.

    Raises:
        MissingDataError: A member is not there.
        DataError: There is none.
    """
    from gfm.model.build import load_card

    known = set(dataset.dataset_names)
    for member in members:
        known &= {entry["name"] for entry in load_card(member)["datasets"]}
    names = tuple(name for name in dataset.dataset_names if name in known)
    if not names:
        raise DataError(f"{dataset.path}: none of its datasets is one that all members were trained on")
    if others := [name for name in dataset.dataset_names if name not in known]:
        warnings.warn(
            f"{', '.join(others)}: not every member was trained on it, so it is left out",
            SelectionWarning,
            stacklevel=3,
        )
    return names


def _model_digest(model: Path) -> str:
    """Return a digest of all files of a saved model."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in model.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _content_digest(dataset: "Dataset", shard: int, known: tuple[str, ...]) -> str:
    """Return what predictions of a shard depend on beside the model: its content and the rows."""
    content = dataset.manifest.shards[shard].content_hash
    return _hash(content.encode() + evaluated_rows(dataset, shard, known).tobytes())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _is_whole(directory: Path, member: int, shard: int, digest: str) -> bool:
    """Return whether predictions are there, undamaged, and of this model and these rows."""
    path = member_file(directory, member, shard)
    receipt = path.with_suffix(".json")
    if not (path.is_file() and receipt.is_file()):
        return False
    noted = json.loads(receipt.read_text())
    return bool(noted["digest"] == digest and noted["blake2b"] == _hash(path.read_bytes()))
