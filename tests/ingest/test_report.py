"""The report on a dataset: what the manifest says is on the page, whatever is missing has its sentence."""

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from gfm.data.moments import Histogram, Moments
from gfm.errors import MissingDataError
from gfm.runtime import pages
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import parse_config
from ingest import report_rejects
from ingest.build import build
from ingest.recipe import Recipe
from ingest.report import default_report, write_report
from ingest.report_figures import Row, pooled
from ingest.report_reasons import REASONS, meaning
from ingest.report_rejects import examples_of
from store.manifest import DatasetEntry, Manifest, Reference

INGEST = Path(__file__).resolve().parents[2] / "ingest"
SIZES = [2.0**k for k in range(-8, 9)]
ENERGIES = [*(-size for size in reversed(SIZES)), 0.0, *SIZES]


def write_frames(path: Path, count: int) -> Path:
    """Write water molecules and rock salt, one of them with a force that no filter lets pass."""
    rng = np.random.default_rng(0)
    frames = []
    for place in range(count):
        atoms = (
            Atoms("OH2", rng.normal([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], 0.05))
            if place % 2
            else Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0.01 * place]], cell=np.eye(3) * 5.6, pbc=True)
        )
        forces = rng.normal(scale=0.3, size=(len(atoms), 3))
        forces[0, 0] += 900.0 if place == 4 else 0.0
        atoms.calc = SinglePointCalculator(atoms, energy=-4.0 * len(atoms) + rng.normal(), forces=forces)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 59 structures and one reject, made by ingestion itself."""
    folder = tmp_path_factory.mktemp("report")
    source = {"name": "salts", "reader": "extxyz", "path": str(write_frames(folder / "salts.xyz", 60))}
    source |= {"theory": "PBE <b>&</b>", "licence": "CC0-1.0", "doi": "10.1234/five(6)<7>"}
    recipe = parse_config(Recipe, {"output": str(folder / "set"), "sources": [source]}, "test")
    with open_client(ClusterConfig(processes=False, workers=1, dashboard=None)) as client:
        build(recipe, client=client)
    return folder / "set"


@pytest.fixture
def dataset(ingested: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(ingested, tmp_path / "set"))


def moments(*values: float) -> dict[str, Any]:
    return Moments.of(np.array(values)).to_json()


def histogram(values: Any, edges: list[float]) -> dict[str, Any]:
    return Histogram.of(np.asarray(values, dtype=float), edges).to_json()


def full_statistics() -> dict[str, Any]:
    """Every key that the page knows."""
    rng = np.random.default_rng(1)
    return {
        "splits": {"train": 47, "validation": 7, "test": 5},
        "elements": {
            "O": {"atoms": 30, "structures": 30, "force_norm": moments(0.1, 0.3)},
            "Na": {"atoms": 29, "structures": 29, "force_norm": moments(0.5)},
        },
        "num_atoms_histogram": histogram(rng.integers(2, 4, 59), [1, 2, 3, 5, 10]),
        "force_histogram": histogram(rng.lognormal(size=150), [0.0, *SIZES]),
        "largest_force_histogram": histogram(rng.lognormal(size=59), SIZES),
        "stress_histogram": histogram(rng.lognormal(-4, 1, size=59), SIZES),
        "shortest_distance_histogram": histogram(rng.normal(1.5, 0.1, 59), [0.05 * k for k in range(101)]),
        "neighbors_histogram": histogram(rng.normal(20, 4, 59), [float(k) for k in range(0, 202, 2)]),
        "energy_per_atom_histogram": histogram(rng.normal(-90, 1, 59), ENERGIES),
        "energy_residual_histogram": histogram(rng.normal(0, 0.2, 59), ENERGIES),
        "limits": {
            "energy-residual": {"low": -2.0, "high": 2.0, "unit": "eV/atom", "median": 0, "spread": 0.2},
            "largest-force": {"low": None, "high": 40.0, "unit": "eV/angstrom", "median": 1, "spread": 2},
        },
    }


@pytest.fixture
def change(dataset: Path) -> Callable[..., Path]:
    """Return a maker of the dataset with other parts of its manifest."""

    def make(*, provenance: dict[str, Any] | None = None, **updates: Any) -> Path:
        manifest = Manifest.load(dataset)
        updates["provenance"] = {**manifest.provenance, **(provenance or {})}
        manifest.model_copy(update=updates).save(dataset)
        return dataset

    return make


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty, for tests of text only: drawing is what takes the time."""
    monkeypatch.setattr(pages, "_draw", lambda plot, palette: b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def page_of(dataset: Path, folder: Path) -> str:
    return write_report(dataset, folder / "page.html").read_text()


def visible(text: str) -> str:
    """Return the page without figures, style and script."""
    text = re.sub(r"(?s)<style>.*?</style>|<script>.*?</script>", "", text)
    return re.sub(r'(src|srcset)="data:[^"]*"', "", text)


def row_of(text: str, heading: str, first: str) -> list[str]:
    """Return the cells of one row in the section of a heading."""
    section = text.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    for row in re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", section):
        cells = [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"(?s)<td[^>]*>(.*?)</td>", row)]
        if cells and cells[0] == first:
            return [unescape(cell) for cell in cells]
    raise AssertionError(f"no row {first} in {heading}")


