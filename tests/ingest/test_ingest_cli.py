"""``gfm ingest``: results on stdout, the rest on stderr, exit codes by kind of error."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from gfm.errors import ConfigError, MissingDataError
from ingest.cli import app


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with h5py.File("ani1x.h5", "w") as file:
        group = file.create_group("H2")
        group["atomic_numbers"] = np.array([1, 1], dtype=np.uint8)
        group["coordinates"] = np.array(
            [[[0, 0, 0], [0.7 + 0.01 * i, 0, 0]] for i in range(10)], dtype=np.float32
        )
        group["wb97x_dz.energy"] = np.where(np.arange(10) == 4, np.nan, -1.0)
        group["wb97x_dz.forces"] = np.zeros((10, 2, 3), dtype=np.float32)
    content = {
        "output": "out/dataset",
        "format": "zarr",
        "sources": [{"name": "ani1x", "reader": "ani1x", "path": "ani1x.h5"}],
        "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
        "cluster": {"processes": False, "workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def test_run_status_and_a_second_run(recipe: Path) -> None:
    first = CliRunner().invoke(app, ["run", str(recipe), "part_bytes=200", "--json"])
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert (summary["state"], summary["structures"]) == ("complete", 9)
    assert sum(summary["rejects"].values()) == 1
    assert "Dask dashboard: http://127.0.0.1:" in first.stderr
    assert "1 records rejected" in first.stderr
    assert "out/dataset/rejects" in first.stderr
    status = CliRunner().invoke(app, ["status", "out/dataset", "--json"])
    assert json.loads(status.stdout)["state"] == "complete"
    again = CliRunner().invoke(app, ["run", str(recipe), "part_bytes=200"])
    assert "already complete" in again.stderr
    assert summary["content_hash"] in again.stdout


def test_a_dry_run_writes_nothing(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--json"])
    assert len(json.loads(result.stdout)["parts"]) >= 1
    assert not Path("out").exists()


def test_errors_are_of_their_kind(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(recipe), "formt=zarr"])
    assert isinstance(result.exception, ConfigError)
    assert "Did you mean 'format'" in str(result.exception)
    assert isinstance(CliRunner().invoke(app, ["status", "nowhere"]).exception, MissingDataError)


def test_a_file_that_ends_early_is_not_passed_off_as_one_bad_record(recipe: Path) -> None:
    Path("ani1x.h5").write_bytes(Path("ani1x.h5").read_bytes()[:500])
    sources = (
        "sources=[{name: cut, reader: ani1x, path: ani1x.h5}, {name: whole, reader: ani1x, path: whole.h5}]"
    )
    with h5py.File("whole.h5", "w") as file:
        file["H2/atomic_numbers"] = np.array([1, 1], dtype=np.uint8)
        file["H2/coordinates"] = np.array([[[0, 0, 0], [0.7, 0, 0]]], dtype=np.float32)
        file["H2/wb97x_dz.energy"] = np.array([-1.0])
        file["H2/wb97x_dz.forces"] = np.zeros((1, 2, 3), dtype=np.float32)
    result = CliRunner().invoke(app, ["run", str(recipe), "on_error=reject", sources, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rejects"] == {"unreadable-file": 1}
    assert "cannot be read at all" in result.stderr
