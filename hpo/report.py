"""The report: one page on dataset, training, study and ensemble, made from the folders they left.

Each part is read by one function and left out with a sentence where its folder is not given or not there yet.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfm.runtime.pages import (
    Card,
    Code,
    ElementTable,
    Group,
    Notice,
    Page,
    Section,
    Table,
    Text,
    write_page,
)
from gfm.runtime.runs import RunFolder, provenance
from hpo import figures
from hpo.calibrate import OUTPUTS
from hpo.ensemble import CURVES_FILE, SCORES_FILE
from hpo.select import read_ensemble
from hpo.spread import read_arrays

if TYPE_CHECKING:
    from store.dataset import Dataset

__all__ = ["build_report"]

# Elements are counted over at most this many atoms; parity plots show at most so many structures a dataset.
_COUNTED_ATOMS = 50_000_000
_PARITY_STRUCTURES = 300
_PARITY_FORCES = 1500

_TITLES = {"energy": "Energy per atom", "forces": "Force components"}
_SHOWN = {"energy": ("meV/atom", 1000.0), "forces": ("eV/Å", 1.0)}


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
    made = _Ensemble.read(ensemble)
    if made is not None:
        dataset = dataset or made.content["dataset"]
        study = study or made.content["selection"]["study"]
    opened = _open(dataset)
    training = _Training.read(run)
    trials = _Study.read(study)
    sections = [
        *_dataset_sections(opened, dataset),
        *_training_sections(training, run),
        *_study_sections(trials, study, made),
        *_ensemble_sections(made, ensemble, opened),
        *_use_sections(made, opened),
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


class _Ensemble:
    """What an ensemble's folder holds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.content = read_ensemble(directory)
        self.scores = _json(directory / SCORES_FILE)
        self.curves = _json(directory / CURVES_FILE)

    @classmethod
    def read(cls, directory: str | Path | None) -> "_Ensemble | None":
        return None if directory is None else cls(Path(directory))


class _Training:
    """What a run folder holds."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.records = self.folder.records()
        self.summary = self.folder.summary() or {}

    @classmethod
    def read(cls, path: str | Path | None) -> "_Training | None":
        return cls(Path(path)) if path is not None and (Path(path) / "metrics.jsonl").is_file() else None


class _Study:
    """What a study's folder and storage hold."""

    def __init__(self, output: Path) -> None:
        from hpo.claims import counted, open_study
        from hpo.study import read_study

        config = read_study(output)
        self.epochs, self.discard, self.sampler = config.epochs, config.discard.kind, config.sampler.kind
        self.summary = RunFolder(output).summary() or {}
        with open_study(config) as opened:
            self.trials = [
                {
                    "trial": trial.number,
                    "state": trial.state.name,
                    "value": trial.value
                    if trial.value is not None
                    else next(reversed(sorted(trial.intermediate_values.items())), (0, None))[1],
                    "curve": dict(trial.intermediate_values),
                    "params": dict(trial.params),
                    "joules": trial.user_attrs.get("joules"),
                    "epochs": trial.user_attrs.get("epochs", max(trial.intermediate_values, default=0)),
                    "reason": trial.user_attrs.get("reason", ""),
                }
                for trial in counted(opened.trials())
            ]

    @classmethod
    def read(cls, output: str | Path | None) -> "_Study | None":
        return cls(Path(output)) if output is not None and (Path(output) / "study.yaml").is_file() else None


def _open(dataset: str | Path | None) -> "Dataset | None":
    from store import open_dataset

    return open_dataset(dataset) if dataset is not None and Path(dataset).is_dir() else None


def _json(path: Path) -> dict[str, Any] | None:
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return content


def _subtitle(dataset: "Dataset | None", made: "_Ensemble | None") -> str:
    parts = []
    if dataset is not None:
        names = dataset.dataset_names
        parts.append(f"{len(dataset):,} structures of {_listed(names)}")
    if made is not None:
        parts.append(f"an ensemble of {len(made.content['members'])} models with calibrated uncertainty")
    return "; ".join(parts).capitalize() + "." if parts else "Nothing was given to report on."


def _cards(
    dataset: "Dataset | None", training: _Training | None, study: _Study | None, made: _Ensemble | None
) -> list[Card]:
    cards = []
    if dataset is not None:
        rejected = sum(dataset.manifest.rejects.values())
        note = (
            f"{dataset.manifest.atoms:,} atoms, {_bytes(dataset.manifest.bytes)}; {rejected:,} records rejected"
        )
        cards.append(Card("Structures", f"{len(dataset):,}", note=note))
    if training is not None and training.records:
        seconds = sum(record.get("seconds") or 0.0 for record in training.records)
        joules, method = training.summary.get("joules"), training.summary.get("joules_method")
        note = f"{_joules(joules)} ({method})" if joules is not None else ""
        cards.append(Card("Training time", _duration(seconds), note=note))
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


