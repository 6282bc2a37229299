"""Pages: one self-contained HTML file made of cards, tables, figures and code; light, dark and printable.

A page says what it shows in blocks; how it looks is in ``page.html`` beside this file. Figures are drawn by
functions on a matplotlib Figure, once for a light and once for a dark page, and travel inside the file, so
that a page asks no other host for anything and can be mailed.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gfm.runtime.runs import write_whole

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

__all__ = [
    "Bar",
    "Card",
    "Cell",
    "Code",
    "ElementTable",
    "Fragment",
    "Group",
    "Image",
    "Link",
    "Notice",
    "Page",
    "Palette",
    "Plot",
    "Section",
    "Table",
    "Text",
    "render_page",
    "write_page",
]


@dataclass(frozen=True)
class Palette:
    """Colours of a figure: the ink of text and axes, faint lines, and a cycle for data."""

    ink: str
    muted: str
    grid: str
    surface: str
    cycle: tuple[str, ...]
    sequential: str


# Okabe & Ito's colour-blind-safe hues, adjusted for contrast with each background; doi:10.1038/nmeth.1618.
LIGHT = Palette(
    ink="#1d2330",
    muted="#667085",
    grid="#e4e7ec",
    surface="#ffffff",
    cycle=("#0b6bb0", "#d1550b", "#0a8f6a", "#b5559a", "#c79200", "#4ba3d9", "#6b7280"),
    sequential="viridis_r",
)
DARK = Palette(
    ink="#e6e9f0",
    muted="#98a2b3",
    grid="#323a4a",
    surface="#1a202c",
    cycle=("#5cb3f0", "#f28b4b", "#3dcaa0", "#e08cc8", "#e8bd3f", "#9ad0f5", "#a3acbb"),
    sequential="viridis",
)


@dataclass(frozen=True)
class Card:
    """One headline figure: a label, its value with the unit, and a line below."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph; plain text."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Notice:
    """A paragraph that must not be overlooked: why a part is missing, or what to be careful with."""

    text: str
    kind: ClassVar[str] = "notice"


@dataclass(frozen=True)
class Code:
    """Lines to copy; with a caption they are folded away below it until it is opened."""

    text: str
    caption: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads somewhere; an address that is not https is shown as plain text."""

    text: str
    address: str
    kind: ClassVar[str] = "link"

    @property
    def href(self) -> str:
        """The address to follow, or empty."""
        return self.address if self.address.startswith("https://") else ""


@dataclass(frozen=True)
class Bar:
    """A cell of a table with a bar of one or a few parts.

    Attributes:
        shares: Lengths of the parts from the left, 0 to 1 of the whole width.
        label: What it shows, for the pointer and for those who do not see it.
    """

    shares: Sequence[float]
    label: str
    kind: ClassVar[str] = "bar"


Cell = str | Link | Bar


@dataclass(frozen=True)
class Table:
    """A table; numbers are given as they shall be read, columns whose every cell is a number are right-aligned.

    Attributes:
        columns: Column heads.
        rows: Cells, one sequence for each row.
        caption: One sentence, or empty.
        strong: Rows (by index) that stand out, such as totals.
        folded: Whether only the heading shows until it is opened; for long tables.
        prose: Columns (by index) of running text, which breaks into lines.
        pinned: Whether the first column stays in sight while the table scrolls sideways; a long table scrolls
            in a bounded height, with its heads and the rows that stand out in sight.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    strong: Sequence[int] = ()
    folded: bool = False
    prose: Sequence[int] = ()
    pinned: bool = False
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        cells = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        return [all(isinstance(cell, str) and _NUMBER.match(cell) for cell in column) for column in cells]


@dataclass(frozen=True)
class Plot:
    """A figure: ``draw(figure, palette)`` puts axes on an empty Figure.

    Attributes:
        draw: Draws the figure; called once for each palette.
        caption: What it shows, and what a reader should see in it.
        size: Width and height, inches; a page is about 11 wide, half a page 5.4.
        recolour: Whether it has no colours but those of the palette, so that it is drawn only once.
    """

    draw: Callable[["Figure", Palette], None]
    caption: str
    size: tuple[float, float] = (5.4, 3.6)
    recolour: bool = False
    kind: ClassVar[str] = "plot"

    @cached_property
    def _svg(self) -> bytes:
        return _draw(self, LIGHT)

    @property
    def light(self) -> str:
        """Data URI for a light page and for paper."""
        return _svg_uri(self._svg)

    @property
    def dark(self) -> str:
        """Data URI for a dark page."""
        return _svg_uri(_darkened(self._svg) if self.recolour else _draw(self, DARK))


