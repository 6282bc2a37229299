"""From receipts to the manifest: statistics merged in the order of the plan, energy references, the commit."""

import logging
from collections.abc import Sequence
from typing import Any

from gfm.data.references import EnergyReference
from gfm.data.splits import SPLITS
from gfm.errors import MissingDataError
from gfm.runtime.runs import provenance
from ingest.part import PartReceipt
from ingest.plan import Plan
from ingest.sums import Sums
from store.manifest import DatasetEntry, Manifest, Reference, Splits
from store.writer import commit_dataset

__all__ = ["commit"]

_LOG = logging.getLogger(__name__)
# eV/atom; interaction energies of published sets scatter by less than 1.
_RESIDUAL = 10.0


def commit(plan: Plan, receipts: Sequence[PartReceipt], seconds: float) -> Manifest:
    """Merge the receipts in the order of the plan and write the manifest.

    Raises:
        MissingDataError: Not one structure was accepted.
    """
    recipe = plan.recipe
    if not any(receipt.structures for receipt in receipts):
        raise MissingDataError(
            f"{recipe.output}: not one structure was accepted; see {recipe.output / 'rejects'} for the reasons"
        )
    datasets, statistics = [], {}
    for source, reader in zip(recipe.sources, plan.readers, strict=True):
        about = reader.about()
        own = [receipt for receipt in receipts if receipt.dataset == source.name]
        rejected: dict[str, int] = {}
        for receipt in own:
            for reason, count in receipt.rejects.items():
                rejected[reason] = rejected.get(reason, 0) + count
        sums: Sums | None = None
        for receipt in own:
            if receipt.sums is not None:
                part = Sums.from_json(receipt.sums)
                sums = part if sums is None else sums.merge(part)
        reference = Reference()
        if sums is None:
            _LOG.warning("%s: not one structure was accepted", source.name)
        else:
            reference = _reference(source.name, sums, sums.equations.solve())
            statistics[source.name] = _statistics(sums)
        datasets.append(
            DatasetEntry(
                name=source.name,
                theory=about.theory if source.theory is None else source.theory,
                licence=about.licence if source.licence is None else source.licence,
                doi=about.doi if source.doi is None else source.doi,
                source=source.path,
                energy_kind=about.energy_kind,
                rejected=dict(sorted(rejected.items())),
                reference=reference,
            )
        )
    return commit_dataset(
        recipe.output,
        [receipt.shard for receipt in receipts if receipt.shard is not None],
        format=recipe.format,
        datasets=datasets,
        edges_cutoff=recipe.edges_cutoff,
        splits=Splits(fractions=recipe.split.fractions, seed=recipe.split.seed),
        statistics=statistics,
        provenance={
            **provenance(),
            "recipe": recipe.content(),
            "plan": plan.digest,
            "parts": len(plan.parts),
            "seconds": round(seconds, 3),
        },
    )


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


def _statistics(sums: Sums) -> dict[str, Any]:
    """Return the statistics of one dataset for the manifest, with elements by symbol."""
    from ase.data import chemical_symbols

    elements = {
        chemical_symbols[z]: {"atoms": int(count), "structures": int(sums.structures.values[z])}
        for z, count in enumerate(sums.atoms.values)
        if count
    }
    return {
        "splits": dict(zip(SPLITS, sums.splits.to_json(), strict=True)),
        "elements": elements,
        "num_atoms": sums.num_atoms.to_json(),
        "num_edges": sums.num_edges.to_json(),
        "energy_per_atom": sums.energy_per_atom.to_json(),
        "force_component_train": sums.force_component.to_json(),
        "num_atoms_histogram": sums.atom_histogram.to_json(),
        "force_histogram": sums.force_histogram.to_json(),
    }
