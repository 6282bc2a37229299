"""The second task of a part: what the screen refuses is dropped, small parts are joined, shards are written.

A part that stands alone and loses nothing is not written again: its files get a second name. What was staged is
removed once the receipt of the shard lies on the disk, so a crash in between loses nothing.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.errors import CorruptDataError
from gfm.runtime.config import Config
from ingest.duplicates import dropped_rows
from ingest.normalise import Kept
from ingest.outliers import (
    DISTANCE_LIMIT,
    ENERGY_LIMIT,
    FORCE_LIMIT,
    REASONS,
    STRESS_LIMIT,
    Limit,
    Screen,
    refusals,
    residual_energies,
)
from ingest.part import (
    STAGED,
    PartReceipt,
    at_work,
    explained,
    receipt_path,
    sums_path,
    write_json,
    write_rejects,
)
from ingest.plan import part_name
from ingest.readers.base import Reject
from ingest.recipe import Recipe
from ingest.sums import ENERGY, GridCounts, Sums, sums_of
from ingest.tables import Table
from store.integrity import check_checksums, replacing
from store.manifest import ShardReceipt
from store.shards import FORMATS, Shard
from store.writer import shard_directory, sizes_file, write_shard

__all__ = ["SettledShard", "ShardTask", "settle_shard", "settled_path"]

# Reason, limit and field of the table, for what is said of an outlier.
_OUTLIERS = {
    "force-outlier": (FORCE_LIMIT, "largest_force"),
    "stress-outlier": (STRESS_LIMIT, "largest_stress"),
    "distance-outlier": (DISTANCE_LIMIT, "shortest_distance"),
}


class SettledShard(Config):
    """What is known of parts whose structures lie in their final shard.

    Attributes:
        digest: Digest of the plan.
        name: Name of the shard: that of its first part.
        dataset: Name of the dataset.
        parts: Names of its parts.
        dropped: Structures that the screen refused, by reason.
        shard: What was written; None where nothing was left.
        sums: Statistics of what is in it (`ingest.sums.Sums`).
        residuals: Structures by energy per atom after the reference, on the bins of `ingest.sums.ENERGY`.
        limits: Robust limits that were applied, by name.
    """

    digest: str
    name: str
    dataset: str
    parts: list[str]
    dropped: dict[str, int]
    shard: ShardReceipt | None
    sums: dict[str, Any] | None
    residuals: dict[str, Any]
    limits: dict[str, Limit]


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs for one shard.

    Attributes:
        digest: Digest of the plan.
        recipe: The recipe, its output absolute.
        dataset: Name of the dataset.
        parts: Numbers of its parts in the plan, in order.
        screen: What decides about its structures.
    """

    digest: str
    recipe: Recipe
    dataset: str
    parts: Sequence[int]
    screen: Screen

    @property
    def name(self) -> str:
        """Name of the shard."""
        return part_name(self.parts[0])


@dataclass(frozen=True)
class _Screened:
    """One part, and why each of its structures is refused."""

    index: int
    table: Table
    codes: NDArray[np.uint8]

    @property
    def name(self) -> str:
        return part_name(self.index)

    @property
    def kept(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.codes == 0)


def settled_path(output: Path, name: str) -> Path:
    """Return where the receipt of a shard lies."""
    return output / "build" / "shards" / f"{name}.json"


def settle_shard(task: ShardTask) -> str:
    """Write one shard and its receipt; return its name.

    Raises:
        CorruptDataError: A staged file is not what was written; the next run reads its part again.
        ResourceError: The disk of the output is full.
    """
    with explained(task.recipe.output), at_work(task.recipe.output):
        _settle(task)
    return task.name


def _settle(task: ShardTask) -> None:
    output = task.recipe.output
    parts = []
    for index in task.parts:
        table = Table.load(output, part_name(index))
        parts.append(_Screened(index, table, refusals(table, output, index, task.screen)))
    rejects = [reject for part in parts for reject in _rejects(task, part)]
    sums: Sums | None = None
    for part in parts:  # one in memory at a time: there may be many parts
        if not part.codes.any():
            sums = _merged(sums, Sums.from_json(json.loads(sums_path(output, part.name).read_bytes())))
    if len(parts) == 1 and not rejects:
        shard: ShardReceipt | None = _named_again(task)
    else:
        kept = [_kept(task, part) for part in parts]
        for part, structures in zip(parts, kept, strict=True):
            if part.codes.any() and len(structures.batch):
                sums = _merged(sums, sums_of(structures, part.table.rows["split"][part.kept]))
        shard = _written(task, parts, kept)
    write_rejects(output / "rejects" / f"{task.name}.screened.jsonl", rejects, task.dataset)
    receipt = SettledShard(
        digest=task.digest,
        name=task.name,
        dataset=task.dataset,
        parts=[part.name for part in parts],
        dropped=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        shard=shard,
        sums=None if sums is None else sums.to_json(),
        residuals=_residuals(task, parts).to_json(),
        limits=task.screen.limits,
    )
    write_json(output, settled_path(output, task.name), receipt.model_dump(mode="json"))
    for part in parts:
        sizes_file(output / STAGED, part.name).unlink(missing_ok=True)
        staged = shard_directory(output / STAGED, part.name, task.recipe.format)
        if staged.exists():
            shutil.rmtree(staged)