@dataclass(frozen=True)
class Image:
    """A PNG file that exists already."""

    path: Path
    caption: str
    kind: ClassVar[str] = "image"

    @property
    def uri(self) -> str:
        """Data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class ElementTable:
    """The periodic table, each element shaded by a count (logarithmically)."""

    counts: Mapping[str, int]
    caption: str
    kind: ClassVar[str] = "elements"

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Symbol, place and shade (0 to 1) of every element."""
        import math

        from ase.data import chemical_symbols

        most = math.log1p(max(self.counts.values(), default=1))
        cells = []
        for number in range(1, 119):
            symbol = chemical_symbols[number]
            count = self.counts.get(symbol, 0)
            row, column = _place(number)
            shade = 0.15 + 0.85 * math.log1p(count) / most if count else 0.0
            cells.append(
                {"symbol": symbol, "count": count, "row": row, "column": column, "shade": round(shade, 3)}
            )
        return cells


@dataclass(frozen=True)
class Fragment:
    """HTML of its own, from a template beside the code that needs it; values are escaped as the page's are.

    Attributes:
        template: The template.
        values: What it may name.
    """

    template: Path
    values: Mapping[str, Any]
    kind: ClassVar[str] = "fragment"

    @property
    def markup(self) -> str:
        """The rendered HTML, safe to insert."""
        from markupsafe import Markup

        return Markup(_environment(self.template.parent).get_template(self.template.name).render(**self.values))


@dataclass(frozen=True)
class Group:
    """Blocks side by side where the page is wide enough."""

    blocks: Sequence[Any]
    kind: ClassVar[str] = "group"


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; subsections carry level 3."""

    title: str
    blocks: Sequence[Any]
    level: int = 2

    @property
    def anchor(self) -> str:
        """The link target."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """Title, one line below it, headline cards, sections."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    footer: str = ""


def render_page(page: Page) -> str:
    """Return the page as HTML."""
    return _environment(Path(__file__).parent).get_template("page.html").render(page=page)


def write_page(page: Page, path: str | Path) -> Path:
    """Write the page as one file, whole."""
    write_whole(Path(path), render_page(page))
    return Path(path)


def _environment(folder: Path) -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_NUMBER = re.compile(r"^[-+−<]?[\d,]*\.?\d*(e[-+]?\d+)?\s?(%|[kMG]?B|[kM]?J|s|min|h)?$|^[–—-]?$")


def _darkened(svg: bytes) -> bytes:
    """Return a figure in the dark palette, of one drawn in the light palette."""
    colours = {
        getattr(LIGHT, name).encode(): getattr(DARK, name).encode()
        for name in ("ink", "muted", "grid", "surface")
    }
    colours |= {light.encode(): dark.encode() for light, dark in zip(LIGHT.cycle, DARK.cycle, strict=True)}
    return re.sub(rb"#[0-9a-f]{6}\b", lambda found: colours.get(found[0], found[0]), svg)


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _draw(plot: Plot, palette: Palette) -> bytes:
    """Draw a figure with a palette and return it as SVG."""
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=palette.cycle),
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "text.color": palette.ink,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "lines.linewidth": 1.8,
        "svg.hashsalt": "gfm",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=plot.size, layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        plot.draw(figure, palette)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _place(number: int) -> tuple[int, int]:
    """Return row and column in the 18-column table; lanthanides and actinides lie in rows 9 and 10."""
    for first, row in ((57, 9), (89, 10)):
        if first <= number <= first + 14:
            return row, number - first + 4
    for period, (first, last) in enumerate(_PERIODS, start=1):
        if first <= number <= last:
            from_left, from_right = number - first + 1, 18 - (last - number)
            # s block on the left; the rest is counted from the noble gas on the right
            return period, from_left if from_left <= (1 if period == 1 else 2) else from_right
    raise ValueError(f"no element has the atomic number {number}")


_PERIODS = ((1, 2), (3, 10), (11, 18), (19, 36), (37, 54), (55, 86), (87, 118))