def _dataset_sections(dataset: "Dataset | None", asked: str | Path | None) -> list[Section]:
    if dataset is None:
        return [Section("Dataset", [_absent("dataset", asked, "gfm ingest run")])]
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
            f"{manifest.bytes / max(len(dataset), 1):,.0f} bytes a structure. Splits keep structures of one group "
            "(formula, molecule, material) together."
        ),
    ]
    if len(theories) > 1:
        blocks.append(
            Text(
                f"The labels come from {len(theories)} levels of theory; energies are learnt relative to linear "
                "reference energies fitted for each dataset."
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


def _training_sections(training: _Training | None, asked: str | Path | None) -> list[Section]:
    if training is None or not training.records:
        return [Section("Training", [_absent("training run", asked, "gfm train run")])]
    records, summary = training.records, training.summary
    first, best = records[0]["validation"], min(records, key=lambda record: record["validation"]["loss"])
    rows = []
    for name in [*best["validation"].get("datasets", {}), "all"]:
        before, after = (v if name == "all" else v["datasets"][name] for v in (first, best["validation"]))
        rows.append(
            [name, f"{after.get('structures', 0):,}",
             *(_number(v.get("energy_mae_mev_per_atom"), 1) for v in (before, after)),
             *(_number(v.get("forces_mae_ev_per_angstrom"), 4) for v in (before, after))]
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
    facts = [f"{records[-1].get('ranks', 1)} ranks reading from the {records[-1].get('store', '?')} store"]
    if speeds:
        facts.append(f"{np.median(speeds):,.0f} structures a second")
    if summary.get("parameters"):
        facts.append(f"{summary['parameters']:,} parameters")
    if summary.get("joules") is not None:
        facts.append(f"{_joules(summary['joules'])} of energy ({summary.get('joules_method')})")
    blocks: list[Any] = [
        Text(f"{len(records) - 1} epochs; the best was epoch {best['epoch']}. {', '.join(facts)}.".capitalize()),
        Table(
            columns, rows, strong=[len(rows) - 1],
            caption="Validation errors before training and at the best epoch; energy in meV/atom, forces in eV/Å",
        ),
        figures.errors_by_epoch(records),
        figures.loss_by_epoch(records),
    ]  # fmt: skip
    return [Section("Training", blocks)]


def _study_sections(study: _Study | None, asked: str | Path | None, made: _Ensemble | None) -> list[Section]:
    if study is None:
        return [Section("Study", [_absent("study", asked, "gfm hpo run")])]
    summary, trials = study.summary, study.trials
    states = summary.get("trials", {})
    trained, saved = summary.get("epochs_trained"), summary.get("epochs_saved")
    told = [f"{states.get('complete', 0)} trials complete, {states.get('pruned', 0)} discarded early"]
    if failed := states.get("fail", 0):
        told.append(f"{failed} failed")
    if trained and saved is not None:
        told.append(f"{trained} epochs trained and {saved} saved by discarding ({study.discard})")
    if summary.get("joules"):
        told.append(f"{_joules(summary['joules'])} in all ({summary.get('joules_method')})")
    members = [] if made is None else [member["trial"] for member in made.content["members"]]
    parameters = sorted({name for trial in trials for name in trial["params"]})
    rows = [
        [str(trial["trial"]), figures.STATE_NAMES.get(trial["state"], trial["state"].lower()),
         _number(trial["value"], 4), str(trial["epochs"]), _number((trial["joules"] or 0) / 1000 or None, 2),
         *(_setting(trial["params"].get(name)) for name in parameters)]
        for trial in sorted(trials, key=lambda t: (t["value"] is None, t["value"]))
    ]  # fmt: skip
    strong = [place for place, row in enumerate(rows) if int(row[0]) in members]
    columns = ["trial", "state", "validation loss", "epochs", "kJ", *parameters]
    best = summary.get("best")
    blocks: list[Any] = [Text(f"{', '.join(told)}. Sampler: {study.sampler}.")]
    if best:
        settings = ", ".join(f"{name} = {_setting(value)}" for name, value in best["params"].items())
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


def _ensemble_sections(
    made: _Ensemble | None, asked: str | Path | None, dataset: "Dataset | None"
) -> list[Section]:
    if made is None:
        return [Section("Ensemble", [_absent("ensemble", asked, "gfm ensemble select")])]
    selection, members = made.content["selection"], made.content["members"]
    rows = [
        [str(number), str(member["trial"]), _number(member["value"], 4), _number((member["joules"] or 0) / 1000, 2),
         _number(member["score"], 3)]
        for number, member in enumerate(members)
    ]  # fmt: skip
    blocks: list[Any] = [
        Text(
            f"{len(members)} members of {len(selection['candidates'])} finished trials. First tier: validation "
            f"loss within {100 * selection['tolerance']:.0f} % of the best. Second tier: lowest loss relative to "
            f"the best plus {selection['energy_weight']:g} x joules relative to the dearest."
        ),
        Group(
            [
                figures.accuracy_and_joules(
                    selection["candidates"], selection["pareto_front"], [member["trial"] for member in members]
                ),
                Table(["member", "trial", "validation loss", "kJ", "score"], rows, caption="Members"),
            ]
        ),
    ]
    if made.scores is None or made.curves is None:
        blocks.append(
            Notice("The ensemble has no scores yet: run `gfm ensemble evaluate` and write the report again.")
        )
        return [Section("Ensemble", blocks)]
    if len(members) < 5:
        blocks.append(
            Notice(
                f"A standard deviation over {len(members)} members is itself uncertain by about "
                f"{100 / np.sqrt(2 * (len(members) - 1)):.0f} %: calibration mends its size on average, not its noise."
            )
        )
    blocks += [_comparison_table(made.scores["comparison"]), figures.error_bars(made.scores["comparison"])]
    if dataset is not None and (points := _parity_points(made.directory, dataset)):
        blocks.append(figures.parity(points, ["energy (eV/atom)", "force component (eV/Å)"]))
    sections = [Section("Ensemble", blocks)]
    for output in OUTPUTS:
        if output in made.scores and made.curves.get(output, {}).get("pooled"):
            sections.append(_output_section(output, made))
    return sections


def _comparison_table(comparison: dict[str, Any]) -> Table:
    single, mean = comparison["single_best"], comparison["ensemble"]
    rows = []
    for name in [*mean["datasets"], "all"]:
        row = [name]
        for key, digits in (("energy_mae_mev_per_atom", 2), ("forces_mae_ev_per_angstrom", 4)):
            one, many = (
                (table if name == "all" else table["datasets"].get(name, {})).get(key)
                for table in (single, mean)
            )
            change = None if not one or many is None else 100 * (many - one) / one
            row += [_number(one, digits), _number(many, digits), "–" if change is None else f"{change:+.1f} %"]
        rows.append(row)
    columns = [
        "dataset", "energy, best member", "energy, ensemble", "change",
        "forces, best member", "forces, ensemble", "change",
    ]  # fmt: skip
    caption = (
        f"Test MAE of member {single['member']} (best on validation) and of the mean of all members; energy in "
        "meV/atom, forces in eV/Å"
    )
    return Table(columns, rows, caption, strong=[len(rows) - 1])


def _output_section(output: str, made: _Ensemble) -> Section:
    """Return the scores of one output before and after calibration."""
    assert made.scores is not None
    assert made.curves is not None
    scores, curves = made.scores[output], made.curves[output]["pooled"]
    unit, factor = _SHOWN[output]
    calibration = made.content["calibration"][output]
    rows, strong = [], []
    tables = [*scores["datasets"].items(), ("all", scores["pooled"])]
    for name, table in tables:
        if name == "all":
            strong = [len(rows), len(rows) + 1]
        for key in ("before", "after"):
            part = table[key]
            rows.append(
                [name, key, _number(factor * part["sharpness"], 3), _number(part["nll"], 2),
                 _number(table["constant_sigma_nll"], 2), _number(factor * part["crps"], 3),
                 _number(part["miscalibration_area"], 3), _number(part["ence"], 2),
                 *(_number(100 * part["coverage"][level], 0) + " %" for level in part["coverage"]),
                 _number(part["spearman"], 2)]
            )  # fmt: skip
    columns = [
        "dataset", "calibration", f"mean sigma ({unit})", "NLL", "NLL, one sigma", f"CRPS ({unit})",
        "miscal. area", "ENCE", "68 %", "90 %", "95 %", "Spearman",
    ]  # fmt: skip
    factors = [
        f"{name}: {entry['scale']:.2f}" if entry["scale"] is not None else f"{name}: constant sigma"
        for name, entry in [*calibration["datasets"].items(), ("pooled", calibration["pooled"])]
    ]
    conformal = [
        f"{name}: {100 * table['conformal_coverage_90']:.0f} %"
        for name, table in tables
        if table["conformal_coverage_90"] is not None
    ]
    blocks: list[Any] = [
        Text(
            f"Factors on the spread, from {calibration['pooled']['count']:,} validation values: {', '.join(factors)}. "
            + (f"The 90 % conformal intervals held {', '.join(conformal)} of test values." if conformal else "")
        ),
        Table(
            columns, rows, strong=strong,
            caption="Scores on test. Lower is better for NLL, CRPS, miscalibration area and ENCE; NLL (nats) has to "
            "beat that of one sigma for all; coverages should be what their heads say",
        ),
        Group(
            [
                figures.calibration_curve(curves, _TITLES[output]),
                figures.error_against_sigma(curves, _TITLES[output], unit, factor),
            ]
        ),
        Group([figures.coverage_bars(scores, _TITLES[output])]),
    ]  # fmt: skip
    return Section(f"Uncertainty of {'energies' if output == 'energy' else 'forces'}", blocks)


def _parity_points(directory: Path, dataset: "Dataset") -> dict[str, Sequence[NDArray[np.float64]]]:
    """Return (energy label, prediction, forces label, prediction) of some test structures of each dataset."""
    from gfm.data.references import compositions
    from gfm.data.splits import SPLITS

    names = dataset.dataset_names
    taken: dict[str, list[list[NDArray[np.float64]]]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    for path in sorted((directory / "predictions" / "ensemble").glob("*.npz")):
        if min(counts.values()) >= _PARITY_STRUCTURES:
            break
        arrays = read_arrays(path)
        ids = arrays["ids"]
        if len(ids) and ids.max() >= len(dataset):
            return {}  # predictions of another dataset
        batch = dataset.batch(ids)
        labelled = batch.has("energy") & batch.has("forces")
        index = batch.columns["dataset"]
        reference = (compositions(batch) * dataset.references[index]).sum(axis=1)
        for place, name in enumerate(names):
            chosen = (index == place) & labelled & (dataset.split[ids] == SPLITS.index("test"))
            rows = np.flatnonzero(chosen)[: _PARITY_STRUCTURES - counts[name]]
            counts[name] += len(rows)
            atoms = np.isin(np.repeat(np.arange(len(batch)), batch.num_atoms), rows)
            if len(rows):
                energies = [
                    (column[rows] - reference[rows]) / batch.num_atoms[rows]
                    for column in (batch.columns["energy"], arrays["energy"])
                ]
                forces = [
                    column[atoms].reshape(-1).astype(np.float64)
                    for column in (batch.columns["forces"], arrays["forces"])
                ]
                taken[name].append([*energies, *forces])
    result = {}
    for name, parts in taken.items():
        if parts:
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            step = max(1, -(-len(columns[2]) // _PARITY_FORCES))
            result[name] = [*columns[:2], columns[2][::step], columns[3][::step]]
    return result


def _use_sections(made: _Ensemble | None, dataset: "Dataset | None") -> list[Section]:
    if made is None:
        return []
    named = f', dataset="{dataset.dataset_names[0]}"' if dataset is not None else ""
    code = f"""from ase.io import read
from gfm.calculator import EnsembleCalculator

atoms = read("structure.xyz")
atoms.calc = EnsembleCalculator("{made.directory}"{named})
energy = atoms.get_potential_energy()            # eV
forces = atoms.get_forces()                      # eV/Å
sigma = atoms.calc.results["energy_std"]         # eV, calibrated
sigmas = atoms.calc.results["forces_std"]        # eV/Å, (atoms, 3), calibrated"""
    text = (
        "The calculator averages all members and warns when an uncertainty is larger than on 99 % of the "
        "validation structures, or when a structure holds an element that training never saw."
    )
    return [Section("How to use it", [Text(text), Code(code)])]


def _provenance_section(
    dataset: "Dataset | None", training: _Training | None, made: _Ensemble | None, study: str | Path | None
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
        starts = (_json(training.folder / "provenance.json") or {}).get("starts", [])
    if study is not None:
        rows.append(["study", str(study)])
        starts += (_json(Path(study) / "provenance.json") or {}).get("starts", [])
    if made is not None:
        rows.append(["ensemble", str(made.directory)])
    commands = "\n".join(f"# {start['time']} on {start['host']}\n{' '.join(start['argv'])}" for start in starts)
    blocks: list[Any] = [Table(["what", "value"], rows)]
    if commands:
        blocks.append(Code(commands))
    return Section("Provenance", blocks)


def _absent(what: str, asked: str | Path | None, verb: str) -> Notice:
    if asked is None:
        return Notice(f"No {what} was given, so this part is left out; `{verb}` makes one.")
    return Notice(f"No {what} was found in {asked}, so this part is left out; `{verb}` makes one.")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _joules(joules: float) -> str:
    for unit, size in (("MJ", 1e6), ("kJ", 1e3)):
        if joules >= size:
            return f"{joules / size:.1f} {unit}"
    return f"{joules:.0f} J"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
