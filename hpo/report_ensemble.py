"""Sections of the report on an ensemble: members, errors, and how far its uncertainties can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfm.runtime.pages import Code, Group, Notice, Section, Table, Text
from gfm.runtime.quantities import number
from hpo import figures
from hpo.calibrate import OUTPUTS
from hpo.report_folders import EnsembleFolder
from hpo.report_sections import absent
from hpo.spread import read_arrays

if TYPE_CHECKING:
    from store.dataset import Dataset

__all__ = ["ensemble_sections", "use_sections"]

# Parity plots show at most so many structures, and force components, of a dataset.
_PARITY_STRUCTURES = 300
_PARITY_FORCES = 1500

_TITLES = {"energy": "Energy per atom", "forces": "Force components"}
_SHOWN = {"energy": ("meV/atom", 1000.0), "forces": ("eV/Å", 1.0)}


def ensemble_sections(
    made: EnsembleFolder | None, asked: str | Path | None, dataset: "Dataset | None"
) -> list[Section]:
    """Return members, test errors and the scores of each output's uncertainties."""
    if made is None:
        return [Section("Ensemble", [absent("ensemble", asked, "gfm ensemble select")])]
    selection, members = made.content["selection"], made.content["members"]
    rows = [
        [str(place), str(member["trial"]), number(member["value"], 4),
         number(member["joules"], 0), number(member["score"], 3)]
        for place, member in enumerate(members)
    ]  # fmt: skip
    blocks: list[Any] = [
        Text(
            f"{len(members)} members of {len(selection['candidates'])} finished trials. First tier: validation "
            f"loss within {100 * selection['tolerance']:.0f} % of the best. Second tier: lowest loss relative "
            f"to the best plus {selection['energy_weight']:g} x joules relative to the dearest."
        ),
        Group(
            [
                figures.accuracy_and_joules(
                    selection["candidates"], selection["pareto_front"], [member["trial"] for member in members]
                ),
                Table(["member", "trial", "validation loss", "J", "score"], rows, caption="Members"),
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
                f"{100 / np.sqrt(2 * (len(members) - 1)):.0f} %: calibration mends its size on average, not "
                "its noise."
            )
        )
    blocks += [_comparison_table(made.scores["comparison"]), figures.error_bars(made.scores["comparison"])]
    if dataset is not None and (points := _parity_points(made.directory, dataset)):
        blocks.append(figures.parity(points, ["energy (eV/atom)", "force component (eV/Å)"]))
    sections = [Section("Ensemble", blocks)]
    shown = [output for output in OUTPUTS if made.curves.get(output, {}).get("pooled")]
    return sections + [_output_section(output, made.scores[output], made) for output in shown]


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
            row += [number(one, digits), number(many, digits), "–" if change is None else f"{change:+.1f} %"]
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


def _output_section(output: str, scores: dict[str, Any], made: EnsembleFolder) -> Section:
    """Return the scores of one output before and after calibration."""
    both = (made.curves or {})[output]
    curves, by_dataset = both["pooled"], both["datasets"]
    unit, factor = _SHOWN[output]
    calibration = made.content["calibration"][output]
    rows: list[list[str]] = []
    strong: list[int] = []
    tables = [*scores["datasets"].items(), ("all", scores["pooled"])]
    for name, table in tables:
        if name == "all":
            strong = [len(rows), len(rows) + 1]
        for key in ("before", "after"):
            part = table[key]
            rows.append(
                [name, key, number(factor * part["sharpness"], 3), number(part["nll"], 2),
                 number(table["constant_sigma_nll"], 2), number(factor * part["crps"], 3),
                 number(part["miscalibration_area"], 3), number(part["ence"], 2),
                 *(number(100 * part["coverage"][level], 0) + " %" for level in part["coverage"]),
                 number(part["spearman"], 2)]
            )  # fmt: skip
    columns = [
        "dataset", "calibration", f"sigma ({unit})", "NLL", "NLL const.", "CRPS",
        "area", "ENCE", "68 %", "90 %", "95 %", "Spearman",
    ]  # fmt: skip
    factors = [
        f"{name}: {entry['scale']:.3g} and {factor * entry['offset']:.3g} {unit}"
        for name, entry in [*calibration["datasets"].items(), ("pooled", calibration["pooled"])]
    ]
    conformal = [
        f"{name}: {100 * table['conformal_coverage_90']:.0f} %"
        for name, table in tables
        if table["conformal_coverage_90"] is not None
    ]
    blocks: list[Any] = [
        Text(
            f"Scale and offset of the spread, from {calibration['pooled']['count']:,} validation values: "
            f"{'; '.join(factors)}. "
            + (f"The 90 % conformal intervals held {', '.join(conformal)} of test values." if conformal else "")
        ),
        Table(
            columns, rows, strong=strong,
            caption="Scores on test. Lower is better for NLL (nats), CRPS, miscalibration area and ENCE; "
            "NLL has to beat that of one constant sigma; coverages should be what their heads say",
        ),
        Group(
            [
                figures.calibration_curve(curves, _TITLES[output]),
                figures.error_against_sigma(curves, _TITLES[output], unit, factor),
            ]
        ),
        Group(
            [
                figures.coverage_bars(scores, _TITLES[output]),
                figures.calibration_by_dataset(by_dataset, list(by_dataset), _TITLES[output]),
            ]
        ),
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
    if not any(counts.values()):
        return {}
    # a dataset without test structures keeps its place, and with it the others their colours
    result: dict[str, Sequence[NDArray[np.float64]]] = {name: [np.empty(0)] * 4 for name in names}
    for name, parts in taken.items():
        if parts:
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            step = max(1, -(-len(columns[2]) // _PARITY_FORCES))
            result[name] = [*columns[:2], columns[2][::step], columns[3][::step]]
    return result


def use_sections(made: EnsembleFolder | None, dataset: "Dataset | None") -> list[Section]:
    """Return how to use the ensemble from ASE."""
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
