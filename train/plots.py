"""Figures of a run: its curves over the epochs, and predictions against labels.

Drawn through the object interface of matplotlib (no pyplot: no state, no display), colours by source from a
palette that colour-blind readers can tell apart (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gfm.data.ragged import RaggedBatch
from gfm.data.references import compositions
from gfm.model.potential import Potential
from train.feed import head_lookup
from train.predict import Predictions

__all__ = ["plot_loss", "plot_parity"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")
_ENERGY, _FORCES = "energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom"
# Force components drawn per source; the MAE in the legend is over all of them.
_POINTS = 20_000


def plot_loss(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, energy and forces MAE over the epochs, the latter two by source, logarithmic."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, energy, forces = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    train = [(record["epoch"], record["train"]["loss"]) for record in records if record["train"]["loss"]]
    loss.plot(*zip(*train, strict=True), color=_COLOURS[0], marker=".", label="training") if train else None
    validation = [record["validation"]["loss"] for record in records]
    loss.plot(epochs, validation, color=_COLOURS[1], marker=".", label="validation (averaged weights)")
    _style(loss, "loss", "Loss")
    names = sorted({name for record in records for name in record["validation"]["datasets"]})
    for axes, key, label, title in (
        (energy, _ENERGY, "meV/atom", "Energy MAE, validation"),
        (forces, _FORCES, "eV/Å", "Forces MAE, validation"),
    ):
        for name, colour in _colours(names).items():
            points = [
                (record["epoch"], record["validation"]["datasets"].get(name, {}).get(key)) for record in records
            ]
            points = [point for point in points if point[1] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=name)
        _style(axes, label, title)
    _write(figure, path)


def plot_parity(
    potential: Potential,
    batch: RaggedBatch,
    predictions: Predictions,
    stored: Sequence[str],
    total: int,
    path: Path,
) -> None:
    """Draw predicted against published energy per atom (less the reference) and force components, by source.

    Args:
        potential: The model, for its references.
        batch: The structures with their labels.
        predictions: Of these structures, in this order.
        stored: Source names that the batch's column ``dataset`` counts.
        total: Validation structures there are, of which ``batch`` may be a part.
        path: The PNG file.
    """
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    energy, forces = figure.subplots(1, 2)
    sources = batch.columns["dataset"].astype(np.int64)
    heads = head_lookup(stored, list(potential.dataset_names))[sources].astype(np.int64)
    references = potential.references.cpu().numpy()[heads]
    reference = (references * compositions(batch)).sum(axis=1)
    colours = _colours({stored[source] for source in np.unique(sources)})
    for name, colour in colours.items():
        source = list(stored).index(name)
        chosen = (sources == source) & batch.has("energy")
        if chosen.any():
            atoms = batch.num_atoms[chosen]
            truth = (batch.columns["energy"][chosen] - reference[chosen]) / atoms
            guess = (predictions.energy[chosen] - reference[chosen]) / atoms
            mae = 1e3 * np.abs(guess - truth).mean()
            energy.scatter(truth, guess, s=12, alpha=0.6, lw=0, color=colour,
                           label=f"{name}: {mae:.3g} meV/atom")  # fmt: skip
        atoms = np.repeat((sources == source) & batch.has("forces"), batch.num_atoms)
        if atoms.any():
            truth = batch.columns["forces"][atoms].reshape(-1)
            guess = predictions.forces[atoms].reshape(-1)
            mae = np.abs(guess - truth).mean()
            shown = slice(None, None, -(-len(truth) // _POINTS))
            forces.scatter(truth[shown], guess[shown], s=5, alpha=0.4, lw=0, color=colour,
                           label=f"{name}: {mae:.3g} eV/Å", rasterized=True)  # fmt: skip
    kind = f"{len(batch)} of {total} validation structures"
    for axes, quantity, unit in (
        (energy, "Energy per atom less reference", "eV/atom"),
        (forces, "Force component", "eV/Å"),
    ):
        _diagonal(axes)
        axes.set(xlabel=f"published ({unit})", ylabel=f"predicted ({unit})")
        axes.set_title(f"{quantity}\n{kind}", fontsize=10)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8, title="MAE", title_fontsize=8, markerscale=1.6)
    _write(figure, path)


def _diagonal(axes: Axes) -> None:
    """Draw y = x behind the points, over a square range."""
    axes.autoscale_view()
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="#999999", lw=0.8, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _style(axes: Axes, label: str, title: str) -> None:
    axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=label)
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, lw=0.6, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each source, the same in every figure of a run."""
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(sorted(names))}


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path)