@pytest.mark.usefixtures("undrawn")
def test_page_of_a_real_ingestion_says_what_the_manifest_says(ingested: Path, tmp_path: Path) -> None:
    text = visible(page_of(ingested, tmp_path))
    manifest = Manifest.load(ingested)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Datasets", "Rejects", "Distributions", "Elements", "References", "Splits", "Work", "Provenance",
    ]  # fmt: skip
    assert manifest.structures == 59
    assert row_of(text, "Datasets", "salts")[1:5] == ["59", "100 %", f"{manifest.atoms:,}", "2.5"]
    assert row_of(text, "Rejects", "force-too-large")[1:3] == ["1", "100 %"]
    assert manifest.content_hash in text
    assert f"{manifest.splits.counts['train']}" in row_of(text, "Splits", "salts")
    assert "edges_cutoff: 5.0" in text


def test_statistics_become_figures_with_their_meaning_in_the_title(
    change: Callable[..., Path], tmp_path: Path
) -> None:
    text = page_of(change(statistics={"salts": full_statistics()}), tmp_path)
    assert text.count("<picture>") == 8
    assert "before they were counted" not in text
    row = row_of(text, "Distributions", "salts")
    assert row == ["salts", "energy-residual", "-2", "2", "0", "0.2", "eV/atom"]
    for caption in ("Energies per atom after referencing: 59 structures", "Forces on atoms: 150 atoms"):
        assert caption in text


@pytest.mark.usefixtures("undrawn")
def test_every_missing_key_leaves_its_part_out_with_a_sentence(
    change: Callable[..., Path], tmp_path: Path
) -> None:
    text = visible(page_of(change(statistics={}), tmp_path))
    assert "<picture>" not in text
    assert "made before elements were counted" in text
    assert "forces on atoms" in text
    every = full_statistics()
    for key in every:
        some = {name: value for name, value in every.items() if name != key}
        folder = tmp_path / key
        assert "<h2>Provenance</h2>" in page_of(change(statistics={"salts": some}), folder)


@pytest.mark.usefixtures("undrawn")
def test_periodic_table_counts_structures_atoms_and_forces(change: Callable[..., Path], tmp_path: Path) -> None:
    text = page_of(change(statistics={"salts": full_statistics()}), tmp_path)
    assert len(re.findall('data-z="', text)) == 118
    title = re.search(r'data-z="O" data-name="Oxygen" title="([^"]*)"', text)
    assert title is not None
    assert unescape(title[1]) == "O, Oxygen: 30 structures (50.8 %)\n30 atoms\nmean |F| 0.2 eV/Å"
    assert 'data-z="Fe" data-name="Iron" title="Fe, Iron: in no structure"' in text


