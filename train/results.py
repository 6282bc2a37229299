"""What a run leaves for those who come after it: its result, summary.json, figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfm.model.build import load_model
from gfm.runtime.runs import RunFolder
from store.samples import SampleStore
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.feed import GraphMaker
from train.predict import predict
from train.state import EpochRecord, State

__all__ = ["TrainResult", "finish", "finished", "write_summary"]

# Structures shown in a parity plot: more would only darken it.
_SHOWN = 1000
# Structures over which the conservation gap of direct forces is averaged.
_GAP_SHOWN = 64


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        status: "finished", or "stopped" where ``on_epoch`` said so.
        epochs: Whole epochs done.
        best: Record of the epoch with the lowest validation loss.
        last: Record of the last epoch.
        model: Directory of the best model.
        joules: Of the whole run, over all ranks and all resumes.
        joules_method: How they were found.
    """

    status: str
    epochs: int
    best: EpochRecord
    last: EpochRecord
    model: Path
    joules: float
    joules_method: str


def write_summary(folder: RunFolder, state: State, about: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json from the records, the state and what else is known (status, ranks, store, ...)."""
    records = folder.records()
    rates = [record["structures_per_second"] for record in records if record["structures_per_second"]]
    summary = {
        **about,
        "epochs": state.epoch,
        "steps": state.step,
        "structures_per_second": float(np.median(rates)) if rates else None,
        "first": records[0] if records else None,
        "last": records[-1] if records else None,
        "best": state.best,
        "seconds": state.spent.seconds,
        "joules": state.spent.joules,
        "parameters": sum(parameter.numel() for parameter in state.potential.parameters()),
    }
    folder.write_summary(summary)
    return summary


def finish(
    folder: RunFolder,
    state: State,
    about: dict[str, Any],
    parity: tuple[SampleStore, NDArray[np.int64], list[str]] | None,
) -> TrainResult:
    """Write the summary and draw the figures; rank 0 only.

    Args:
        folder: The run's folder.
        state: The state at its end.
        about: What else the summary says; ``status`` and ``joules_method`` among it.
        parity: Samples, validation ids and source names for the figures; None for no figures.
    """
    if parity is not None:
        from train.plots import plot_loss, plot_parity

        samples, ids, stored = parity
        rows = ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _SHOWN)).round().astype(np.int64))]
        batch = samples.get(rows)
        potential = load_model(folder / "model")
        predictions = predict(potential, batch, stored=stored)
        parameter = next(potential.parameters())
        make_graph = GraphMaker(
            potential.config, stored, list(potential.dataset_names), parameter.dtype, parameter.device
        )
        some = make_graph(batch.take(np.arange(0, len(batch), max(1, len(batch) // _GAP_SHOWN))))
        about = {**about, "conservation_gap_ev_per_angstrom": potential.conservation_gap(some)}
        plot_loss(folder.records(), folder / "plots" / "loss.png")
        plot_parity(potential, batch, predictions, stored, len(ids), folder / "plots" / "parity.png")
    return _result(write_summary(folder, state, about), folder)


def finished(folder: RunFolder, config: TrainConfig, checkpoint: Checkpoint) -> TrainResult | None:
    """Return the result of a run that has nothing left to do, None for any other."""
    summary = folder.summary()
    if summary is None or summary["status"] != "finished" or not (folder / "model").is_dir():
        return None
    if checkpoint.epoch < config.epochs or summary["epochs"] != checkpoint.epoch:
        return None
    return _result(summary, folder)


def _result(summary: dict[str, Any], folder: RunFolder) -> TrainResult:
    return TrainResult(
        status=summary["status"],
        epochs=summary["epochs"],
        best=summary["best"],
        last=summary["last"],
        model=folder / "model",
        joules=summary["joules"],
        joules_method=summary["joules_method"],
    )
