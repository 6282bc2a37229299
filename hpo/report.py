"""The report: one page on dataset, training, study and ensemble, made from the folders they left.

Each part is read by one function and left out with a sentence where its folder is not given or not there yet.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfm.runtime.pages import Card, Code, Page, Section, Table, write_page
from gfm.runtime.quantities import byte_count, duration, joule_count, listed
from gfm.runtime.runs import provenance
from hpo.calibrate import OUTPUTS
from hpo.report_ensemble import ensemble_sections, use_sections
from hpo.report_folders import EnsembleFolder, StudyFolder, TrainingFolder, read_json
from hpo.report_sections import dataset_sections, study_sections, training_sections

if TYPE_CHECKING:
    from store.dataset import Dataset

__all__ = ["build_report"]


def build_report(
    out: str | Path,
    *,
    ensemble: str | Path | None = None,
    dataset: str | Path | None = None,
    run: str | Path | None = None,
    study: str | Path | None = None,
) -> Path:
    """Write the report.

    Args:
        out: The HTML file.
        ensemble: Folder of an ensemble.
        dataset: Dataset; by default the one the ensemble was evaluated on.
        run: Run folder of a training.
        study: Output folder of a study; by default the one the ensemble was selected from.

    Returns:
        The file written.
    """
    made = EnsembleFolder.read(ensemble)
    if made is not None:
        dataset = dataset or made.content["dataset"]
        study = study or made.content["selection"]["study"]
    opened = _open(dataset)
    training = TrainingFolder.read(run)
    trials = StudyFolder.read(study)
    sections = [
        *dataset_sections(opened, dataset),
        *training_sections(training, run, opened),
        *study_sections(trials, study, made),
        *ensemble_sections(made, ensemble, opened),
        *use_sections(made, opened),
        _provenance_section(opened, training, made, study),
    ]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Page(
        title="From data to a calibrated ensemble",
        subtitle=_subtitle(opened, made),
        cards=_cards(opened, training, trials, made),
        sections=sections,
        footer=f"Written by gfm on {now}. The file is complete in itself and loads nothing from elsewhere.",
    )
    return write_page(page, out)


def _open(dataset: str | Path | None) -> "Dataset | None":
    from store import open_dataset

    return open_dataset(dataset) if dataset is not None and Path(dataset).is_dir() else None


def _subtitle(dataset: "Dataset | None", made: "EnsembleFolder | None") -> str:
    parts = []
    if dataset is not None:
        names = dataset.dataset_names
        parts.append(f"{len(dataset):,} structures of {listed(names)}")
    if made is not None:
        parts.append(f"an ensemble of {len(made.content['members'])} models with calibrated uncertainty")
    return "; ".join(parts).capitalize() + "." if parts else "Nothing was given to report on."


def _cards(
    dataset: "Dataset | None",
    training: TrainingFolder | None,
    study: StudyFolder | None,
    made: EnsembleFolder | None,
) -> list[Card]:
    cards = []
    if dataset is not None:
        rejected = sum(dataset.manifest.rejects.values())
        size = byte_count(dataset.manifest.bytes)
        note = f"{dataset.manifest.atoms:,} atoms, {size}; {rejected:,} records rejected"
        cards.append(Card("Structures", f"{len(dataset):,}", note=note))
    if training is not None and training.records:
        seconds = sum(record.get("seconds") or 0.0 for record in training.records)
        joules, method = training.summary.get("joules"), training.summary.get("joules_method")
        note = f"{joule_count(joules)} ({method})" if joules is not None else ""
        cards.append(Card("Training time", duration(seconds), note=note))
    if study is not None and (best := study.summary.get("best")):
        states = study.summary["trials"]
        note = f"of {sum(states.values())} trials, {states.get('pruned', 0)} discarded early"
        cards.append(Card("Best trial", f"#{best['trial']}", f"loss {best['value']:.3g}", note))
    if made is not None and made.scores is not None:
        comparison = made.scores["comparison"]
        for key, label, unit, digits in (
            ("energy_mae_mev_per_atom", "Ensemble energy MAE", "meV/atom", ".1f"),
            ("forces_mae_ev_per_angstrom", "Ensemble forces MAE", "eV/Å", ".3f"),
        ):
            mean, single = comparison["ensemble"][key], comparison["single_best"][key]
            if mean is not None:
                cards.append(
                    Card(label, f"{mean:{digits}}", unit, f"best single member {single:{digits}}, on test")
                )
        coverages = [
            (output, made.scores[output]["pooled"]["after"]["coverage"]["90%"])
            for output in OUTPUTS
            if output in made.scores and made.scores[output]["pooled"]["after"]["count"]
        ]
        if coverages:
            note = "energy / forces: share of test values inside their 90 % interval"
            cards.append(
                Card("Coverage", " / ".join(f"{100 * share:.0f} %" for _, share in coverages), note=note)
            )
    return cards


def _provenance_section(
    dataset: "Dataset | None",
    training: TrainingFolder | None,
    made: EnsembleFolder | None,
    study: str | Path | None,
) -> Section:
    facts = provenance()
    rows = [
        ["written", facts["time"]],
        ["host", f"{facts['host']} ({facts['platform']})"],
        ["gfm", f"{facts['version']}, commit {facts['git'] or 'unknown'}"],
        ["python", facts["python"]],
        ["packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)],
    ]
    if dataset is not None:
        rows += [["dataset", str(dataset.path)], ["content hash", dataset.manifest.content_hash]]
    starts = []
    if training is not None:
        rows.append(["training run", str(training.folder.path)])
        starts = (read_json(training.folder / "provenance.json") or {}).get("starts", [])
    if study is not None:
        rows.append(["study", str(study)])
        starts += (read_json(Path(study) / "provenance.json") or {}).get("starts", [])
    if made is not None:
        rows.append(["ensemble", str(made.directory)])
    commands = "\n".join(f"# {start['time']} on {start['host']}\n{' '.join(start['argv'])}" for start in starts)
    blocks: list[Any] = [Table(["what", "value"], rows)]
    if commands:
        blocks.append(Code(commands))
    return Section("Provenance", blocks)
