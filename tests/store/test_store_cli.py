"""``gfm store``: what people and programs read of a dataset."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from store.cli import app

GFM = Path(sys.executable).with_name("gfm")


@pytest.fixture
def dataset(tmp_path, format, make_dataset, three_shards):
    return make_dataset(tmp_path / "dataset", format, three_shards)


def test_info_for_programs(dataset, format):
    result = CliRunner().invoke(app, ["info", str(dataset.path), "--json"])
    summary = json.loads(result.stdout)
    assert summary["structures"] == 33
    assert summary["atoms"] == int(dataset.num_atoms.sum())
    assert summary["edges"] == 7 * summary["atoms"]
    assert summary["bytes"] == sum(
        p.stat().st_size for p in (dataset.path / "shards").rglob("*") if p.is_file()
    )
    assert summary["bytes_per_structure"] == summary["bytes"] / 33
    assert summary["format"] == format
    assert summary["edges_cutoff"] == 5.0
    assert [(entry["name"], entry["structures"]) for entry in summary["datasets"]] == [
        ("molecules", 17),
        ("crystals", 16),
    ]
    assert summary["datasets"][0]["rejected"] == summary["rejects"] == {"nan-energy": 2}
    assert sum(summary["splits"]["counts"].values()) == 33
    assert summary["content_hash"] == dataset.manifest.content_hash


def test_info_for_people(dataset):
    result = CliRunner().invoke(app, ["info", str(dataset.path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "at 5 angstrom" in result.stdout
    assert "nan-energy 2" in result.stdout
    assert dataset.manifest.content_hash in result.stdout


def test_verify_of_a_whole_dataset(dataset):
    result = CliRunner().invoke(app, ["verify", str(dataset.path)])
    assert result.exit_code == 0
    assert "33 structures in 3 shards" in result.stdout


def test_verify_of_a_damaged_dataset_exits_with_3(dataset):
    path = dataset.path / "shards" / "000002.sizes.npy"
    path.write_bytes(path.read_bytes()[:-1])
    done = subprocess.run([GFM, "store", "verify", dataset.path], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "000002.sizes.npy" in done.stderr
    assert done.stdout == ""
    result = CliRunner().invoke(app, ["verify", str(dataset.path), "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["whole"] is False


def test_what_is_no_dataset_is_said_in_one_line(tmp_path):
    done = subprocess.run([GFM, "store", "info", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no manifest.json here" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_store_imports_nothing_heavy():
    heavy = "torch", "dask", "adios2", "zarr", "mpi4py", "numba", "optuna"
    code = f"import sys, store, store.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_writing_and_reading_adios_imports_no_torch(tmp_path, make_dataset, three_shards):
    dataset = make_dataset(tmp_path, "adios", three_shards)
    code = (
        "import sys, store; from store.verify import verify_dataset; verify_dataset(sys.argv[1]);"
        "print('adios2' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, dataset.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
