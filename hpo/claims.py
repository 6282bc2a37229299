"""What a worker does next: a new trial, one that lost its worker, the continuation of a good one, or nothing.

All of it is decided in the study's turn (`hpo.storage.turn`), so that any number of workers, joining and dying
as they like, finish exactly the number of trials that was asked for.
"""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from gfm.runtime.runs import RunFolder
from hpo.space import distributions
from hpo.storage import fail_silent_trials, holder_is_dead, trial_id, turn
from hpo.study import StudyConfig
from hpo.trials import OpenStudy, best_trials, counted, finish_notes, note_finish, retry

__all__ = ["FAILURE_FILE", "Claim", "claim", "reclaim", "spent"]

# What a rank leaves in the run folder before it takes all ranks of its worker down.
FAILURE_FILE = "failure.json"


def reclaim(opened: OpenStudy, *, everything: bool = False, forgive: bool = False) -> list[int]:
    """Fail the trials whose workers died, and let others take their places. Call it in the study's turn.

    Args:
        opened: The study.
        everything: Every running trial has lost its worker, also those of other hosts.
        forgive: The workers were asked to leave, which does not use up their trials' retries.

    Returns:
        Numbers of the trials that had lost their workers.
    """
    fail_silent_trials(opened.study)
    lost = []
    for trial in opened.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        # Without a worker's name it died between asking and noting it, for we hold the turn.
        if not (everything or worker is None or holder_is_dead(opened.config.output, worker)):
            continue
        failure = {}
        if worker is not None:
            failure = _lose(opened, trial)
        opened.study.tell(trial.number, state=TrialState[failure.get("state", "FAIL")])
        if not failure:
            retry(opened.study, trial, opened.config.retries, forgive=forgive)
        lost.append(trial.number)
    for number, note in finish_notes(opened).items():
        if note["state"] == "running" and (everything or holder_is_dead(opened.config.output, note["worker"])):
            attempt = note["attempt"] + (0 if forgive else 1)
            state = "waiting" if attempt <= opened.config.retries else "failed"
            note_finish(opened, number, state=state, attempt=attempt, reason="worker died")
    return lost


def _lose(opened: OpenStudy, trial: FrozenTrial) -> dict[str, str]:
    """Note what a lost trial trained; return what a rank noted of its failure, if one failed."""
    folder = opened.config.output / trial.user_attrs["path"]
    file = folder / FAILURE_FILE
    failure: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    told: dict[str, Any] = {key: failure[key] for key in ("reason", "traceback") if key in failure}
    identity = trial_id(opened.storage, opened.study, trial.number)
    notes: dict[str, Any] = {"reason": "worker died", **spent(folder), **told}
    for key, note in notes.items():
        opened.storage.set_trial_user_attr(identity, key, note)
    return failure


def spent(folder: Path) -> dict[str, Any]:
    """Return what a run that did not end well has trained, from its records: epochs, joules, joules_method."""
    records = RunFolder(folder).records()
    if not records:
        return {"epochs": 0}
    return {
        "epochs": records[-1]["epoch"],
        "joules": sum(record["joules"] for record in records),
        "joules_method": records[-1]["joules_method"],
    }


@dataclass(frozen=True)
class Claim:
    """What to do next.

    Attributes:
        kind: Train a "trial"; continue one ("finish"); "wait" for others' trials; or all is "done".
        number: Number of the trial.
        params: Its settings by dotted path.
        folder: Its run folder.
        trial: Optuna's live trial, where kind is "trial".
    """

    kind: Literal["trial", "finish", "wait", "done"]
    number: int = -1
    params: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    trial: optuna.Trial | None = None


def claim(opened: OpenStudy, worker: str) -> Claim:
    """Take what comes next.

    Args:
        opened: The study.
        worker: Name of the lease that the caller holds.
    """
    config = opened.config
    with turn(opened.storage, config.output):
        reclaim(opened)
        trials = opened.trials()
        places = counted(trials)
        taken = [trial for trial in places if trial.state != TrialState.WAITING]
        if len(taken) < config.trials:
            return _ask(opened, worker, len(trials))
        if any(trial.state == TrialState.RUNNING for trial in taken):
            return Claim("wait")
        return _continue(opened, worker)


def _ask(opened: OpenStudy, worker: str, number: int) -> Claim:
    """Take a waiting trial, or make one with proposed settings."""
    config, study = opened.config, opened.study
    # A sampler per trial: the proposals of a study that was interrupted are those of one that was not.
    study.sampler = _sampler(config, number)
    with warnings.catch_warnings():
        # `Heartbeat` does beside ask and tell what Optuna does in its own loop only.
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
        trial = study.ask(distributions(config.space))
    folder = trial.user_attrs.get("path", f"trials/{trial.number:04d}")
    trial.set_user_attr("path", folder)
    trial.set_user_attr("worker", worker)
    return Claim("trial", trial.number, trial.params, config.output / folder, trial)


def _sampler(config: StudyConfig, number: int) -> BaseSampler:
    """Return the sampler that proposes the settings of one trial."""
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    if config.sampler.kind == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=config.sampler.startup_trials)


def _continue(opened: OpenStudy, worker: str) -> Claim:
    """Take one of the best trials that nobody has continued yet."""
    finish = opened.config.finish
    if finish is None:
        return Claim("done")
    notes = finish_notes(opened)
    for trial in best_trials(opened)[: finish.best]:
        note = notes.get(trial.number, {"state": "waiting", "attempt": 0})
        # A study that is run again with more epochs to finish continues what was continued before.
        if note["state"] == "waiting" or (note["state"] == "finished" and note["epochs"] < finish.epochs):
            note_finish(opened, trial.number, state="running", attempt=note.get("attempt", 0), worker=worker)
            return Claim("finish", trial.number, trial.params, opened.config.output / trial.user_attrs["path"])
    running = [number for number, note in notes.items() if note["state"] == "running"]
    return Claim("wait") if running else Claim("done")
