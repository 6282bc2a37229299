"""Choose the members of an ensemble from the finished trials of a study: accuracy first, then energy.

First tier: the trials whose validation loss is within a tolerance of the best. Second tier, among those: the
lowest ``loss / best loss + energy_weight x joules / most joules``, so that with a weight of 0.1 the dearest
trial is treated as if its error were 10 % of the best larger than that of a free one. The Pareto front of loss
and joules is written down beside the choice.

Source: the two tiers follow the ensemble selection described for HydraGNN's foundation models, Lupo Pasini et
al. 2024, arXiv:2406.12909.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfm.errors import ConfigError, DataError, MissingDataError
from gfm.model.ensemble_card import ENSEMBLE_FILE, FORMAT_VERSION
from gfm.runtime.runs import write_whole

__all__ = [
    "SelectionWarning",
    "choose_members",
    "pareto_front",
    "select",
    "write_json",
]


class SelectionWarning(UserWarning):
    """An ensemble is smaller, or chosen on less, than was asked for."""


def pareto_front(trials: Sequence[dict[str, Any]]) -> list[int]:
    """Return the trials that no other beats in both validation loss and joules, by ascending loss."""
    front: list[int] = []
    least = float("inf")
    for trial in sorted(trials, key=lambda trial: (trial["value"], _joules(trial), trial["trial"])):
        if _joules(trial) < least:
            least = _joules(trial)
            front.append(trial["trial"])
    return front


def choose_members(
    trials: Sequence[dict[str, Any]], members: int, energy_weight: float, tolerance: float
) -> list[dict[str, Any]]:
    """Return the chosen trials with their ``score``, best first.

    Args:
        trials: Finished trials as `hpo.study.finished_trials` lists them; read are trial, value (validation
            loss), joules.
        members: How many to choose.
        energy_weight: Weight of joules relative to the dearest trial.
        tolerance: First tier: loss at most ``(1 + tolerance)`` x the best; filled up by loss where too few are.

    Raises:
        ConfigError: Fewer than 2 members, a negative weight, or joules unknown while the weight is not 0.
        DataError: There are fewer than 2 usable trials.
    """
    if members < 2:
        raise ConfigError(f"an ensemble needs at least 2 members to have a spread, got {members}")
    if energy_weight < 0 or tolerance < 0:
        raise ConfigError("energy weight and tolerance are at least 0")
    ranked = sorted(trials, key=lambda trial: (trial["value"], _joules(trial), trial["trial"]))
    if len(ranked) < 2:
        raise DataError(
            f"the study has {len(ranked)} finished trials, an ensemble needs at least 2: run more trials, or "
            "discard fewer of them"
        )
    if energy_weight and (nameless := [trial["trial"] for trial in ranked if trial["joules"] is None]):
        raise ConfigError(f"trials {nameless} have no joules: select with an energy weight of 0")
    if len(ranked) < members:
        warnings.warn(
            f"{members} members asked for, but only {len(ranked)} trials finished: all of them are taken",
            SelectionWarning,
            stacklevel=2,
        )
    best = ranked[0]["value"]
    accurate = [trial for trial in ranked if trial["value"] <= best + tolerance * abs(best)]
    tier = accurate if len(accurate) >= members else ranked[:members]
    dearest = max((_joules(trial) for trial in tier), default=0.0)
    scale = abs(best) if best else 1.0

    def score(trial: dict[str, Any]) -> float:
        energy = energy_weight * _joules(trial) / dearest if dearest else 0.0
        return float(trial["value"]) / scale + energy

    scored = [trial | {"score": score(trial)} for trial in tier]
    return sorted(scored, key=lambda trial: (trial["score"], trial["trial"]))[:members]


def select(
    study_output: str | Path,
    out: str | Path,
    *,
    members: int = 3,
    energy_weight: float = 0.1,
    tolerance: float = 0.25,
) -> dict[str, Any]:
    """Choose members from a study and gather their models in one folder that needs nothing else.

    Args:
        study_output: Output folder of ``gfm hpo run``.
        out: Folder of the ensemble; models are copied to ``out/members/00`` and so on.
        members: How many to choose.
        energy_weight: Weight of joules relative to the dearest trial.
        tolerance: First tier: loss at most ``(1 + tolerance)`` x the best.

    Returns:
        What was written to ``out/ensemble.json``.

    Raises:
        ConfigError: The numbers asked for make no sense, or ``out`` holds another ensemble's results.
        MissingDataError: A trial's model is not there.
    """
    from hpo.study import finished_trials

    trials = [dict(trial) for trial in finished_trials(Path(study_output))]
    chosen = choose_members(trials, members, energy_weight, tolerance)
    out = Path(out)
    if (out / "predictions").exists() or (out / "members").exists():
        raise ConfigError(f"{out} already holds an ensemble: choose another folder, or remove it first")
    entries = []
    for number, trial in enumerate(chosen):
        source = Path(trial["path"]) / "model"
        if not source.is_dir():
            raise MissingDataError(
                f"trial {trial['trial']}: its model should be in {source}, which is not there"
            )
        shutil.copytree(source, out / "members" / f"{number:02d}")
        keep = ("trial", "value", "joules", "score", "params")
        entry = {"model": f"members/{number:02d}"} | {key: trial.get(key) for key in keep}
        entries.append(entry)
    ensemble = {
        "format_version": FORMAT_VERSION,
        "members": entries,
        "dataset": _dataset_of(Path(chosen[0]["path"])),
        "selection": {
            "study": str(Path(study_output)),
            "asked": members,
            "energy_weight": energy_weight,
            "tolerance": tolerance,
            "candidates": [
                {key: trial.get(key) for key in ("trial", "value", "joules")} for trial in trials
            ],
            "pareto_front": pareto_front(trials),
        },
        "calibration": None,
    }  # fmt: skip
    write_json(out / ENSEMBLE_FILE, ensemble)
    return ensemble


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _joules(trial: dict[str, Any]) -> float:
    return float(trial["joules"] or 0.0)


def _dataset_of(run: Path) -> str | None:
    """Return the dataset a run was trained on, as an absolute path where it is there now."""
    from gfm.runtime.config import read_yaml

    dataset = read_yaml(run / "config.yaml").get("dataset")
    return None if dataset is None else str(Path(dataset).resolve())