@pytest.mark.usefixtures("undrawn")
def test_untrusted_text_is_escaped(change: Callable[..., Path], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    entry = DatasetEntry(
        name=evil, theory=evil, licence=evil, doi=f'10.1/"{evil}', source=evil, energy_kind=evil, structures=59,
        rejected={"force-too-large": 1, evil: 1},
    )  # fmt: skip
    dataset = change(
        datasets=[entry], statistics={evil: full_statistics()}, provenance={"recipe": {"a": evil}, "host": evil}
    )
    lines = [{"source": evil, "reason": evil, "value": evil, "dataset": evil}]
    (dataset / "rejects" / "evil.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(dataset, tmp_path)
    assert evil in unescape(visible(text))
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("<script>") == 1


@pytest.mark.usefixtures("undrawn")
def test_doi_leads_to_its_resolver_and_nothing_else_is_a_link(
    change: Callable[..., Path], ingested: Path, tmp_path: Path
) -> None:
    text = page_of(ingested, tmp_path)
    assert re.findall(r'<a href="(https?:[^"]*)"', text) == ["https://doi.org/10.1234/five%286%29%3C7%3E"]
    entry = DatasetEntry(name="salts", doi="javascript:alert(1)", structures=59)
    text = page_of(change(datasets=[entry]), tmp_path)
    assert "javascript:alert(1)" in text
    assert 'href="javascript' not in text


def test_nothing_is_loaded_from_elsewhere(change: Callable[..., Path], tmp_path: Path) -> None:
    text = page_of(change(statistics={"salts": full_statistics()}), tmp_path)
    loaded = re.findall(r'(?:src|srcset|<link[^>]*href)="([^"]*)"|url\(([^)]*)\)|@import', text)
    assert loaded
    assert all(source.startswith("data:") for source, _ in loaded)


@pytest.mark.usefixtures("undrawn")
def test_reference_that_is_not_determined_is_said(change: Callable[..., Path], tmp_path: Path) -> None:
    reference = Reference(
        values={"Na": -1.25, "Cl": -3.5}, rank=1, num_elements=2, unseen=["O"], residual_std=0.0125, count=47
    )
    entries = [
        DatasetEntry(name="salts", structures=59, reference=reference),
        DatasetEntry(name="lonely", structures=1),
    ]
    text = visible(page_of(change(datasets=entries), tmp_path))
    assert row_of(text, "References", "salts") == ["salts", "47", "2", "1", "0.0125", "O"]
    assert row_of(text, "References", "Na") == ["Na", "-1.250"]
    assert "do not determine every element" in text
    assert "no reference (0 eV)" in text
    assert "Without any reference: lonely" in text


@pytest.mark.usefixtures("undrawn")
def test_dataset_without_rejects_says_so(change: Callable[..., Path], tmp_path: Path) -> None:
    text = page_of(change(datasets=[DatasetEntry(name="salts", structures=59)]), tmp_path)
    assert "No record was refused" in text


def test_one_structure_without_forces_makes_a_page(change: Callable[..., Path], tmp_path: Path) -> None:
    statistics = {
        "splits": {"train": 1, "validation": 0, "test": 0},
        "elements": {"He": {"atoms": 1, "structures": 1, "force_norm": Moments().to_json()}},
        "num_atoms": moments(1.0),
        "num_atoms_histogram": histogram([1], [1, 2, 3, 5]),
        "energy_per_atom_histogram": Histogram((-79.0, -78.0), (1,)).to_json(),
        "energy_residual_histogram": Histogram((0.0, 0.1), (1,)).to_json(),
        "force_histogram": Histogram((0.0, 1.0), (0,)).to_json(),
        "neighbors_histogram": histogram([0], [float(k) for k in range(0, 20, 2)]),
    }
    entry = DatasetEntry(name="salts", structures=1, atoms=1)
    text = page_of(change(datasets=[entry], structures=1, atoms=1, statistics={"salts": statistics}), tmp_path)
    assert '<div class="value">1</div>' in text
    assert "forces on atoms" in text
    assert row_of(visible(text), "Datasets", "salts")[1:5] == ["1", "100 %", "1", "1.0"]


@pytest.mark.slow
def test_256_datasets_share_rows_of_figures_and_long_tables_scroll(
    change: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"part-{place:03d}" for place in range(256)]
    reference = Reference(values={"O": -1.0}, rank=1, num_elements=1, residual_std=0.1, count=47)
    entries = [
        DatasetEntry(name=name, structures=10, rejected={"duplicate": 2}, reference=reference) for name in names
    ]
    timing = {name: {"cpu_seconds": 2.0, "bytes": 10**6, "parts": 1} for name in names}
    statistics = {name: full_statistics() for name in names}
    text = visible(
        page_of(change(datasets=entries, statistics=statistics, provenance={"timing": timing}), tmp_path)
    )
    assert row_of(text, "Work", "all")[1:] == ["512.0", "", "0", "256.0 MB", "0.5", "256"]
    assert row_of(text, "Rejects", "duplicate")[1] == "512"
    assert text.count('class="table-scroll pinned tall"') >= 4
    assert "largest of 256 datasets" in text


def test_examples_are_found_without_reading_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(50):
        name, rare = ("a", "x") if part < 40 else ("b", "y")
        lines = [
            {"source": f"{part}:{k}", "reason": "common", "value": str(k), "dataset": name} for k in range(500)
        ]
        lines[-1]["reason"] = rare
        (tmp_path / f"{part:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = {("a", "common"): 3, ("b", "common"): 3, ("a", "x"): 1, ("b", "y"): 1}
    looked = []
    monkeypatch.setattr(report_rejects, "_record", lambda line: looked.append(line) or json.loads(line))
    found, complete = examples_of(tmp_path, {key: wanted[key] for key in list(wanted)[:2]})
    assert complete
    assert [len(found[key]) for key in found] == [3, 3]
    assert found["b", "common"][0] == ("40:0", "0")
    assert len(looked) < 1500
    found, complete = examples_of(tmp_path, wanted)
    assert complete
    assert found["a", "x"] == [("0:499", "499")]
    assert len(set(found["a", "common"])) == 3
    monkeypatch.setattr(report_rejects, "_MAX_LINES", 100)
    looked.clear()
    found, complete = examples_of(tmp_path, wanted)
    assert not complete
    assert len(looked) <= 200


def test_torn_and_foreign_lines_of_rejects_do_not_stop_the_report(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(b'[1]\n{"source": "\xff\n{"dataset": "a", "reason": "x"\n\x00')
    (tmp_path / "1.jsonl").write_text('{"source": "s", "reason": "x", "value": "v", "dataset": "a"}\n')
    assert examples_of(tmp_path, {("a", "x"): 3}) == ({("a", "x"): [("s", "v")]}, False)
    assert examples_of(tmp_path / "none", {("a", "x"): 1}) == ({}, False)


def test_every_reason_that_ingestion_gives_has_a_meaning() -> None:
    slug = r'"([a-z]+(?:-[a-z]+)+|duplicate|unreadable)"'
    found = set()
    for path in sorted(INGEST.rglob("*.py")):
        text = path.read_text()
        for call in (rf"Refused\(\s*{slug}", rf"reject\([^,()]*,\s*{slug}", rf"refuse\([^\"]*?{slug}"):
            found |= set(re.findall(call, text))
        found |= set(re.findall(rf"Reject\([^,()]*,\s*{slug}", text))
    assert len(found) > 25
    assert {reason for reason in found if "this reader's own" in meaning(reason)} == set()
    assert "this reader's own" in meaning("phlogiston")
    assert all(text.endswith(".") for text in REASONS.values())


def test_stretches_of_one_grid_are_pooled() -> None:
    left, right = Histogram((-4.0, -2.0, -1.0), (1, 2)), Histogram((1.0, 2.0), (5,), above=1)
    both = pooled([Row("a", left), Row("b", right)])
    assert both == Histogram((-4.0, -2.0, -1.0, 1.0, 2.0), (1, 2, 0, 5), 0, 1)
    overlapping = pooled([Row("a", left), Row("b", Histogram((-2.0, -1.0, 0.0), (7, 8)))])
    assert overlapping == Histogram((-4.0, -2.0, -1.0, 0.0), (1, 9, 8))
    assert pooled([Row("a", left), Row("b", Histogram((-3.0, -1.0), (1,)))]) is None


def test_report_lies_beside_the_dataset_and_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert default_report(Path(".")) == tmp_path / "set.report.html"
    assert default_report(tmp_path / "set") == tmp_path / "set.report.html"
    with pytest.raises(MissingDataError, match="not a dataset"):
        write_report(tmp_path / "set", tmp_path / "page.html")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 700])
def test_browser_shows_it_without_errors_requests_or_overflow(
    change: Callable[..., Path], tmp_path: Path, scheme: Any, width: int
) -> None:
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    other = {"elements": {"O": {"atoms": 4, "structures": 2}}, "splits": {"train": 2}}
    entries = [DatasetEntry(name="salts", structures=59), DatasetEntry(name="oxides", structures=4)]
    dataset = change(datasets=entries, statistics={"salts": full_statistics(), "oxides": other})
    page = write_report(dataset, tmp_path / "page.html")
    problems: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        tab.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_load_state("networkidle")
        broken = tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        oxygen = tab.locator("[data-z=O]")
        counts = [oxygen.locator("span").inner_text()]
        tab.locator("#pt-dataset").select_option(label="oxides")
        counts.append(oxygen.locator("span").inner_text())
        sodium = tab.locator("[data-z=Na]").get_attribute("title")
        oxygen.hover()
        told = tab.locator("#pt-about").inner_text()
        tab.locator("#pt-dataset").select_option(index=0)
        counts.append(oxygen.locator("span").inner_text())
        browser.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert broken == 0
    assert overflow <= 0
    assert counts == ["32", "2", "32"]
    assert sodium == "Na, Sodium: in no structure"
    assert told.splitlines() == ["O, Oxygen", "2 structures (50.0 %)", "4 atoms"]
