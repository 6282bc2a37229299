"""What a person sees of a run: a bar on a terminal, plain lines elsewhere; on stderr and from rank 0 only."""

import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Reporter"]


class Reporter:
    """Shows one run; as a context manager, so that the terminal is left in order."""

    def __init__(self, *, shown: bool, epochs: int) -> None:
        """Take whether anything is shown at all, and how many epochs there are."""
        self.shown, self.epochs = shown, epochs
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Self:
        """Start the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        if self.shown:
            self._console.print(text, markup=False)

    def begin_epoch(self, epoch: int, position: int, structures: int) -> None:
        """Show a new epoch (counted from 1) that starts at a position."""
        if self._bar is not None:
            self._bar.remove_task(self._task) if self._bar.tasks else None
            text = f"epoch {epoch}/{self.epochs}"
            self._task = self._bar.add_task(text, total=structures, completed=position, loss="-")

    def step(self, position: int, loss: float) -> None:
        """Show where the epoch is; the loss is this rank's part."""
        if self._bar is not None:
            self._bar.update(self._task, completed=position, loss=f"{loss:.4g}")

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Print the line of an epoch."""
        validation = record["validation"]
        parts = [f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}"]
        if record["train"]["loss"] is not None:
            parts.append(f"train {record['train']['loss']:.4g}")
        parts.append(f"validation {validation['loss']:.4g}")
        if validation["energy_mae_mev_per_atom"] is not None:
            parts.append(f"energy {validation['energy_mae_mev_per_atom']:.3g} meV/atom")
        if validation["forces_mae_ev_per_angstrom"] is not None:
            parts.append(f"forces {validation['forces_mae_ev_per_angstrom']:.3g} eV/Å")
        if record["structures_per_second"]:
            parts.append(f"{record['structures_per_second']:.0f} structures/s")
        parts.append(f"{record['joules']:.3g} J ({record['joules_method'].partition(':')[0]})")
        self.say("  ".join(parts))
