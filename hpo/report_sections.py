"""Sections of the report on dataset, training and study."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gfm.runtime.pages import ElementTable, Group, Image, Notice, Section, Table, Text
from gfm.runtime.quantities import joule_count, number, setting
from hpo import figures
from hpo.report_folders import EnsembleFolder, StudyFolder, TrainingFolder

if TYPE_CHECKING:
    from store.dataset import Dataset

__all__ = ["absent", "dataset_sections", "study_sections", "training_sections"]

# Elements are counted over at most about this many atoms.
_COUNTED_ATOMS = 50_000_000


def dataset_sections(dataset: "Dataset | None", asked: str | Path | None) -> list[Section]:
    """Return counts, rejects, elements and sizes."""
    if dataset is None:
        return [Section("Dataset", [absent("dataset", asked, "gfm ingest run")])]
    manifest = dataset.manifest
    index, split = np.asarray(dataset.dataset_index), np.asarray(dataset.split)
    rows, rejects = [], []
    for place, entry in enumerate(manifest.datasets):
        counts = np.bincount(split[index == place], minlength=3)
        rows.append(
            [entry.name, entry.theory or "–", f"{entry.structures:,}", f"{entry.atoms:,}",
             *(f"{count:,}" for count in counts), f"{sum(entry.rejected.values()):,}"]
        )  # fmt: skip
        rejects += [[entry.name, reason, f"{count:,}"] for reason, count in sorted(entry.rejected.items())]
    counts = np.bincount(split, minlength=3)
    total = [f"{len(dataset):,}", f"{manifest.atoms:,}", *(f"{count:,}" for count in counts)]
    rows.append(["all", "", *total, f"{sum(manifest.rejects.values()):,}"])
    columns = ["dataset", "theory", "structures", "atoms", "train", "validation", "test", "rejected"]
    elements, complete = _count_elements(dataset)
    caption = f"Structures that contain each element: {len(elements)} elements."
    if not complete:
        caption = f"Elements of a sample of shards ({len(elements)} elements); counts are of that sample."
    names = dataset.dataset_names
    atoms = {name: np.asarray(dataset.num_atoms)[index == k] for k, name in enumerate(names)}
    edges = {name: np.asarray(dataset.num_edges)[index == k] for k, name in enumerate(names)}
    theories = {entry.theory for entry in manifest.datasets if entry.theory}
    blocks: list[Any] = [
        Table(columns, rows, strong=[len(rows) - 1]),
        Text(
            f"Stored as {manifest.format} in {dataset.num_shards} shards, "
            f"{manifest.bytes / max(len(dataset), 1):,.0f} bytes a structure. Splits keep structures of one "
            "group (formula, molecule, material) together."
        ),
    ]
    if len(theories) > 1:
        blocks.append(
            Text(
                f"The labels come from {len(theories)} levels of theory; energies are learnt relative to "
                "linear reference energies fitted for each dataset."
            )
        )
    if rejects:
        blocks.append(Table(["dataset", "reason", "records"], rejects, caption="Rejected records by reason"))
    blocks += [
        ElementTable(elements, caption),
        Group(
            [
                figures.size_histogram(atoms, "atoms in a structure", "Sizes of structures."),
                figures.size_histogram(
                    edges, "edges of a structure",
                    f"Edges within {manifest.edges_cutoff:g} Å: what a training step costs.",
                ),
            ]
        ),
    ]  # fmt: skip
    return [Section("Dataset", blocks)]


def _count_elements(dataset: "Dataset") -> tuple[dict[str, int], bool]:
    """Return how many structures contain each element, and whether all shards were counted."""
    from ase.data import chemical_symbols

    atoms = max(1, dataset.manifest.atoms)
    step = max(1, -(-atoms // _COUNTED_ATOMS))
    totals = np.zeros(119, dtype=np.int64)
    for shard in range(0, dataset.num_shards, step):
        batch = dataset.shard(shard)
        owner = np.repeat(np.arange(len(batch)), batch.num_atoms)
        pairs = np.unique(owner * 119 + batch.columns["numbers"])
        totals += np.bincount(pairs % 119, minlength=119)
    return {chemical_symbols[z]: int(totals[z]) for z in np.flatnonzero(totals)}, step == 1


def training_sections(
    training: TrainingFolder | None, asked: str | Path | None, dataset: "Dataset | None"
) -> list[Section]:
    """Return errors before and after, by epoch and dataset."""
    if training is None or not training.records:
        return [Section("Training", [absent("training run", asked, "gfm train run")])]
    records, summary = training.records, training.summary
    first, best = records[0]["validation"], min(records, key=lambda record: record["validation"]["loss"])
    rows = []
    order = list(best["validation"].get("datasets", {}))
    for name in [*order, "all"]:
        before, after = (v if name == "all" else v["datasets"][name] for v in (first, best["validation"]))
        rows.append(
            [name, f"{after.get('structures', 0):,}",
             *(number(v.get("energy_mae_mev_per_atom"), 1) for v in (before, after)),
             *(number(v.get("forces_mae_ev_per_angstrom"), 4) for v in (before, after))]
        )  # fmt: skip
    columns = [
        "dataset",
        "structures",
        "energy MAE before",
        "energy MAE best",
        "forces MAE before",
        "forces MAE best",
    ]
    speeds = [record["structures_per_second"] for record in records if record.get("structures_per_second")]
    ranks = records[-1].get("ranks", 1)
    facts = [f"{ranks} rank{'s' * (ranks > 1)} reading from the {records[-1].get('store', '?')} store"]
    if speeds:
        facts.append(f"{np.median(speeds):,.0f} structures a second")
    if summary.get("parameters"):
        facts.append(f"{summary['parameters']:,} parameters")
    if summary.get("joules") is not None:
        facts.append(f"{joule_count(summary['joules'])} of energy ({summary.get('joules_method')})")
    parity = training.folder / "plots" / "parity.png"
    pictures = [Image(parity, "Validation predictions of this run's best model.")] if parity.is_file() else []
    blocks: list[Any] = [
        Text(f"{len(records) - 1} epochs; the best was epoch {best['epoch']}. {', '.join(facts)}."),
        Table(
            columns, rows, strong=[len(rows) - 1],
            caption="Validation errors before training and at the best epoch; energy in meV/atom, forces "
            "in eV/Å",
        ),
        figures.errors_by_epoch(records, dataset.dataset_names if dataset is not None else order),
        Group([figures.loss_by_epoch(records)]),
        *pictures,
    ]  # fmt: skip
    return [Section("Training", blocks)]


def study_sections(
    study: StudyFolder | None, asked: str | Path | None, made: EnsembleFolder | None
) -> list[Section]:
    """Return history, curves and the table of trials."""
    if study is None:
        return [Section("Study", [absent("study", asked, "gfm hpo run")])]
    summary, trials = study.summary, study.trials
    states = summary.get("trials", {})
    trained, saved = summary.get("epochs_trained"), summary.get("epochs_saved")
    told = [f"{states.get('complete', 0)} trials complete, {states.get('pruned', 0)} discarded early"]
    if failed := states.get("fail", 0):
        told.append(f"{failed} failed")
    if trained and saved is not None:
        told.append(f"{trained} epochs trained and {saved} saved by discarding ({study.discard})")
    if summary.get("joules"):
        told.append(f"{joule_count(summary['joules'])} in all ({summary.get('joules_method')})")
    members = [] if made is None else [member["trial"] for member in made.content["members"]]
    parameters = sorted({name for trial in trials for name in trial["params"]})
    rows = [
        [str(trial["trial"]), figures.STATE_NAMES.get(trial["state"], trial["state"].lower()),
         number(trial["value"], 4), str(trial["epochs"]), number(trial["joules"], 0),
         *(setting(trial["params"].get(name)) for name in parameters)]
        for trial in sorted(trials, key=lambda t: (t["value"] is None, t["value"]))
    ]  # fmt: skip
    strong = [place for place, row in enumerate(rows) if int(row[0]) in members]
    columns = ["trial", "state", "validation loss", "epochs", "J", *parameters]
    best = summary.get("best")
    blocks: list[Any] = [Text(f"{', '.join(told)}. Sampler: {study.sampler}.")]
    if best:
        settings = ", ".join(f"{name} = {setting(value)}" for name, value in best["params"].items())
        blocks.append(
            Text(
                f"The best trial is {best['trial']}, with a validation loss of {best['value']:.4g}: {settings}."
            )
        )
    blocks.append(Group([figures.study_history(trials), figures.trial_curves(trials)]))
    note = "; members of the ensemble in bold" if members else ""
    blocks.append(
        Table(columns, rows, strong=strong, caption=f"Trials by validation loss{note}", folded=len(rows) > 25)
    )
    return [Section("Study", blocks)]


def absent(what: str, asked: str | Path | None, verb: str) -> Notice:
    """Return why a section is empty."""
    if asked is None:
        return Notice(f"No {what} was given, so this part is left out; `{verb}` makes one.")
    return Notice(f"No {what} was found in {asked}, so this part is left out; `{verb}` makes one.")
