"""The waves of an evaluation on the terminal: one bar each; elsewhere one line each. On stderr."""

from types import TracebackType
from typing import Self

import rich.console
import rich.progress

__all__ = ["Waves"]

_NAMES = {
    "predict": "members predict shards",
    "combine": "mean and spread of shards",
    "calibrate": "calibration of shards",
    "score": "scores of shards",
}


class Waves:
    """Context manager that shows how far an evaluation is; `show` is what `hpo.ensemble.evaluate` calls."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal in order."""
        self._bar.stop()

    def show(self, wave: str, done: int, total: int) -> None:
        """Show that so many tasks of a wave are done."""
        name = _NAMES.get(wave, wave)
        if wave not in self._tasks:
            self._tasks[wave] = self._bar.add_task(name, total=total)
        self._bar.update(self._tasks[wave], completed=done)
        if done == total and not self._console.is_terminal:
            self._console.print(f"{name}: {done} of {total}")
