"""Figures of the report: one row of a histogram for each dataset, all on one axis, whatever their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gfm.data.moments import Histogram
from gfm.runtime.pages import Palette, Plot
from ingest.report_facts import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Row", "Scale", "pooled", "rows_plot"]

# How an axis runs; ``signed`` is logarithmic away from zero on both sides, where that is needed.
Scale = Literal["linear", "log", "signed"]
# Rows of a figure; beyond that the smallest datasets share the last one.
_MAX_ROWS = 20
_NAME = 16
_WIDTH = 5.4  # inches
_LETTER = 0.082  # inches, about, of a letter of a name
# Bars across a figure: finer bins are joined, coarser ones stay flat.
_BARS = 90


@dataclass(frozen=True)
class Row:
    """One dataset in a figure: its name, its histogram, and the limits of its filter, where there are some."""

    name: str
    histogram: Histogram
    low: float | None = None
    high: float | None = None

    @property
    def total(self) -> int:
        """Values counted."""
        return sum(self.histogram.counts) + self.histogram.below + self.histogram.above


def pooled(rows: Sequence[Row]) -> Histogram | None:
    """Return the histogram of all rows together; None where their bins are not of one grid.

    Each row may hold another stretch of the grid.
    """
    edges = np.unique([edge for row in rows for edge in row.histogram.edges])
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for row in rows:
        places = np.searchsorted(edges, row.histogram.edges)
        if (np.diff(places) != 1).any():
            return None
        counts[places[0] : places[-1]] += row.histogram.counts
    below, above = (sum(getattr(row.histogram, side) for row in rows) for side in ("below", "above"))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), below, above)


def rows_plot(rows: Sequence[Row], *, scale: Scale, title: str, label: str, caption: str) -> Plot:
    """Return a figure with a histogram for each row.

    Args:
        rows: The datasets, at least one; histograms with something in them.
        scale: How the axis runs.
        title: What is seen.
        label: What the axis shows, with its unit.
        caption: How to read it.
    """
    shown = _at_most(rows)
    names = [_plain(row.name) for row in shown]
    height = 1.0 + len(shown) * (1.2 if len(shown) == 1 else 0.6 if len(shown) <= 6 else 0.3)

    def draw(figure: "Figure", palette: Palette) -> None:
        # Margins are known beforehand, which draws in half the time.
        figure.set_layout_engine("none")
        figure.suptitle(
            title, x=0.06 / _WIDTH, y=1 - 0.08 / height, ha="left", va="top", fontsize=10, fontweight="bold"
        )
        axes = figure.add_axes(_frame(names, height))
        span = _span(shown, scale)
        _set_scale(axes, shown, scale, span)
        axes.set(xlabel=label, xlim=span, ylim=(-len(shown) + 0.9, 1.05))
        for place, row in enumerate(shown):
            _draw_row(axes, palette, row, -place, scale)
        axes.set_yticks([0.14 - place for place in range(len(shown))])
        axes.set_yticklabels(names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")

    return Plot(draw, caption, size=(_WIDTH, height), recolour=True)


def _frame(names: Sequence[str], height: float) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height of the axes, as shares of the figure."""
    left = 0.16 + _LETTER * max(map(len, names))
    return left / _WIDTH, 0.5 / height, 1 - (left + 0.18) / _WIDTH, 1 - 0.82 / height


def _draw_row(axes: "Axes", palette: Palette, row: Row, base: float, scale: Scale) -> None:
    from matplotlib.colors import to_rgba

    edges, counts = _drawn(row.histogram, scale)
    occupied = np.flatnonzero(counts)
    ends = edges[[occupied[0], occupied[-1] + 1]]
    # Bars are even on the axis as it is drawn, so that bins of unequal width do not mislead.
    transform = axes.xaxis.get_transform()
    first, last = transform.transform(np.array(axes.get_xlim()))
    grid = np.linspace(first, last, _BARS + 1)
    running = np.interp(grid, transform.transform(edges), np.concatenate([[0.0], np.cumsum(counts)]))
    heights = np.diff(running)
    heights *= 0.84 / max(float(heights.max()), 1e-300)
    filled = np.flatnonzero(heights > 0)
    colour = palette.cycle[0]
    if len(filled):
        bounds = transform.inverted().transform(grid[filled[0] : filled[-1] + 2])
        tops = base + heights[filled[0] : filled[-1] + 1]
        face = to_rgba(colour, 0.45)
        axes.stairs(tops, bounds, baseline=base, fill=True, facecolor=face, edgecolor=colour, lw=1.0)
    # The base line reaches as far as there is anything, be it too little to be seen.
    axes.plot(ends, [base, base], color=colour, lw=1.2, solid_capstyle="butt")
    middle = quantile(row.histogram, 0.5)
    if middle is not None:
        axes.plot([middle], [base], "o", ms=4, color=palette.ink, zorder=4, clip_on=False)
    for limit in (row.low, row.high):
        if limit is not None:
            axes.vlines(limit, base - 0.04, base + 0.84, color=palette.cycle[1], lw=2, zorder=3)


