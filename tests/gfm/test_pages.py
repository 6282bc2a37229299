"""Pages: self-contained, escaped, figures for light and dark."""

import base64
import re
from pathlib import Path

from gfm.runtime.pages import (
    Card,
    Code,
    ElementTable,
    Group,
    Image,
    Notice,
    Page,
    Plot,
    Section,
    Table,
    Text,
    render_page,
    write_page,
)
from gfm.runtime.quantities import byte_count, duration, joule_count, listed, number, setting


def render(*blocks: object) -> str:
    return render_page(
        Page("Title", "about", [Card("Label", "7", "eV", "note")], [Section("Part one", blocks)])
    )


def test_text_is_escaped() -> None:
    text = render(Text("a < b"), Notice("<script>alert(1)</script>"), Code("x = '<y>'"))
    assert "a &lt; b" in text
    assert "<script>" not in text


def test_columns_of_numbers_are_aligned_right() -> None:
    table = Table(["name", "count", "share"], [["a", "1,234", "5 %"], ["b", "–", "-0.5 %"]], strong=[1])
    assert table.numeric == [False, True, True]
    text = render(table)
    assert '<td class="number">1,234</td>' in text
    assert '<tr class="strong">' in text


def test_long_tables_fold() -> None:
    assert "<details>" in render(Table(["a"], [["1"]], caption="many", folded=True))


def test_figures_come_as_svg_in_two_palettes_without_dates() -> None:
    def draw(figure: object, palette: object) -> None:
        axes = figure.subplots()  # type: ignore[attr-defined]
        axes.plot([1, 2], [3, 4])
        axes.set(xlabel="time (s)")

    plot = Plot(draw, "a line")
    light, dark = (base64.b64decode(uri.partition(",")[2]).decode() for uri in (plot.light, plot.dark))
    assert light.startswith("<?xml")
    assert "#0b6bb0" in light
    assert "#5cb3f0" in dark
    assert "<dc:date>" not in light
    assert plot.light == plot.light
    text = render(Group([plot, Text("beside")]))
    assert text.count("data:image/svg+xml") == 2
    assert 'media="screen and (prefers-color-scheme: dark)"' in text


def test_png_files_travel_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in render(Image(tmp_path / "a.png", "a picture"))


def test_elements_lie_where_the_periodic_table_has_them() -> None:
    cells = {cell["symbol"]: cell for cell in ElementTable({"H": 10, "Fe": 1000}, "counts").cells}
    assert len(cells) == 118
    places = {symbol: (cell["row"], cell["column"]) for symbol, cell in cells.items()}
    assert len(set(places.values())) == 118
    expected = {
        "H": (1, 1), "He": (1, 18), "Li": (2, 1), "B": (2, 13), "Ne": (2, 18), "Al": (3, 13), "Sc": (4, 3),
        "Fe": (4, 8), "Kr": (4, 18), "Ba": (6, 2), "La": (9, 4), "Lu": (9, 18), "Hf": (6, 4), "Rn": (6, 18),
        "Ac": (10, 4), "Rf": (7, 4), "Og": (7, 18),
    }  # fmt: skip
    assert {symbol: places[symbol] for symbol in expected} == expected
    assert cells["Fe"]["shade"] == 1.0
    assert 0 < cells["H"]["shade"] < 1.0
    assert cells["O"]["shade"] == 0.0


def test_written_page_is_one_complete_file(tmp_path: Path) -> None:
    page = Page("Title", "about", [], [Section("One", [Text("x")]), Section("Two & three", [Text("y")])])
    path = write_page(page, tmp_path / "deep" / "page.html")
    text = path.read_text()
    assert text.rstrip().endswith("</html>")
    assert (
        re.findall(r'href="#([^"]+)"', text)
        == re.findall(r'<section id="([^"]+)"', text)
        == ["one", "two-three"]
    )
    assert text.count("<section") == text.count("</section>") == 2
    assert [child.name for child in path.parent.iterdir()] == ["page.html"]


def test_quantities_read_well() -> None:
    assert [byte_count(n) for n in (12, 3_400, 5_600_000, 7_800_000_000)] == [
        "12 B",
        "3.4 kB",
        "5.6 MB",
        "7.8 GB",
    ]
    assert [joule_count(j) for j in (12.3, 4_560, 7.89e6)] == ["12 J", "4.6 kJ", "7.9 MJ"]
    assert [duration(s) for s in (45, 90, 7200)] == ["45 s", "1.5 min", "2.0 h"]
    assert [number(v, 2) for v in (None, float("nan"), 1234.567)] == ["–", "–", "1,234.57"]
    assert [setting(v) for v in (None, 0.00123456, 16, "painn")] == ["–", "0.00123", "16", "painn"]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
