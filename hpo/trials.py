"""An open study, and what its trials say: which count, which took another's place, which went on.

A trial that lost its worker fails, and a waiting trial takes its place, with the same settings, folder (and
checkpoint) and reported losses; it notes in `retried_from` whose place it takes, and the failed one no longer
counts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from gfm.errors import ConfigError, MissingDataError
from hpo.discard import pruner
from hpo.storage import open_storage, public_url
from hpo.study import StudyConfig

__all__ = [
    "OpenStudy",
    "best_trials",
    "complete_trials",
    "counted",
    "finish_notes",
    "note_finish",
    "open_study",
    "retry",
]

# Study attributes, one per continued trial: Optuna's finished trials take no more attributes.
_FINISH = "finish:{:04d}"


@dataclass(frozen=True)
class OpenStudy:
    """A study with its storage.

    Attributes:
        config: The study file.
        storage: As opened; Optuna's `Study` keeps its own to itself.
        study: Optuna's study.
    """

    config: StudyConfig
    storage: BaseStorage
    study: optuna.Study

    def trials(self) -> list[FrozenTrial]:
        """Return all trials as they are now."""
        return self.study.get_trials(deepcopy=False)


@contextmanager
def open_study(config: StudyConfig, *, create: bool = False) -> Iterator[OpenStudy]:
    """Open a study, and close its database connections afterwards.

    Args:
        config: The study.
        create: Make the study where there is none.

    Raises:
        ConfigError: The database holds a study of this name that belongs to another folder.
        MissingDataError: There is no such study and none was to be made.
    """

    def take_up_again(study: optuna.Study, trial: FrozenTrial) -> None:
        retry(study, trial, config.retries)

    storage = open_storage(
        config.storage, config.output, heartbeat_seconds=config.heartbeat_seconds, on_lost=take_up_again
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield OpenStudy(config, storage, _load(config, storage, create=create))
    finally:
        optuna.logging.set_verbosity(verbosity)
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def _load(config: StudyConfig, storage: BaseStorage, *, create: bool) -> optuna.Study:
    rule = pruner(config.discard)
    if create:
        study = optuna.create_study(
            storage=storage, study_name=config.name, direction="minimize", load_if_exists=True, pruner=rule
        )
        owner = study.user_attrs.get("output")
        if owner is None:
            study.set_user_attr("output", str(config.output))
        elif config.storage is not None and owner != str(config.output):
            raise ConfigError(
                f"{public_url(config.storage)} already holds a study named {config.name!r}, of {owner}: "
                "choose another `name`, or that `output`"
            )
        return study
    try:
        return optuna.load_study(storage=storage, study_name=config.name, pruner=rule)
    except KeyError:
        raise MissingDataError(
            f"{public_url(config.storage)} holds no study named {config.name!r} (folder {config.output})"
        ) from None


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials without those whose place another has taken."""
    trials = list(trials)
    replaced = {trial.user_attrs.get("retried_from") for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def retry(study: optuna.Study, trial: FrozenTrial, retries: int, *, forgive: bool = False) -> bool:
    """Let a waiting trial take the place of one that lost its worker; False when that happened too often.

    Args:
        study: The study.
        trial: The trial, failed.
        retries: How often that may happen.
        forgive: This time does not count: the worker was asked to leave.
    """
    attempt = trial.user_attrs.get("attempt", 0) + (0 if forgive else 1)
    if attempt > retries:
        return False
    kept = {key: trial.user_attrs[key] for key in ("path",) if key in trial.user_attrs}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values=trial.intermediate_values,
            system_attrs=trial.system_attrs,
            user_attrs={**kept, "retried_from": trial.number, "attempt": attempt},
        )
    )
    return True


def finish_notes(opened: OpenStudy) -> dict[int, dict[str, Any]]:
    """Return what is noted of each trial that went on, or is to: state, worker, and what it reached."""
    attributes = opened.study.user_attrs
    return {
        trial.number: attributes[_FINISH.format(trial.number)]
        for trial in opened.trials()
        if _FINISH.format(trial.number) in attributes
    }


def note_finish(opened: OpenStudy, number: int, **note: Any) -> None:
    """Note how the continuation of a trial stands."""
    opened.study.set_user_attr(_FINISH.format(number), note)


def best_trials(opened: OpenStudy) -> list[FrozenTrial]:
    """Return the complete trials by the value of their constant number of epochs, best first."""
    complete = [trial for trial in opened.trials() if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def complete_trials(opened: OpenStudy) -> list[dict[str, Any]]:
    """Return the complete trials, best first; see `hpo.study.finished_trials`."""
    notes = finish_notes(opened)
    rows = []
    for trial in best_trials(opened):
        note = notes.get(trial.number, {})
        finished = note.get("state") == "finished"
        reached = note if finished else {**trial.user_attrs, "value": trial.value}
        rows.append(
            {
                "trial": trial.number,
                "path": str(opened.config.output / trial.user_attrs["path"]),
                "value": reached["value"],
                **reached["metrics"],
                "joules": reached["joules"],
                "joules_method": reached["joules_method"],
                "epochs": reached["epochs"],
                "finished": finished,
                "params": trial.params,
            }
        )
    return sorted(rows, key=lambda row: (row["value"], row["trial"]))