def _drawn(histogram: Histogram, scale: Scale) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return edges and counts as drawn, with what lies outside of the edges in the outermost bins.

    A logarithmic axis has no zero: a first bin that begins there is drawn as wide as the second.
    """
    edges = np.array(histogram.edges, dtype=np.float64)
    counts = np.array(histogram.counts, dtype=np.float64)
    counts[0] += histogram.below
    counts[-1] += histogram.above
    if scale == "log" and edges[0] <= 0:
        edges[0] = edges[1] ** 2 / edges[2] if len(edges) > 2 else edges[1] / 2
    return edges, counts


def _set_scale(axes: "Axes", rows: Sequence[Row], scale: Scale, span: tuple[float, float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    threshold = _threshold(rows, span) if scale == "signed" else None
    if threshold is not None:
        axes.set_xscale("symlog", linthresh=threshold, linscale=1.0)
        axes.xaxis.set_major_locator(FixedLocator(_signed_ticks(threshold, span)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif scale == "log":
        axes.set_xscale("log")
        decades = math.log10(span[1] / span[0])
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _threshold(rows: Sequence[Row], span: tuple[float, float]) -> float | None:
    """Return where a signed axis turns logarithmic; None where it need not.

    Values about zero have their core on the linear stretch, lest the logarithm draw it as two humps; values
    on one side of zero only their smaller half.
    """
    sizes, counts, negative = [], [], 0.0
    for row in rows:
        edges, own = _drawn(row.histogram, "signed")
        sizes.append(np.abs(edges[:-1] + edges[1:]) / 2)
        counts.append(own)
        negative += float(own[edges[1:] <= 0].sum())
    size, count = np.concatenate(sizes), np.concatenate(counts)
    order = np.argsort(size)
    running = np.cumsum(count[order])
    share = 0.95 if 0.2 < negative / running[-1] < 0.8 else 0.5
    usual = float(size[order][np.searchsorted(running, share * running[-1])])
    if usual <= 0 or max(map(abs, span)) < (5 if share > 0.5 else 20) * usual:
        return None
    return float(10.0 ** round(math.log10(usual)))


def _signed_ticks(threshold: float, span: tuple[float, float]) -> list[float]:
    """Return zero and powers of ten on both sides, no more than a figure has room for."""
    decades = max(0, math.ceil(math.log10(max(map(abs, span)) / threshold)))
    sizes = [threshold * 10.0**k for k in range(0, decades + 1, 1 if decades <= 3 else 2)]
    return [tick for tick in (*(-size for size in reversed(sizes)), 0.0, *sizes) if span[0] <= tick <= span[1]]


def _tick(value: float) -> str:
    """Return the label of a tick: plain, or a power of ten where that would be long."""
    if value and not 1e-3 <= abs(value) < 1e5:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        digits = value / 10.0**exponent
        factor = "" if math.isclose(digits, 1.0) else f"{digits:.3g}·"
        return f"${factor}10^{{{exponent}}}$"
    return f"{value:,.6g}".replace("-", "−")


def _span(rows: Sequence[Row], scale: Scale) -> tuple[float, float]:
    """Return the range with anything in it, and the limits that are near enough to be compared with it."""
    low, high = math.inf, -math.inf
    for row in rows:
        edges, counts = _drawn(row.histogram, scale)
        occupied = np.flatnonzero(counts)
        low, high = min(low, float(edges[occupied[0]])), max(high, float(edges[occupied[-1] + 1]))
    near = (low / 10, high * 10) if scale == "log" else (2 * low - high, 2 * high - low)
    limits = [limit for row in rows for limit in (row.low, row.high) if limit is not None]
    inside = [limit for limit in limits if near[0] <= limit <= near[1]]
    low, high = min([low, *inside]), max([high, *inside])
    if scale == "log":
        margin = (high / low) ** 0.02
        return low / margin, high * margin
    margin = 0.02 * (high - low)
    return low - margin, high + margin


def _at_most(rows: Sequence[Row]) -> list[Row]:
    """Return the rows; of too many the largest, with the others in one."""
    if len(rows) <= _MAX_ROWS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: -rows[place].total)
    kept = sorted(order[: _MAX_ROWS - 1])
    others = [rows[place] for place in order[_MAX_ROWS - 1 :]]
    rest = pooled(others)
    shown = [rows[place] for place in kept]
    return shown if rest is None else [*shown, Row(f"{len(others)} others", rest)]


def _plain(name: str) -> str:
    """Return a name short enough for a figure, in letters that its font has."""
    text = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 1]}…"
