"""From receipts to the manifest: statistics merged in the order of the plan, energy references, the commit."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gfm.data.references import EnergyReference
from gfm.data.splits import SPLITS
from gfm.errors import MissingDataError
from gfm.runtime.runs import provenance
from ingest.outliers import Limit
from ingest.part import receipt_path
from ingest.plan import Plan
from ingest.settle import SettledShard, settled_path
from ingest.sums import ENERGY, SIZE, GridCounts, Sums
from store.manifest import DatasetEntry, Manifest, Reference, ShardReceipt, Splits
from store.writer import commit_dataset

__all__ = ["commit"]

_LOG = logging.getLogger(__name__)
# eV/atom; interaction energies of published sets scatter by less than 1.
_RESIDUAL = 10.0


@dataclass
class _Merged:
    """What the receipts of one dataset add up to."""

    sums: Sums | None = None
    residuals: GridCounts | None = None
    rejects: Counter[str] = field(default_factory=Counter)
    limits: dict[str, Limit] = field(default_factory=dict)
    seconds: float = 0.0
    nbytes: int = 0
    parts: int = 0

    def add_part(self, receipt: dict[str, Any], nbytes: int) -> None:
        """Add a part that was read."""
        self.rejects.update(receipt["rejects"])
        self.seconds += receipt["seconds"]
        self.nbytes += nbytes
        self.parts += 1

    def add_shard(self, shard: SettledShard) -> None:
        """Add a settled shard."""
        self.rejects.update(shard.dropped)
        self.limits = shard.limits
        residuals = GridCounts.from_json(shard.residuals)
        self.residuals = residuals if self.residuals is None else self.residuals.merge(residuals)
        if shard.sums is not None:
            sums = Sums.from_json(shard.sums)
            self.sums = sums if self.sums is None else self.sums.merge(sums)


def commit(plan: Plan, shards: Sequence[str], started: datetime) -> Manifest:
    """Merge the receipts in the order of the plan and write the manifest.

    Args:
        plan: The plan; all its parts are read.
        shards: Names of the settled shards, in order.
        started: When this run began.

    Raises:
        MissingDataError: Not one structure was accepted.
    """
    recipe = plan.recipe
    merged, receipts = _merge(plan, shards)
    if not receipts:
        raise MissingDataError(
            f"{recipe.output}: not one structure was accepted; see {recipe.output / 'rejects'} for the reasons"
        )
    datasets, statistics = [], {}
    for source, reader in zip(recipe.sources, plan.readers, strict=True):
        about, own = reader.about(), merged[source.name]
        reference = Reference()
        if own.sums is None:
            _LOG.warning("%s: not one structure was accepted", source.name)
        else:
            reference = _reference(source.name, own.sums, own.sums.equations.solve())
            statistics[source.name] = _statistics(own.sums, own)
        datasets.append(
            DatasetEntry(
                name=source.name,
                theory=about.theory if source.theory is None else source.theory,
                licence=about.licence if source.licence is None else source.licence,
                doi=about.doi if source.doi is None else source.doi,
                source=source.path,
                energy_kind=about.energy_kind,
                rejected=dict(sorted(own.rejects.items())),
                reference=reference,
            )
        )
    return commit_dataset(
        recipe.output,
        receipts,
        format=recipe.format,
        datasets=datasets,
        edges_cutoff=recipe.edges_cutoff,
        splits=Splits(fractions=recipe.split.fractions, seed=recipe.split.seed),
        statistics=statistics,
        provenance={
            **provenance(),
            "started": started.isoformat(timespec="seconds"),
            "recipe": recipe.content(),
            "plan": plan.digest,
            "parts": len(plan.parts),
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
            "timing": {
                name: {"cpu_seconds": round(own.seconds, 3), "bytes": own.nbytes, "parts": own.parts}
                for name, own in merged.items()
            },
        },
    )


def _merge(plan: Plan, shards: Sequence[str]) -> tuple[dict[str, _Merged], list[ShardReceipt]]:
    """Add the receipts up by dataset, one in memory at a time; return also those of the store."""
    output = plan.recipe.output
    merged = {source.name: _Merged() for source in plan.recipe.sources}
    for planned in plan.parts:
        receipt = _read_json(receipt_path(output, planned.name))
        merged[receipt["dataset"]].add_part(receipt, planned.part.nbytes)
    receipts = []
    for name in shards:
        shard = SettledShard.model_validate_json(settled_path(output, name).read_bytes())
        merged[shard.dataset].add_shard(shard)
        if shard.shard is not None:
            receipts.append(shard.shard)
    return merged, receipts


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def _reference(name: str, sums: Sums, fit: EnergyReference) -> Reference:
    """Return the manifest's form of a fitted reference, and say what it does not determine."""
    from ase.data import chemical_symbols

    unseen = [chemical_symbols[z] for z, count in enumerate(sums.atoms.values) if count and not fit.seen[z]]
    if fit.rank < fit.num_elements:
        _LOG.warning(
            "%s: the compositions of the training split have rank %d for %d elements; single reference "
            "energies are not unique (those of least norm are used), their sums over compositions are",
            name, fit.rank, fit.num_elements,
        )  # fmt: skip
    if unseen:
        _LOG.warning("%s: not in the training split, so without reference: %s", name, ", ".join(unseen))
    if fit.residual_std > _RESIDUAL:
        _LOG.warning(
            "%s: energies scatter by %.3g eV/atom about their linear reference; look for outliers, for mixed "
            "units, for mixed levels of theory", name, fit.residual_std,
        )  # fmt: skip
    return Reference(
        values={chemical_symbols[z]: float(fit.values[z]) for z in fit.seen.nonzero()[0]},
        rank=fit.rank,
        num_elements=fit.num_elements,
        unseen=unseen,
        residual_std=fit.residual_std,
        count=fit.count,
    )


def _statistics(sums: Sums, own: _Merged) -> dict[str, Any]:
    """Return the statistics of one dataset for the manifest, with elements by symbol."""
    from ase.data import chemical_symbols

    forces = sums.element_forces.values
    elements = {
        chemical_symbols[z]: {
            "atoms": int(count),
            "structures": int(sums.structures.values[z]),
            **({"force_norm": forces[z].to_json()} if z in forces else {}),
        }
        for z, count in enumerate(sums.atoms.values)
        if count
    }
    histograms = {
        "num_atoms_histogram": sums.atom_histogram,
        "force_histogram": sums.force_histogram,
        "neighbors_histogram": sums.neighbor_histogram,
        "shortest_distance_histogram": sums.distance_histogram,
        "energy_per_atom_histogram": sums.energies.histogram(ENERGY.edges()),
        "largest_force_histogram": sums.largest_forces.histogram(SIZE.edges()),
        "stress_histogram": sums.largest_stresses.histogram(SIZE.edges()),
    }
    if own.residuals is not None:
        histograms["energy_residual_histogram"] = own.residuals.histogram(ENERGY.edges())
    return {
        "splits": dict(zip(SPLITS, sums.splits.to_json(), strict=True)),
        "elements": elements,
        "num_atoms": sums.num_atoms.to_json(),
        "num_edges": sums.num_edges.to_json(),
        "energy_per_atom": sums.energy_per_atom.to_json(),
        "force_component_train": sums.force_component.to_json(),
        **{
            name: histogram.to_json()
            for name, histogram in histograms.items()
            if sum(histogram.counts) + histogram.below + histogram.above
        },
        "limits": {name: limit.model_dump(mode="json") for name, limit in own.limits.items()},
    }
