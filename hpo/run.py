"""Running a study: start the workers, watch them, replace those that die, and sum up."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from optuna.trial import TrialState

from gfm.errors import ConfigError, DataError, GfmError, ResourceError
from gfm.runtime.mpi import find_mpiexec
from gfm.runtime.runs import RunFolder
from hpo.claims import reclaim
from hpo.discard import epochs_saved, epochs_trained
from hpo.show import Progress
from hpo.storage import Lease, public_url, turn
from hpo.study import StudyConfig, write_study
from hpo.trials import OpenStudy, best_trials, complete_trials, counted, finish_notes, open_study

__all__ = ["run_study", "summarise", "worker_command"]

_POLL_SECONDS = 0.5

# A worker that dies this often in a row, while no trial ends anywhere, is not started again.
_MAX_DEATHS = 3

# Seconds that workers have to checkpoint when the study is stopped.
_LEAVE_SECONDS = 60.0

_ERRORS = {error.exit_code: error for error in (ConfigError, DataError, ResourceError)}


def worker_command(config: StudyConfig, slot: int, under: str | None = None) -> list[str]:
    """Return the command of one worker; with several ranks it is an MPI job of its own."""
    command = [sys.executable, "-m", "gfm", "hpo", "worker", str(config.output), "--slot", str(slot)]
    command += ["--under", under] if under else []
    if config.ranks == 1:
        return command
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise ResourceError(f"ranks: {config.ranks} needs mpiexec: pip install 'gfm-atoms[mpi]'")
    return [mpiexec, "-n", str(config.ranks), *command]


def run_study(
    config: StudyConfig, *, reclaim_all: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run a study, or go on with it, until its number of trials is reached; return its summary.

    Args:
        config: The study.
        reclaim_all: Take up all running trials again, also those of other hosts; no other worker may be alive.
        progress: Shows people what happens; None shows nothing.

    Raises:
        ConfigError: The folder or the database holds another study.
        GfmError: Workers cannot work; the text ends with what the last of them said.
    """
    write_study(config)
    folder, began = RunFolder(config.output), time.monotonic()
    folder.add_provenance(workers=config.workers, ranks=config.ranks)
    before = (folder.summary() or {}).get("seconds", 0.0)
    with ExitStack() as stack:
        opened = stack.enter_context(open_study(config, create=True))
        lease = stack.enter_context(Lease(config.output, "run"))
        with turn(opened.storage, config.output):
            reclaim(opened, everything=reclaim_all)
        if not _is_done(opened):
            try:
                with _Pool(config, lease.name) as pool:
                    _watch(opened, pool, progress or Progress(config, shown=False))
            finally:
                with turn(opened.storage, config.output):
                    reclaim(opened, forgive=True)  # trials of workers that had to be killed
        summary = summarise(opened, seconds=before + time.monotonic() - began)
        folder.write_summary(summary)
    return summary


def _is_done(opened: OpenStudy) -> bool:
    """Say whether no worker would find anything to do."""
    places = counted(opened.trials())
    if sum(trial.state.is_finished() for trial in places) < opened.config.trials:
        return False
    finish, notes = opened.config.finish, finish_notes(opened)
    if finish is None:
        return True
    best = best_trials(opened)[: finish.best]
    return all(_went_on(notes.get(trial.number), finish.epochs) for trial in best)


def _went_on(note: dict[str, Any] | None, epochs: int) -> bool:
    return note is not None and (note["state"] == "failed" or note.get("epochs", 0) >= epochs)


def _watch(opened: OpenStudy, pool: "_Pool", progress: Progress) -> None:
    """Watch until all workers are gone: take up lost trials, replace dead workers, say what happens."""
    done = False
    while not done:
        time.sleep(_POLL_SECONDS)
        done = pool.done()  # asked before looking, so that the last look sees all
        with turn(opened.storage, opened.config.output):
            reclaim(opened)
        trials = opened.trials()
        progress.show(trials, finish_notes(opened))
        pool.replace_the_dead(sum(trial.state.is_finished() for trial in counted(trials)), progress.say)


@dataclass
class _Slot:
    """One place for a worker: its process, its log, and how often it died since a trial last ended."""

    number: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    deaths: int = 0
    ended: int = 0


