"""What the report reads: the folders of a training, a study and an ensemble, each as far as it is there."""

import json
from pathlib import Path
from typing import Any, Self

from gfm.model.ensemble_card import read_ensemble
from gfm.runtime.runs import RunFolder
from hpo.ensemble import CURVES_FILE, SCORES_FILE

__all__ = ["EnsembleFolder", "StudyFolder", "TrainingFolder", "read_json"]


class EnsembleFolder:
    """What an ensemble's folder holds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.content = read_ensemble(directory)
        self.scores = read_json(directory / SCORES_FILE)
        self.curves = read_json(directory / CURVES_FILE)

    @classmethod
    def read(cls, directory: str | Path | None) -> Self | None:
        """Read the folder, or return None where it is not there."""
        return None if directory is None else cls(Path(directory))


class TrainingFolder:
    """What a run folder holds."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.records = self.folder.records()
        self.summary = self.folder.summary() or {}

    @classmethod
    def read(cls, path: str | Path | None) -> Self | None:
        """Read the folder, or return None where it is not there."""
        return cls(Path(path)) if path is not None and (Path(path) / "metrics.jsonl").is_file() else None


class StudyFolder:
    """What a study's folder and storage hold."""

    def __init__(self, output: Path) -> None:
        from hpo.study import read_study
        from hpo.trials import counted, open_study

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
    def read(cls, output: str | Path | None) -> Self | None:
        """Read the folder, or return None where it is not there."""
        return cls(Path(output)) if output is not None and (Path(output) / "study.yaml").is_file() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None where there is none."""
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return content