def _merged(one: Sums | None, other: Sums) -> Sums:
    return other if one is None else one.merge(other)


def _staged(task: ShardTask, name: str) -> ShardReceipt:
    """Return the receipt of a staged shard whose files are what was written.

    Raises:
        CorruptDataError: They are not; the next run reads the part again.
    """
    path = receipt_path(task.recipe.output, name)
    receipt = PartReceipt.model_validate_json(path.read_bytes())
    assert receipt.shard is not None  # parts without structures are in no shard
    try:
        check_checksums(task.recipe.output / STAGED, receipt.shard.files)
    except CorruptDataError as error:
        path.unlink()
        raise CorruptDataError(
            f"{error.args[0].partition(';')[0]}; the machine may have lost power. Run the same command again: "
            "this part is then read anew"
        ) from error
    return receipt.shard


def _named_again(task: ShardTask) -> ShardReceipt:
    """Give the staged shard of the only part its final name too."""
    output, format = task.recipe.output, task.recipe.format
    receipt = _staged(task, task.name)
    shards = shard_directory(output, task.name, format).parent
    shards.mkdir(parents=True, exist_ok=True)
    with replacing(sizes_file(output, task.name)) as temporary:
        _link(sizes_file(output / STAGED, task.name), temporary)
    with replacing(shard_directory(output, task.name, format)) as temporary:
        shutil.copytree(
            shard_directory(output / STAGED, task.name, format), temporary, copy_function=_link
        )  # fmt: skip
    return receipt


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _kept(task: ShardTask, part: _Screened) -> Kept:
    """Read what is kept of a staged part, with what was measured of it."""
    staged, format = task.recipe.output / STAGED, task.recipe.format
    receipt = _staged(task, part.name)
    path = shard_directory(staged, part.name, format)
    shard = Shard(FORMATS.get(format).open(path, receipt.columns), receipt, str(path))
    batch = shard.read(0, len(shard)) if len(part.kept) == len(shard) else shard.take(part.kept)
    rows = part.table.rows[part.kept]
    return Kept(
        batch,
        [],
        np.load(sizes_file(staged, part.name))["num_edges"][part.kept].astype(np.int64),
        *(rows[name].astype(np.float64) for name in ("shortest_distance", "largest_force", "largest_stress")),
    )


def _written(task: ShardTask, parts: Sequence[_Screened], kept: Sequence[Kept]) -> ShardReceipt | None:
    """Write what is kept of all parts as one shard; None where nothing is."""
    batch = RaggedBatch.concatenate([structures.batch for structures in kept])
    if not len(batch):
        return None
    return write_shard(
        task.recipe.output, task.name, batch,
        num_edges=np.concatenate([structures.num_edges for structures in kept]),
        split=np.concatenate([part.table.rows["split"][part.kept] for part in parts]),
        dataset_names=[source.name for source in task.recipe.sources], format=task.recipe.format,
    )  # fmt: skip


def _residuals(task: ShardTask, parts: Sequence[_Screened]) -> GridCounts:
    """Count kept structures by energy per atom after the reference that the manifest states."""
    counts = np.zeros(ENERGY.size, dtype=np.int64)
    for part in parts:
        values = residual_energies(part.table, task.screen.stored)[part.kept]
        counts += ENERGY.count(values[np.isfinite(values)])
    return GridCounts(counts)


def _rejects(task: ShardTask, part: _Screened) -> Iterator[Reject]:
    """Yield a reject for each structure that the screen refuses, in the order of rows."""
    if not part.codes.any():
        return
    say = _sayings(task, part)
    for row in np.flatnonzero(part.codes).tolist():
        reason = REASONS[part.codes[row]]
        yield Reject(part.table.sources[row], reason, say[reason](row))


def _sayings(task: ShardTask, part: _Screened) -> dict[str, Callable[[int], str]]:
    """Return, by reason, what is said of a structure (its row)."""
    output, screen, rows = task.recipe.output, task.screen, part.table.rows
    dropped = dropped_rows(output, screen.duplicates, part.index)
    twins = dict(
        zip(dropped["row"].tolist(), zip(dropped["kept_part"], dropped["kept_row"], strict=True), strict=True)
    )
    tables = {part.index: part.table}

    def twin(row: int) -> str:
        index, kept_row = map(int, twins[row])
        if index not in tables:
            tables.clear()  # neighbouring rows mostly equal rows of one other part
            tables[index] = Table.load(output, part_name(index))
        return f"identical to {tables[index].sources[kept_row]}"

    residuals = residual_energies(part.table, screen.reference)

    def outlier(name: str, value: float) -> str:
        limit = screen.limits[name]
        low = "" if limit.low is None else f"{limit.low:.4g} <= "
        high = "" if limit.high is None else f" <= {limit.high:.4g}"
        return f"{value:.6g} {limit.unit}, expected {low}x{high} (median {limit.median:.4g})"

    def size(reason: str) -> Callable[[int], str]:
        name, field = _OUTLIERS[reason]
        return lambda row: outlier(name, float(rows[field][row]))

    return {
        "duplicate": twin,
        "energy-outlier": lambda row: outlier(ENERGY_LIMIT, float(residuals[row])),
        **{reason: size(reason) for reason in _OUTLIERS},
    }
