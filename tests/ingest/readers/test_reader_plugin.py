"""A third party's reader, found by its entry point: the example of CONTRIBUTING.md, as printed there."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gfm.data.units import KCAL_PER_MOL
from gfm.errors import ConfigError
from gfm.runtime.config import parse_config
from ingest.build import build
from ingest.readers import READERS
from ingest.readers.base import hash_id
from ingest.recipe import Recipe
from store import open_dataset

PAGE = Path(__file__).resolve().parents[3] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """Return the fenced blocks of the section, by language."""
    section = PAGE.read_text().partition("## Add a reader\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert sorted(language for language, _ in blocks) == ["json", "python", "toml", "yaml"]
    return dict(blocks)


@pytest.fixture
def distribution(example: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution on the path as pip would: a package, and beside it what it is called and offers."""
    site = tmp_path / "site"
    points = tomllib.loads(example["toml"])["project"]["entry-points"]["gfm.readers"]
    for target in points.values():
        module = site.joinpath(*target.partition(":")[0].split(".")).with_suffix(".py")
        module.parent.mkdir(parents=True)
        module.write_text(example["python"])
    metadata = site / "our_readers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: our-readers\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[gfm.readers]", *lines, ""]))
    monkeypatch.syspath_prepend(site)


def _frames(example: dict[str, str]) -> list[dict[str, Any]]:
    """Return the printed frame and 19 more like it."""
    first = json.loads(example["json"])
    return [first | {"id": f"w-{i}", "run": f"md-{i % 7}", "energy": first["energy"] - i} for i in range(1, 21)]


@pytest.mark.usefixtures("distribution")
def test_a_recipe_ingests_with_a_reader_of_another_distribution(
    example: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    frames = _frames(example)
    lines = [json.dumps(frame) for frame in frames]
    lines[3:3] = ["no frame", json.dumps(frames[0] | {"forces": [[0, 0, 0]]})]
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(lines) + "\n")
    recipe = yaml.safe_load(example["yaml"]) | {
        "format": "zarr",
        "part_bytes": 700,
        "cluster": {"processes": False, "workers": 1, "dashboard": None},
    }
    manifest = build(parse_config(Recipe, recipe, "the example"))
    assert manifest.structures == 20
    assert manifest.rejects == {"bad-frame": 1, "bad-shape": 1}
    (source,) = manifest.datasets
    assert (source.name, source.licence, source.doi) == ("ours", "CC-BY-4.0", "10.5281/zenodo.1234567")
    dataset = open_dataset(tmp_path / recipe["output"])
    found = {dataset[i].key: dataset[i] for i in range(len(dataset))}
    for frame in frames:
        structure = found[hash_id(f"json_lines:{frame['id']}")]
        assert structure.energy == frame["energy"] * KCAL_PER_MOL
        assert structure.group == hash_id(f"json_lines:{frame['run']}")
        expected = (np.array(frame["forces"]) * KCAL_PER_MOL).astype(np.float32)
        np.testing.assert_array_equal(structure.forces, expected)


@pytest.mark.usefixtures("distribution")
def test_its_parts_change_nothing_and_its_options_are_checked(example: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(frame) + "\n" for frame in _frames(example)))
    reader = READERS.get("json_lines")()

    def sources(part_bytes: int) -> list[str]:
        parts = reader.plan(str(path), part_bytes)
        return [source for part in parts for block in reader.read(part) for source in block.sources]

    assert len(sources(1 << 20)) == 20
    for part_bytes in (1, 100, 333, len(path.read_bytes())):
        assert sources(part_bytes) == sources(1 << 20)
    recipe = {
        "output": "out",
        "sources": [{"name": "a", "reader": "json_lines", "path": "a", "options": {"require_force": 1}}],
    }
    with pytest.raises(ConfigError, match="Did you mean 'require_forces'"):
        parse_config(Recipe, recipe, "recipe").sources[0].open_reader()


@pytest.mark.usefixtures("distribution")
def test_it_is_known_by_name() -> None:
    assert "json_lines" in READERS.names()
    with pytest.raises(ConfigError, match="Did you mean 'json_lines'"):
        READERS.get("json_line")


def test_it_is_gone_with_its_distribution() -> None:
    with pytest.raises(ConfigError, match="no reader is called 'json_lines'"):
        READERS.get("json_lines")
