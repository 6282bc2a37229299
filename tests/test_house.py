"""The house in order: the files that describe the environment agree, and cheap things stay cheap."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# Where conda-forge's name for a package is another than the index's.
CONDA_NAMES = {
    "dask": "dask-core",
    "lmdb": "python-lmdb",
    "matplotlib": "matplotlib-base",
    "psycopg[binary]": "psycopg",
    "pyyaml": "pyyaml",
    "tblite": "tblite-python",
    "torch": "pytorch",
    "xxhash": "python-xxhash",
}
HEAVY = {
    "torch",
    "dask",
    "distributed",
    "optuna",
    "mpi4py.MPI",
    "numba",
    "zarr",
    "adios2",
    "h5py",
    "matplotlib",
}


def _split(requirement: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9_.,\[\]-]+?)\s*((?:[<>=!~].*)?)", requirement)
    assert match, requirement
    return match[1].lower(), match[2]


def _pyproject() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_environment_yml_equals_pyproject() -> None:
    extras = _pyproject()
    wanted = {
        _split(requirement)
        for extra, requirements in extras.items()
        if extra != "dev"
        for requirement in requirements
        if not requirement.startswith("gfm-atoms")
    }
    wanted = {(CONDA_NAMES.get(name, name), floor) for name, floor in wanted}
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = [entry for entry in entries if isinstance(entry, str)]
    listed += next(entry["pip"] for entry in entries if isinstance(entry, dict))
    found = {_split(entry) for entry in listed} - {("python", ">=3.11"), ("pip", "")}
    assert found == wanted


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0].lower()) for line in lines if "==" in line}
    assert "torch==2.13.0" in lines
    for requirements in _pyproject().values():
        for requirement in requirements:
            name = re.sub(r"[-_.]+", "-", _split(requirement)[0].partition("[")[0])
            assert name in pinned | {"gfm-atoms"}, f"{name} has no pin in constraints.txt"


@pytest.mark.parametrize(
    "statement", ["import gfm", "import gfm.cli", "import store", "import gfm.runtime.config"]
)
def test_imports_bring_nothing_heavy(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(loaded.split())


def test_help_lists_the_verbs_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gfm.cli import main\nsys.argv = ['gfm', '--help']\n"
        "try:\n    main()\nfinally:\n    print('MODULES', *sorted(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, _, modules = output.partition("MODULES")
    for verb in ("demo", "doctor", "sample-data", "download", "ingest", "store", "train", "hpo", "ensemble"):
        assert re.search(rf"^\s+{verb}\s+\S", text, re.MULTILINE), f"{verb} is not in gfm --help"
    assert not (HEAVY | {"numpy"}) & set(modules.split())


def test_a_misspelt_verb_is_answered_with_the_one_meant() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "gfm", "ingets"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "Did you mean 'ingest'?" in process.stderr


def test_the_manual_lists_the_fields_of_the_code() -> None:
    from gfm.data.fields import FIELDS

    table = (ROOT / "docs" / "conventions.md").read_text().partition("<!-- fields")[2]
    for field in FIELDS.values():
        shape = "x".join(map(str, field.shape)) or "-"
        optional = "yes" if field.optional else "no"
        row = (field.name, field.per, field.dtype, shape, field.unit or "-", optional, field.note)
        assert f"| {' | '.join(row)} |" in table
    assert table.count("\n| ") == len(FIELDS) + 1
