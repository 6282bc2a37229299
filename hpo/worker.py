"""A worker: it holds the samples in memory, and takes and trains trials until the study is done.

A worker is one process, or the ranks of one MPI job; only rank 0 talks to Optuna, and tells the others what to
train. How trials end:

* COMPLETE: trained for all its epochs. Its value is the best validation loss, that of the model it saved.
* PRUNED, reason "discarded", "diverged" (a loss that is not finite) or "out of memory". TPE learns from pruned
  trials, not from failed ones, and so avoids settings that diverge or do not fit.
* FAIL, reason "error" (with the traceback; the study goes on), "worker died" or "interrupted" (another trial
  takes its place and goes on from the checkpoint).
"""

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from gfm.runtime.runs import write_whole
from hpo.claims import FAILURE_FILE, Claim, claim, spent
from hpo.storage import Heartbeat, Lease, holder_is_dead, trial_id
from hpo.study import StudyConfig, read_study, trial_config
from hpo.trials import OpenStudy, note_finish, open_study, retry

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.loop import TrainResult

__all__ = ["TrainFunction", "run_finish", "run_trial", "work"]

# Called with a configuration, `on_epoch` and `extend`, as `train.loop.train` is.
TrainFunction = Callable[..., "TrainResult"]

# How long a worker that has nothing to do waits for the trials of others.
_WAIT_SECONDS = 0.5

# What is kept of a validation record.
_METRICS = ("energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom")


@dataclass
class _Watch:
    """Reports a trial's validation loss once an epoch, and says whether it goes on.

    Attributes:
        trial: Optuna's live trial.
        reported: Epochs whose loss is known already, from before a trial lost its worker.
        verdict: Why the trial was stopped.
        epochs: How many epochs there are; after the last one there is nothing left to stop.
    """

    trial: optuna.Trial
    epochs: int
    reported: set[int] = field(default_factory=set)
    verdict: str | None = None

    def __call__(self, record: dict[str, Any]) -> bool:
        """Report one epoch; False stops the training."""
        loss = _number(record["validation"]["loss"])
        try:
            if record["epoch"] not in self.reported:
                self.trial.report(loss, record["epoch"])
            if not math.isfinite(loss):
                self.verdict = "diverged"
            elif record["epoch"] < self.epochs and self.trial.should_prune():
                self.verdict = "discarded"
        except UpdateFinishedTrialError:
            # Its heartbeats came too late: another worker has taken it up.
            self.verdict = "taken"
        return self.verdict is None


def run_trial(trial: optuna.Trial, config: StudyConfig, train_function: TrainFunction) -> FrozenTrial | None:
    """Train one trial and tell the study how it ended.

    Args:
        trial: As asked for; its user attributes name the run folder.
        config: The study.
        train_function: `train.loop.train`, with what is the same for all trials filled in.

    Returns:
        The trial as told; None when another worker has taken it meanwhile.

    Raises:
        Interrupted: A signal stopped the training; a waiting trial goes on from its checkpoint.
    """
    from train.loop import Interrupted

    study, began = trial.study, time.monotonic()
    known = next(one for one in study.get_trials(deepcopy=False) if one.number == trial.number)
    watch = _Watch(trial, config.epochs, set(known.intermediate_values))
    folder = config.output / trial.user_attrs["path"]
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        result = train_function(trial_config(config, trial.params, folder), on_epoch=watch, extend=False)
    except Interrupted:
        told = _tell(trial, began, {**spent(folder), "reason": "interrupted"}, state=TrialState.FAIL)
        if told is not None:
            retry(study, told, config.retries, forgive=True)
        raise
    except Exception as error:
        reason, state = _explain(error)
        notes = {**spent(folder), "reason": reason, "traceback": traceback.format_exc()}
        gc.collect()  # what the failed training held, before the next one needs it
        return _tell(trial, began, notes, state=state)
    if watch.verdict == "taken":
        return None
    notes = _reached(result)
    if result.status != "finished":
        return _tell(trial, began, {**notes, "reason": watch.verdict}, state=TrialState.PRUNED)
    value = notes.pop("value")
    if not math.isfinite(value):
        return _tell(trial, began, {**notes, "reason": "diverged"}, state=TrialState.PRUNED)
    return _tell(trial, began, notes, value=value)


def run_finish(opened: OpenStudy, continued: Claim, train_function: TrainFunction) -> None:
    """Continue a complete trial from its checkpoint, and note what it reached.

    Raises:
        Interrupted: A signal stopped the training; the continuation waits for another worker.
    """
    from train.loop import Interrupted

    began = time.monotonic()
    try:
        result = train_function(finish_config(opened.config, continued), on_epoch=None, extend=True)
    except Interrupted:
        note_finish(opened, continued.number, state="waiting", attempt=0, reason="interrupted")
        raise
    except Exception as error:
        reason, _ = _explain(error)
        note_finish(
            opened, continued.number, state="failed", reason=reason, traceback=traceback.format_exc(), epochs=0
        )
        gc.collect()
        return
    seconds = round(time.monotonic() - began, 3)
    note_finish(opened, continued.number, state="finished", seconds=seconds, **_reached(result))


def finish_config(config: StudyConfig, continued: Claim) -> "TrainConfig":
    """Return the training configuration of a continued trial."""
    assert config.finish is not None
    base = trial_config(config, continued.params, continued.folder)
    return base.model_copy(update={"epochs": config.finish.epochs})


