"""Between reading and writing: find duplicates, settle robust limits, fit references without what they refuse.

Everything comes from the tables of the parts, in passes of a few tasks over them; only counts and sums come
back. Since those are exact, the outcome depends on the structures alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ingest.duplicates import buckets_of, find_duplicates
from ingest.flow import Job, run_all, task_name
from ingest.outliers import (
    ENERGY_LIMIT,
    Chunk,
    Limit,
    References,
    Screen,
    energy_limit,
    fit_kept,
    residuals,
    size_limits,
    survey,
)
from ingest.plan import Plan
from ingest.recipe import Outliers

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Stage", "screen_all"]

# Is told the name of a stage and its number of tasks; returns what is called after each of them.
Stage = Callable[[str, int], Callable[[], None]]

_ROUNDS = 3  # of fitting references without outliers and looking for outliers again
_CHUNK_STRUCTURES = 1_000_000
_CHUNK_PARTS = 256


@dataclass
class _Dataset:
    """One dataset on its way to a `Screen`.

    Attributes:
        name: Its name.
        chunks: Its parts, by task.
        reference: What energies are judged by.
        stored: What is fitted to those kept.
        known: Digests of the compositions in its training split; None for very many.
        limits: Robust limits by name.
        refused: Structures refused so far.
        settled: Whether another round would refuse the same.
    """

    name: str
    chunks: list[Chunk]
    reference: References = field(default_factory=References)
    stored: References = field(default_factory=References)
    known: frozenset[int] | None = None
    limits: dict[str, Limit] = field(default_factory=dict)
    refused: int = 0
    settled: bool = True


def screen_all(client: "Client", plan: Plan, structures: NDArray[np.int64], stage: Stage) -> dict[str, Screen]:
    """Return what decides about the structures of each dataset, by name.

    Args:
        client: Where to compute.
        plan: The plan.
        structures: Structures that each part accepted, in the plan's order (P,).
        stage: Is told of progress.
    """
    output, outliers = plan.recipe.output.absolute(), plan.recipe.filters.outliers
    drop = plan.recipe.duplicates == "drop"
    duplicates = _duplicates(client, plan, structures, stage) if drop else []
    sources = np.array([planned.source for planned in plan.parts])
    datasets = [
        _Dataset(
            source.name, list(_chunks(output, np.flatnonzero((sources == i) & (structures > 0)), structures))
        )
        for i, source in enumerate(plan.recipe.sources)
    ]
    passes = _Passes(client, duplicates, stage)
    counted = passes.over(datasets, survey, "survey")
    for dataset in (dataset for dataset in datasets if dataset.name in counted):
        dataset.known = counted[dataset.name].known
        dataset.stored = dataset.reference = References.of(counted[dataset.name].equations, dataset.known)
        dataset.settled = outliers is None
        dataset.limits = {} if outliers is None else size_limits(counted[dataset.name], outliers)
    for _ in range(_ROUNDS):
        unsettled = [dataset for dataset in datasets if not dataset.settled]
        if unsettled and outliers is not None:
            _round(passes, unsettled, outliers)
    return {dataset.name: passes.screen(dataset) for dataset in datasets}


@dataclass(frozen=True)
class _Passes:
    """Passes over the tables of datasets."""

    client: "Client"
    duplicates: list[str]
    stage: Stage

    def screen(self, dataset: _Dataset) -> Screen:
        """Return what decides about a dataset's structures, as far as is known."""
        return Screen(
            reference=dataset.reference,
            stored=dataset.stored,
            limits=dataset.limits,
            duplicates=self.duplicates,
        )

    def over(self, datasets: Sequence[_Dataset], function: Callable[..., Any], name: str) -> dict[str, Any]:
        """Call a function on all chunks of datasets, and merge what it returns by dataset."""
        chunks = [(dataset, chunk) for dataset in datasets for chunk in dataset.chunks]
        jobs = [
            Job(
                task_name(dataset.name, name, number),
                f"screening {dataset.name}",
                (chunk, self.screen(dataset)),
                dataset.name,
            )
            for number, (dataset, chunk) in enumerate(chunks)
        ]
        advance = self.stage(name, len(jobs))
        merged: dict[str, Any] = {}
        for job, result in run_all(self.client, function, jobs):
            merged[job.dataset] = merged[job.dataset].merge(result) if job.dataset in merged else result
            advance()
        return merged


def _round(passes: _Passes, datasets: Sequence[_Dataset], outliers: Outliers) -> None:
    """Settle limits of energy about the references fitted last, and fit references to what they keep."""
    for dataset in datasets:
        dataset.reference = dataset.stored
        dataset.limits.pop(ENERGY_LIMIT, None)
    if outliers.energy is not None:
        counts = passes.over(datasets, residuals, "residuals")
        for dataset in datasets:
            if (limit := energy_limit(counts[dataset.name], outliers.energy)) is not None:
                dataset.limits[ENERGY_LIMIT] = limit
    fits = passes.over(datasets, fit_kept, "references")
    for dataset in datasets:
        fit = fits[dataset.name]
        dataset.stored = References.of(fit.equations, dataset.known)
        dataset.settled = fit.refused == dataset.refused
        dataset.refused = fit.refused


def _duplicates(client: "Client", plan: Plan, structures: NDArray[np.int64], stage: Stage) -> list[str]:
    """Return the files that name duplicates, relative to the output."""
    names = [source.name for source in plan.recipe.sources]
    ranks = {name: rank for rank, name in enumerate(sorted(names))}
    parts = [(planned.index, ranks[names[planned.source]]) for planned in compress(plan.parts, structures > 0)]
    buckets = buckets_of(plan.recipe.output.absolute(), parts, int(structures.sum()))
    advance = stage("duplicates", len(buckets))
    found = []
    jobs = [
        Job(task_name("duplicates", "find", bucket.number), "looking for duplicates", (bucket,))
        for bucket in buckets
    ]
    for _, file in run_all(client, find_duplicates, jobs):
        if file is not None:
            found.append(file)
        advance()
    return sorted(found)


def _chunks(output: Path, parts: NDArray[np.int64], structures: NDArray[np.int64]) -> Iterator[Chunk]:
    """Cut parts (their numbers) into chunks of some structures and some parts at most."""
    some: list[int] = []
    total = 0
    for part in parts.tolist():
        if some and (total + structures[part] > _CHUNK_STRUCTURES or len(some) == _CHUNK_PARTS):
            yield Chunk(output, tuple(some))
            some, total = [], 0
        some.append(part)
        total += int(structures[part])
    if some:
        yield Chunk(output, tuple(some))
