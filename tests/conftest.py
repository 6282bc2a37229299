"""Fixtures all tests share: the sample data, and skips that say what is missing on this machine."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Several processes on few cores: one thread each, and nothing that the test's own directory could shadow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONSAFEPATH", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

_NEEDS = {
    "mpi": ("mpiexec", "pip install 'gfm-atoms[mpi]'"),
    "slurm": ("slurmctld", "apt-get install slurm-wlm munge"),
    "browser": ("chromium", "apt-get install chromium"),
}


def _find(program: str) -> str | None:
    import sys

    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program) or shutil.which(program, path="/usr/sbin")


def _postgres() -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return str(found[-1]) if found else shutil.which("initdb")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; in CI nothing may be missing."""
    missing = {
        marker: f"{program} is not installed: {remedy}"
        for marker, (program, remedy) in _NEEDS.items()
        if _find(program) is None
    }
    if _postgres() is None:
        missing["postgres"] = "no PostgreSQL server programs: apt-get install postgresql"
    if not SHARED_DATA.is_dir():
        missing["data"] = "the sample data is not beside the project (../shared/data)"
    if os.environ.get("CI") == "true":
        return
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of genuine excerpts and computed files in the published layouts."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def slurm_nodes() -> Iterator[Any]:
    """A private Slurm of three nodes, started for the first test that asks; see tests/slurm_cluster.py."""
    path = Path(__file__).with_name("slurm_cluster.py")
    spec = importlib.util.spec_from_file_location("slurm_cluster", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.PrivateSlurm(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The private Slurm, whose commands work in this process and its children: no jobs, all nodes up."""
    environment = slurm_nodes.environment
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)  # of a batch job that the tests themselves may be
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, environment[name])
    yield slurm_nodes
    slurm_nodes.clean()
