"""Figures of the report; each function returns a `Plot` that draws itself in the page's colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfm.runtime.pages import Palette, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_and_joules",
    "calibration_by_dataset",
    "calibration_curve",
    "coverage_bars",
    "error_against_sigma",
    "error_bars",
    "errors_by_epoch",
    "loss_by_epoch",
    "parity",
    "size_histogram",
    "study_history",
    "trial_curves",
]

# Beyond this many points a scatter is drawn as pixels inside the vector figure.
_RASTER = 400

STATE_NAMES = {"COMPLETE": "complete", "PRUNED": "discarded early", "FAIL": "failed", "RUNNING": "running"}


def size_histogram(sizes: Mapping[str, NDArray[np.integer]], label: str, caption: str) -> Plot:
    """Draw how often structures of each size occur, by dataset.

    Args:
        sizes: Dataset name to one number per structure.
        label: What is counted.
        caption: The caption.
    """

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        largest = max((int(values.max()) for values in sizes.values() if len(values)), default=1)
        edges = np.unique(np.geomspace(1, largest + 1, 40).round())
        for place, (name, values) in enumerate(sizes.items()):
            colour = palette.cycle[place % len(palette.cycle)]
            axes.hist(
                np.maximum(values, 1), bins=edges.tolist(), histtype="stepfilled", alpha=0.25, color=colour
            )
            axes.hist(
                np.maximum(values, 1), bins=edges.tolist(), histtype="step", lw=1.6, color=colour, label=name
            )
        axes.set(xscale="log", xlabel=label, ylabel="structures")
        _plain_log(axes.xaxis)
        axes.legend()

    return Plot(draw, caption)


def loss_by_epoch(records: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw training and validation loss by epoch."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        for key, name, colour in (("train", "training", 0), ("validation", "validation", 1)):
            points = [
                (record["epoch"], record[key]["loss"])
                for record in records
                if (record.get(key) or {}).get("loss") is not None
            ]
            if points:
                axes.plot(*_columns(points), color=palette.cycle[colour], marker="o", ms=3.5, label=name)
        axes.set(xlabel="epoch", ylabel="loss", yscale="log")
        _plain_log(axes.yaxis)
        _whole_numbers(axes)
        axes.legend()

    return Plot(draw, "Loss by epoch; epoch 0 is before training.")


def errors_by_epoch(records: Sequence[Mapping[str, Any]], order: Sequence[str]) -> Plot:
    """Draw validation errors by epoch: energy and forces, pooled and by dataset; colours follow the order."""

    def draw(figure: "Figure", palette: Palette) -> None:
        panels = figure.subplots(1, 2)
        found = {name for record in records for name in record["validation"].get("datasets", {})}
        for axes, (key, label) in zip(panels, _ERRORS.items(), strict=True):
            for place, name in enumerate(order):
                if name not in found:
                    continue
                points = _points(records, lambda v, n=name, k=key: v.get("datasets", {}).get(n, {}).get(k))
                axes.plot(*points, color=palette.cycle[place % len(palette.cycle)], lw=1.3, label=name)
            axes.plot(*_points(records, lambda v, k=key: v.get(k)), color=palette.ink, lw=2.2, label="all")
            axes.set(xlabel="epoch", ylabel=label, yscale="log")
            _plain_log(axes.yaxis)
            _whole_numbers(axes)
        panels[0].legend()

    return Plot(draw, "Validation errors by epoch, pooled and by dataset.", size=(10.5, 3.5))


def parity(predicted: Mapping[str, Sequence[NDArray[np.float64]]], labels: Sequence[str]) -> Plot:
    """Draw predictions against labels.

    Args:
        predicted: Dataset name to (labels, predictions) of energies, then (labels, predictions) of forces.
        labels: What the two panels show.
    """

    def draw(figure: "Figure", palette: Palette) -> None:
        panels = figure.subplots(1, 2)
        for panel, axes in enumerate(panels):
            low, high = np.inf, -np.inf
            for place, (name, arrays) in enumerate(predicted.items()):
                x, y = arrays[2 * panel], arrays[2 * panel + 1]
                if not len(x):
                    continue
                low, high = min(low, x.min(), y.min()), max(high, x.max(), y.max())
                axes.scatter(
                    x, y, s=7, alpha=0.5, lw=0, color=palette.cycle[place % len(palette.cycle)], label=name,
                    rasterized=len(x) > _RASTER,
                )  # fmt: skip
            if np.isfinite(low):
                axes.plot([low, high], [low, high], color=palette.muted, lw=1, zorder=0)
            axes.set(xlabel=f"reference {labels[panel]}", ylabel=f"ensemble {labels[panel]}")
        panels[0].legend(markerscale=2)

    caption = (
        "Ensemble mean against the reference calculation on the test split; a perfect model lies on the line. "
        "Energies are without the linear reference energies of the elements, which no model has to learn."
    )
    return Plot(draw, caption, size=(10.5, 4.2))


def study_history(trials: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw the validation loss of trials in the order they were begun, and the best so far."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        done = [trial for trial in trials if trial["value"] is not None]
        for state, colour, marker in (("COMPLETE", 0, "o"), ("PRUNED", 1, "x")):
            chosen = [(trial["trial"], trial["value"]) for trial in done if trial["state"] == state]
            if chosen:
                axes.scatter(
                    *_columns(chosen), color=palette.cycle[colour], marker=marker, s=34,
                    label=STATE_NAMES[state],
                )  # fmt: skip
        complete = [trial for trial in done if trial["state"] == "COMPLETE"]
        if complete:
            best = np.minimum.accumulate([trial["value"] for trial in complete])
            axes.step(
                [trial["trial"] for trial in complete], best, where="post", color=palette.muted, lw=1.3,
                label="best so far",
            )  # fmt: skip
        axes.set(xlabel="trial", ylabel="validation loss", yscale="log")
        _plain_log(axes.yaxis)
        _whole_numbers(axes)
        axes.legend()

    return Plot(draw, "Validation loss by trial; a discarded one shows the last loss it reported.")


def trial_curves(trials: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw validation loss by epoch for every trial, complete and discarded."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        named = set()
        for trial in trials:
            points = sorted(trial["curve"].items())
            if not points:
                continue
            state = trial["state"]
            label = None if state in named else STATE_NAMES.get(state, state.lower())
            named.add(state)
            colour = {"COMPLETE": palette.cycle[0], "PRUNED": palette.cycle[1]}.get(state, palette.muted)
            axes.plot(*_columns(points), color=colour, lw=1.2, alpha=0.8, marker=".", ms=4, label=label)
        axes.set(xlabel="epoch", ylabel="validation loss", yscale="log")
        _plain_log(axes.yaxis)
        _whole_numbers(axes)
        axes.legend()

    return Plot(draw, "Validation loss by epoch of every trial: where a curve ends early, epochs were saved.")


def accuracy_and_joules(
    trials: Sequence[Mapping[str, Any]], front: Sequence[int], members: Sequence[int]
) -> Plot:
    """Draw validation loss against joules, with the Pareto front and the chosen members."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        known = [trial for trial in trials if trial["joules"]]
        at = {trial["trial"]: (trial["joules"], trial["value"]) for trial in known}
        if at:
            axes.scatter(*_columns(list(at.values())), color=palette.cycle[0], s=30, label="trial", zorder=2)
        line = [at[number] for number in front if number in at]
        if line:
            axes.plot(*_columns(line), color=palette.muted, lw=1.2, ls="--", label="Pareto front", zorder=1)
        chosen = [at[number] for number in members if number in at]
        if chosen:
            axes.scatter(
                *_columns(chosen), s=120, facecolors="none", edgecolors=palette.cycle[1], lw=1.8,
                label="member", zorder=3,
            )  # fmt: skip
        for number in members:
            if number in at:
                axes.annotate(
                    str(number), at[number], xytext=(7, 6), textcoords="offset points", fontsize=8,
                    color=palette.ink,
                )  # fmt: skip
        axes.set(xlabel="energy used for training (J)", ylabel="validation loss")
        axes.legend()

    return Plot(draw, "Accuracy against energy used; circles are the chosen members, with their trial numbers.")


