"""Stopping on a signal: SIGTERM, SIGUSR1 and Ctrl-C end a run after the step it is in, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from gfm.errors import GfmError

__all__ = ["CtrlC", "Interrupted", "StopRequest"]


class Interrupted(GfmError):
    """A run was asked to stop by a signal; everything needed to go on is on disk."""

    exit_code = 128 + signal.SIGTERM


class CtrlC(Interrupted):
    """The same, asked for by a person."""

    exit_code = 128 + signal.SIGINT


class StopRequest:
    """Context manager that notes SIGTERM (the end of an allocation), SIGUSR1 (its early warning) and SIGINT.

    A second SIGINT does not wait for the step: it is Python's KeyboardInterrupt again.

    Attributes:
        number: The signal that came, 0 before one did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._former: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._former[signal.SIGINT])

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may, elsewhere nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