def _reached(result: "TrainResult") -> dict[str, Any]:
    """Return what is kept of a training: the best epoch's value and metrics, epochs, joules."""
    best = result.best["validation"]
    return {
        "value": _number(best["loss"]),
        "metrics": {key: best.get(key) for key in _METRICS},
        "epochs": result.epochs,
        "joules": result.joules,
        "joules_method": result.joules_method,
    }


def _tell(
    trial: optuna.Trial,
    began: float,
    notes: dict[str, Any],
    *,
    value: float | None = None,
    state: TrialState | None = None,
) -> FrozenTrial | None:
    """Note user attributes, then end the trial, which takes no more of them; None if it was taken meanwhile."""
    try:
        for key, note in {**notes, "seconds": round(time.monotonic() - began, 3)}.items():
            if key != "value":
                trial.set_user_attr(key, note)
    except UpdateFinishedTrialError:
        return None
    return trial.study.tell(trial, value, state=state)


def _number(value: float | None) -> float:
    """Return a recorded loss; a record has null where the loss was not a number."""
    return math.nan if value is None else float(value)


def _explain(error: BaseException) -> tuple[str, TrialState]:
    """Return why a training ended with an exception, and as what its trial is told."""
    import torch

    texts = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    ):
        return "out of memory", TrialState.PRUNED
    if isinstance(error, ArithmeticError):  # train.loop.Diverged is one
        return "diverged", TrialState.PRUNED
    return "error", TrialState.FAIL


def work(output: Path, slot: int, under: str | None = None) -> None:
    """Take and train trials until the study is done; every rank of a worker calls this.

    Args:
        output: Folder of the study.
        slot: Number of this worker among those of its parent.
        under: Lease of the parent; when it is gone, no further trial is taken.
    """
    from gfm.runtime.mpi import world
    from train.ranks import joined

    config, comm = read_study(output), world()
    base = trial_config(config, {}, config.output)
    with joined(comm, base.device):  # once around all trials
        samples, train_function = _prepare(config, base, comm)
        try:
            if comm is None or comm.rank == 0:
                with open_study(config) as opened, Lease(config.output, f"worker-{slot}") as lease:
                    _lead(opened, lease.name, under, comm, train_function)
            else:
                _follow(config, comm, train_function)
        finally:
            samples.close()


def _prepare(config: StudyConfig, base: "TrainConfig", comm: Any) -> tuple[Any, TrainFunction]:
    """Load the samples, once for all trials of this worker."""
    from functools import partial

    import store
    from store.samples import open_samples
    from train.loop import train
    from train.setup import select

    if config.space.keys() & {"seed", "max_train_structures"}:
        base = base.model_copy(update={"max_train_structures": None})  # each trial draws its own subset
    dataset = store.open_dataset(base.dataset)
    samples = open_samples(dataset, base.store, comm, select(dataset, base).ids)
    return samples, partial(train, comm=comm, samples=samples)


def _lead(opened: OpenStudy, worker: str, under: str | None, comm: Any, train_function: TrainFunction) -> None:
    """Take trials, on rank 0, and tell the other ranks."""
    while True:
        orphaned = under is not None and holder_is_dead(opened.config.output, under)
        now = Claim("done") if orphaned else claim(opened, worker)
        if comm is not None:
            comm.bcast((now.kind, now.number, now.params, now.folder))
        if now.kind == "done":
            return
        if now.kind == "wait":
            time.sleep(_WAIT_SECONDS)
            continue
        shared = train_function if comm is None else _all_fail_together(train_function, now.folder)
        print(f"worker {worker}: {now.kind} {now.number} {json.dumps(now.params)}", file=sys.stderr, flush=True)
        if now.trial is not None:
            with Heartbeat(opened.storage, trial_id(opened.storage, opened.study, now.number)):
                run_trial(now.trial, opened.config, shared)
        else:
            run_finish(opened, now, shared)


def _follow(config: StudyConfig, comm: Any, train_function: TrainFunction) -> None:
    """Train what rank 0 says, on the other ranks."""
    from train.loop import Diverged

    while True:
        kind, number, params, folder = comm.bcast(None)
        if kind == "done":
            return
        if kind == "wait":
            time.sleep(_WAIT_SECONDS)
            continue
        settings = trial_config(config, params, folder)
        if kind == "finish":
            settings = finish_config(config, Claim("finish", number, params, folder))
        # Diverged is told by rank 0; the others only go on to the next trial.
        with suppress(Diverged):
            _all_fail_together(train_function, folder)(settings, on_epoch=None, extend=kind == "finish")


class _RankFailed(BaseException):
    """A rank's failure on its way to the excepthook that aborts all ranks; nothing may catch it."""


def _all_fail_together(train_function: TrainFunction, folder: Path) -> TrainFunction:
    """Return a training that takes all ranks down when it fails on one, after leaving a note in the run folder.

    The other ranks would wait for ever, so the trial cannot be told by this worker: who starts the next one
    finds the note (`hpo.claims.reclaim`).
    """
    from train.loop import Diverged, Interrupted

    def train(*arguments: Any, **options: Any) -> "TrainResult":
        try:
            return train_function(*arguments, **options)
        except (Interrupted, Diverged):
            raise  # these come on all ranks alike
        except Exception as error:
            reason, state = _explain(error)
            note = {"reason": reason, "state": state.name, "traceback": traceback.format_exc()}
            write_whole(folder / FAILURE_FILE, json.dumps(note))
            raise _RankFailed(str(error)) from error

    return train
