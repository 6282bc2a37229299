"""Stopping on a signal: SIGTERM and SIGUSR1 end a run after the step it is in, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from gfm.errors import GfmError

__all__ = ["Interrupted", "StopRequest"]


class Interrupted(GfmError):
    """A run was asked to stop by a signal; everything needed to go on is on disk."""

    exit_code = 128 + signal.SIGTERM


class StopRequest:
    """Context manager that notes SIGTERM (the end of an allocation) and SIGUSR1 (its early warning).

    Attributes:
        number: The signal that came, 0 before one did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._former: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may, elsewhere nothing is caught."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
