"""``gfm doctor``: what works on this machine, what does not, and what to do about it."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from gfm import __version__

__all__ = ["Finding", "app", "examine"]

app = typer.Typer()


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What was looked at.
        works: Whether it can be used here.
        found: What was found: a version, a size, a reason.
        remedy: What to do where it does not work; empty where it does.
    """

    what: str
    works: bool
    found: str
    remedy: str = ""


@app.command()
def _doctor(as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON.")) -> None:
    """Say what works on this machine: packages, MPI, Slurm, PostgreSQL, GPU, memory; and what to do if not.

    Nothing is needed but Python; what is missing only limits what can be run. Exit code 0 always.
    """
    findings = examine()
    if as_json:
        import json

        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.works else "[yellow]--[/]"
        table.add_row(mark, finding.what, finding.found, finding.remedy)
    Console().print(table)


def examine() -> list[Finding]:
    """Look at everything that the parts of the system use; takes a few seconds (MPI is really started)."""
    return [
        Finding("gfm", True, f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *(_package(*entry) for entry in _PACKAGES),
        _mpi(),
        _program("Slurm", ("sbatch",), "only for clusters; runs on one machine need none"),
        _program("PostgreSQL server", ("initdb", "postgres"), "only for studies over many nodes: postgresql"),
        _gpu(),
        _energy(),
        _memory(),
        _shared_memory(),
    ]


_PACKAGES = (
    ("torch", "model"),
    ("adios2", "store"),
    ("zarr", "store"),
    ("distributed", "ingest"),
    ("h5py", "ingest"),
    ("tblite", "sample-data"),
    ("optuna", "hpo"),
)


def _package(name: str, extra: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install 'gfm-atoms[{extra}]'")


def _mpi() -> Finding:
    """Start two ranks for real: an mpiexec of another MPI than mpi4py's starts singletons silently."""
    from gfm.runtime.mpi import find_mpiexec

    mpiexec = find_mpiexec()
    remedy = "pip install 'gfm-atoms[mpi]' (or the site's MPI); without it, training runs as one process"
    if mpiexec is None:
        return Finding("MPI", False, "no mpiexec", remedy)
    code = "from mpi4py import MPI; print(MPI.COMM_WORLD.size, MPI.Get_library_version().split(chr(10))[0])"
    try:
        process = subprocess.run(
            [mpiexec, "-n", "2", sys.executable, "-c", code],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding("MPI", False, f"{mpiexec} did not answer in 60 s", remedy)
    lines = process.stdout.splitlines()
    if process.returncode or not lines:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return Finding("MPI", False, f"{mpiexec}: {reason}", remedy)
    size, _, library = lines[0].partition(" ")
    if size != "2":
        return Finding(
            "MPI", False, f"{mpiexec} starts singletons ({library})",
            "this mpiexec and mpi4py belong to different MPI libraries; install one of them only",
        )  # fmt: skip
    return Finding("MPI", True, f"2 ranks, {' '.join(library.split())}")


def _program(what: str, names: tuple[str, ...], remedy: str) -> Finding:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *_postgres_folders()])
    for name in names:
        if found := shutil.which(name, path=places):
            return Finding(what, True, found)
    return Finding(what, False, "not installed", remedy)


def _postgres_folders() -> list[str]:
    return [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def _gpu() -> Finding:
    try:
        import torch
    except ModuleNotFoundError:
        return Finding("GPU", False, "torch is not installed", "pip install 'gfm-atoms[model]'")
    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name())
    return Finding("GPU", False, f"none that torch {torch.__version__} can use", "training runs on the CPU")


def _energy() -> Finding:
    if any(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")):
        return Finding("energy meter", True, "RAPL")
    if shutil.which("nvidia-smi"):
        return Finding("energy meter", True, "NVML (GPU only)")
    return Finding("energy meter", False, "neither RAPL nor NVML", "joules are estimated, and marked as such")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    cores = os.cpu_count() or 1
    return Finding(
        "memory", True, f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB, {cores} cores"
    )


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("/dev/shm", False, "not there", "the memory store of several ranks needs it")
    free = shutil.disk_usage(folder).free
    return Finding(
        "/dev/shm", free > 2**28, f"{free / 2**30:.1f} GiB free",
        "" if free > 2**28 else "the memory store lives there: enlarge it, or train with store=disk",
    )  # fmt: skip