class _Pool:
    """Context manager that starts the worker processes and, on leaving, stops those that still run."""

    def __init__(self, config: StudyConfig, lease: str) -> None:
        self._config, self._lease = config, lease
        self._slots: list[_Slot] = []

    def __enter__(self) -> "_Pool":
        """Start all workers."""
        for number in range(self._config.workers):
            log = self._log(number).open("ab")
            self._slots.append(_Slot(number, self._start(number, log), log))
        return self

    def _log(self, number: int) -> Path:
        path = self._config.output / "logs" / f"worker-{number:02d}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _start(self, number: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // (self._config.workers * self._config.ranks))
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
        # A process group of its own: Ctrl-C reaches this process only, which then lets the workers checkpoint.
        return subprocess.Popen(
            worker_command(self._config, number, self._lease),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def done(self) -> bool:
        """Say whether all workers left because there was nothing more to do; one that died is not done."""
        return all(slot.process.poll() == 0 for slot in self._slots)

    def replace_the_dead(self, ended: int, say: Callable[[str], None]) -> None:
        """Start workers that died again.

        Args:
            ended: How many trials have ended: workers that die while others get on are replaced for ever.
            say: Told of every replacement.

        Raises:
            GfmError: A worker gave up for a reason that will not go away, or died again and again.
        """
        for slot in self._slots:
            code = slot.process.poll()
            if code is None or code == 0:
                continue
            if code in _ERRORS:
                raise _ERRORS[code](f"worker {slot.number} cannot work:\n{self._last_words(slot)}")
            slot.deaths = 1 if ended > slot.ended else slot.deaths + 1
            slot.ended = ended
            if slot.deaths >= _MAX_DEATHS:
                raise GfmError(
                    f"worker {slot.number} died {slot.deaths} times in a row (exit code {code}); its log, "
                    f"{self._log(slot.number)}, ends with:\n{self._last_words(slot)}"
                )
            say(f"worker {slot.number} died (exit code {code}); starting another")
            slot.process = self._start(slot.number, slot.log)

    def _last_words(self, slot: _Slot) -> str:
        return "\n".join(self._log(slot.number).read_text(errors="replace").splitlines()[-20:])

    def __exit__(self, *_: object) -> None:
        """Ask the workers that still run to checkpoint and leave; kill those that do not."""
        running = [slot.process for slot in self._slots if slot.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for slot in self._slots:
            slot.log.close()


def summarise(opened: OpenStudy, seconds: float | None = None) -> dict[str, Any]:
    """Return how a study stands.

    Args:
        opened: The study.
        seconds: Wall time of `gfm hpo run` so far; None leaves it out.
    """
    config, trials = opened.config, opened.trials()
    places, notes = counted(trials), finish_notes(opened)
    best = next(iter(best_trials(opened)), None)
    # What went on counts with what it came to in the end, which includes what it had before.
    went_on = {number: note for number, note in notes.items() if note["state"] == "finished"}
    ended = [went_on.get(trial.number, trial.user_attrs) for trial in places]
    methods = sorted({note["joules_method"] for note in ended if "joules_method" in note})
    summary: dict[str, Any] = {
        "study": config.name,
        "output": str(config.output),
        "storage": public_url(config.storage),
        "trials": {state.name.lower(): 0 for state in TrialState}
        | {state.name.lower(): count for state, count in Counter(trial.state for trial in places).items()},
        "reasons": dict(
            Counter(str(trial.user_attrs["reason"]) for trial in places if "reason" in trial.user_attrs)
        ),
        "retried": len(trials) - len(places),
        "workers": config.workers,
        "ranks": config.ranks,
        "epochs_trained": epochs_trained(places),
        "epochs_saved": epochs_saved(places, config.epochs),
        "best": None
        if best is None
        else {
            "trial": best.number,
            "value": best.value,
            "params": best.params,
            "joules": best.user_attrs.get("joules"),
            "path": str(config.output / best.user_attrs["path"]),
        },
        "joules": sum(note.get("joules") or 0.0 for note in ended),
        "joules_method": "; ".join(methods) or None,
        "finished": [
            {key: row[key] for key in ("trial", "path", "value", "joules", "epochs")}
            for row in complete_trials(opened)
            if row["finished"]
        ],
    }
    return summary if seconds is None else {**summary, "seconds": round(seconds, 1)}
