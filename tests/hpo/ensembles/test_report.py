"""The report: one file, complete in itself, that says why a part is missing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.ensemble import evaluate
from hpo.report import build_report
from store.dataset import Dataset


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of four epochs with made-up errors."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = []
    for epoch in range(5):
        part = {"energy_mae_mev_per_atom": 90.0 / (1 + epoch), "forces_mae_ev_per_angstrom": 0.8 / (1 + epoch)}
        validation = part | {
            "loss": 2.0 / (1 + epoch),
            "structures": 100,
            "datasets": {"organics": part | {"structures": 60}, "oxides": part | {"structures": 40}},
        }
        record = {
            "epoch": epoch,
            "train": {"loss": 2.1 / (1 + epoch)} if epoch else None,
            "validation": validation,
        }
        lines.append(
            json.dumps(record | {"seconds": 3.0, "ranks": 2, "store": "rma", "structures_per_second": 50.0})
        )
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    summary = {"joules": 4200.0, "joules_method": "estimate: made up", "parameters": 12345}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def page(
    tmp_path: Path,
    dataset: Dataset,
    make_ensemble: Callable[..., Path],
    known_errors: Any,
    client: Any,
    run: Path,
) -> Path:
    """A report on a dataset, a run and an ensemble."""
    folder = make_ensemble()
    evaluate(folder, client=client)
    return build_report(tmp_path / "report.html", ensemble=folder, run=run)


def test_all_parts_are_there_and_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Dataset", "Training", "Study", "Ensemble", "Uncertainty of energies", "Uncertainty of forces",
        "How to use it", "Provenance",
    ]  # fmt: skip
    visible = re.sub(r'(src|srcset)="data:[^"]*"', "", text)
    assert "http" not in visible
    assert "<script" not in visible
    assert "No study was found" in visible
    assert "nan-energy" in visible
    assert 'EnsembleCalculator("' in visible.replace("&#34;", '"')


def test_figures_of_cards_are_those_of_the_scores(page: Path) -> None:
    scores = json.loads((page.parent / "ensemble" / "scores.json").read_text())
    mean = scores["comparison"]["ensemble"]["forces_mae_ev_per_angstrom"]
    assert f'<div class="value">{mean:.3f} <small>eV/Å</small>' in page.read_text()
    assert '<div class="value">240</div>' in page.read_text()


def test_every_part_may_be_missing(
    tmp_path: Path, dataset: Dataset, make_ensemble: Callable[..., Path]
) -> None:
    text = build_report(tmp_path / "dataset.html", dataset=dataset.path).read_text()
    for what in ("training run", "study", "ensemble"):
        assert f"No {what} was given" in text
    unscored = build_report(tmp_path / "unscored.html", ensemble=make_ensemble()).read_text()
    assert "has no scores yet" in unscored


def test_pages_are_the_same_for_the_same_input(tmp_path: Path, dataset: Dataset) -> None:
    first, second = (build_report(tmp_path / f"{i}.html", dataset=dataset.path).read_text() for i in range(2))
    times = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?"
    assert re.sub(times, "", first) == re.sub(times, "", second)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_shows_it_without_errors_or_requests(page: Path, scheme: Any) -> None:
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    problems: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        tab.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_load_state("networkidle")
        broken = tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        images = tab.evaluate("document.images.length")
        overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.get_by_role("link", name="Uncertainty of forces").click()
        shown = tab.evaluate("document.getElementById('uncertainty-of-forces').getBoundingClientRect().top")
        browser.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert images > 10
    assert broken == 0
    assert overflow <= 0
    assert 0 <= shown < 900
    assert sum(int(part) for part in re.findall(r"\d+", background)[:3]) > 600 if scheme == "light" else True
