"""A study for people: progress while it runs, all trials as a table, Optuna's dashboard."""

import csv
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.console
import rich.progress
from optuna.trial import FrozenTrial, TrialState

from gfm.errors import ResourceError
from gfm.runtime.runs import write_whole
from hpo.study import StudyConfig, read_study
from hpo.trials import counted, open_study

__all__ = ["Progress", "export_csv", "serve_dashboard"]

# What the table says of a trial beside its settings; the order of its columns.
_COLUMNS = (
    "trial",
    "state",
    "value",
    "reason",
    "epochs",
    "seconds",
    "joules",
    "joules_method",
    "path",
    "worker",
)


class Progress:
    """Context manager: a bar of trials on a terminal; elsewhere only a line for each thing that happens."""

    def __init__(self, config: StudyConfig, *, shown: bool = True) -> None:
        self._wanted = config.trials
        self._told: set[object] = set()
        self._console = rich.console.Console(stderr=True, quiet=not shown, soft_wrap=True, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[standing]}"),
            rich.progress.TimeElapsedColumn(),
            console=self._console,
            disable=not shown or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(f"study {config.name}", total=config.trials, standing="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def show(self, trials: Sequence[FrozenTrial], continued: Mapping[int, Mapping[str, Any]]) -> None:
        """Show how the study stands, and say what ended since the last time.

        Args:
            trials: All trials.
            continued: What is noted of trials that go on, by their numbers.
        """
        places = counted(trials)
        states = Counter(trial.state for trial in places)
        done = sum(count for state, count in states.items() if state.is_finished())
        standing = f"{states[TrialState.RUNNING]} running, {states[TrialState.PRUNED]} discarded"
        values = [
            trial.value for trial in places if trial.state == TrialState.COMPLETE and trial.value is not None
        ]
        standing += f", best {min(values):.4g}" if values else ""
        self._bar.update(self._task, completed=done, standing=standing)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                self.say(f"{_ending(trial)} | {done}/{self._wanted} done, {standing}")
        for number, note in continued.items():
            if note["state"] == "finished" and (number, note["epochs"]) not in self._told:
                self._told.add((number, note["epochs"]))
                self.say(f"trial {number} went on to epoch {note['epochs']}: {note['value']:.4g}")


def _ending(trial: FrozenTrial) -> str:
    """Say how a trial ended."""
    value = "" if trial.value is None else f" {trial.value:.4g}"
    reason = trial.user_attrs.get("reason")
    return f"trial {trial.number} {trial.state.name.lower()}{f' ({reason})' if reason else ''}{value}"


def export_csv(output: Path, file: Path) -> int:
    """Write one line per trial, failed and discarded ones included; return how many.

    Raises:
        MissingDataError: There is no study in the folder.
    """
    import io

    config = read_study(output)
    with open_study(config) as opened:
        trials = opened.trials()
    metrics = sorted({name for trial in trials for name in trial.user_attrs.get("metrics", {})})
    table = io.StringIO()
    writer = csv.DictWriter(table, [*_COLUMNS, *metrics, *config.space], lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        row = {key: trial.user_attrs[key] for key in _COLUMNS if key in trial.user_attrs}
        row |= {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        writer.writerow({**row, **trial.user_attrs.get("metrics", {}), **trial.params})
    write_whole(file, table.getvalue())
    return len(trials)


def serve_dashboard(output: Path, port: int) -> None:
    """Serve Optuna's dashboard of a study on 127.0.0.1 until interrupted.

    Args:
        output: Folder of the study.
        port: Where; 0 takes a free one.

    Raises:
        MissingDataError: There is no study in the folder.
        ResourceError: The port is taken, or not ours to use.
    """
    from optuna_dashboard import run_server

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"cannot listen on 127.0.0.1:{port} ({error}); choose another --port, or 0 for a free one"
            ) from None
        port = probe.getsockname()[1]
    with open_study(read_study(output)) as opened:
        print(f"http://127.0.0.1:{port}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
        run_server(opened.storage, host="127.0.0.1", port=port)