def error_bars(comparison: Mapping[str, Any]) -> Plot:
    """Draw test errors of the best single member and of the ensemble mean, by dataset."""

    def draw(figure: "Figure", palette: Palette) -> None:
        panels = figure.subplots(1, 2)
        single, mean = comparison["single_best"], comparison["ensemble"]
        names = [*mean["datasets"], "all"]
        for axes, (key, label) in zip(panels, _ERRORS.items(), strict=True):
            for shift, table, colour, name in (
                (-0.2, single, 6, "best single member"),
                (0.2, mean, 0, "ensemble mean"),
            ):
                values = [
                    (table if n == "all" else table["datasets"].get(n, {})).get(key) or 0.0 for n in names
                ]
                axes.bar(np.arange(len(names)) + shift, values, 0.38, color=palette.cycle[colour], label=name)
            axes.set_xticks(range(len(names)), names)
            axes.set_ylabel(label)
            axes.grid(visible=False, axis="x")
        panels[0].legend()

    return Plot(
        draw, "Test errors of the member that was best on validation, and of the mean of all.", (10.5, 3.3)
    )


def calibration_curve(curves: Mapping[str, Any], title: str) -> Plot:
    """Draw the observed against the expected share inside central intervals, before and after calibration."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        levels = [0.0, *curves["levels"], 1.0]
        axes.plot([0, 1], [0, 1], color=palette.muted, lw=1, ls="--")
        for key, name, colour in (("before", "before calibration", 1), ("after", "after calibration", 0)):
            observed = [0.0, *curves[f"observed_{key}"], 1.0]
            axes.plot(levels, observed, color=palette.cycle[colour], label=name)
            axes.fill_between(levels, levels, observed, color=palette.cycle[colour], alpha=0.12, lw=0)
        axes.set(
            xlabel="expected share inside the interval",
            ylabel="observed share",
            title=title,
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.set_aspect("equal")
        axes.legend(loc="upper left")

    caption = (
        f"Calibration of {title.lower()} on test. Below the diagonal sigma is too small; the shaded area is "
        "the miscalibration area."
    )
    return Plot(draw, caption, size=(5.2, 4.6))


def calibration_by_dataset(curves: Mapping[str, Mapping[str, Any]], order: Sequence[str], title: str) -> Plot:
    """Draw the calibration curve of each dataset, after calibration; colours follow the order."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=palette.muted, lw=1, ls="--")
        for place, name in enumerate(order):
            if name in curves:
                levels = [0.0, *curves[name]["levels"], 1.0]
                observed = [0.0, *curves[name]["observed_after"], 1.0]
                axes.plot(levels, observed, color=palette.cycle[place % len(palette.cycle)], lw=1.5, label=name)
        axes.set(xlabel="expected share inside the interval", ylabel="observed share", title=title)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="lower right")

    return Plot(draw, f"Calibration of {title.lower()} by dataset, after calibration, on test.")


def error_against_sigma(curves: Mapping[str, Any], title: str, unit: str, factor: float) -> Plot:
    """Draw |error| against calibrated sigma as a density, with RMSE over root mean variance in bins."""

    def draw(figure: "Figure", palette: Palette) -> None:
        from matplotlib.colors import LogNorm

        axes = figure.subplots()
        cells = curves["density"]
        sigma, error, count = (np.asarray(cells[key], dtype=float) for key in ("sigma", "error", "count"))
        sigma, error = factor * sigma, factor * error
        visible = error > 1e-3 * np.max(error, initial=1e-12)
        marks = axes.scatter(
            sigma[visible], error[visible], c=count[visible], s=9, marker="s", lw=0, alpha=0.8,
            cmap=palette.sequential, norm=LogNorm(vmin=1, vmax=max(10.0, float(count.max(initial=1.0)))),
            rasterized=True,
        )  # fmt: skip
        bins = np.asarray(curves["reliability_after"], dtype=float).reshape(-1, 3)
        axes.plot(
            factor * bins[:, 0], factor * bins[:, 1], "o-", ms=4.5, lw=1.4, color=palette.cycle[1],
            label="RMSE in bins of sigma",
        )  # fmt: skip
        ends = [factor * bins[:, 0].min(), factor * bins[:, 0].max()]
        axes.plot(ends, ends, color=palette.ink, lw=1, ls="--", label="RMSE = sigma")
        axes.set(
            xscale="log",
            yscale="log",
            title=title,
            xlabel=f"calibrated sigma ({unit})",
            ylabel=f"|error| ({unit})",
        )
        for axis, values in ((axes.xaxis, sigma[visible]), (axes.yaxis, error[visible])):
            if len(values) and values.max() < 50 * values.min():
                _plain_log(axis)
        bar = figure.colorbar(marks, ax=axes, label="values in a cell", pad=0.02)
        _plain_log(bar.ax.yaxis)
        bar.outline.set_visible(False)
        axes.legend(loc="lower right")

    caption = (
        f"Error of {title.lower()} against its calibrated sigma on test. A sigma that can be trusted puts the "
        "binned RMSE on the dashed line."
    )
    return Plot(draw, caption, size=(5.6, 4.6))


def coverage_bars(scores: Mapping[str, Any], title: str) -> Plot:
    """Draw the share of test values inside central intervals, before and after, with what was promised."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        pooled = scores["pooled"]
        levels = list(pooled["after"]["coverage"])
        for shift, key, colour in ((-0.2, "before", 1), (0.2, "after", 0)):
            values = [100 * pooled[key]["coverage"][level] for level in levels]
            bars = axes.bar(
                np.arange(len(levels)) + shift,
                values,
                0.38,
                color=palette.cycle[colour],
                label=f"{key} calibration",
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2, color=palette.ink)
        for place, level in enumerate(levels):
            axes.hlines(float(level.rstrip("%")), place - 0.45, place + 0.45, color=palette.ink, lw=1.6)
        axes.set_xticks(range(len(levels)), [f"{level} interval" for level in levels])
        axes.set(ylabel="values inside (%)", ylim=(0, 118), title=title, yticks=range(0, 101, 20))
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper left", ncols=2)

    return Plot(draw, f"Coverage of {title.lower()} on test; the lines are what each interval promises.")


_ERRORS = {
    "energy_mae_mev_per_atom": "energy MAE (meV/atom)",
    "forces_mae_ev_per_angstrom": "forces MAE (eV/Å)",
}


def _points(records: Sequence[Mapping[str, Any]], value: Any) -> tuple[list[float], list[float]]:
    pairs = [(record["epoch"], value(record["validation"])) for record in records]
    kept = [(epoch, number) for epoch, number in pairs if number is not None]
    return [epoch for epoch, _ in kept], [number for _, number in kept]


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plain_log(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, which a range below a factor of ten needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    subs = (1.0, 2.0, 5.0) if high > 12 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())
