"""Run folders: everything that one run wrote, where a person and a program both find it.

config.yaml (resolved), metrics.jsonl (one line an epoch), summary.json, provenance.json; whatever else a run
makes (checkpoints, model, plots) lies beside them. Files are replaced whole, never half-written.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gfm
from gfm.errors import CorruptDataError, ResourceError

__all__ = ["RunFolder", "provenance", "write_whole", "writing"]

_PACKAGES = ("numpy", "torch", "mpi4py", "numba", "optuna", "dask", "adios2", "zarr")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what the system refuses (a full disk, a folder that is not ours) be an expected error.

    Raises:
        ResourceError: Something inside could not be written; the text names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another output"
        ) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that after a crash there is the old one or the new one, never a part.

    Raises:
        ResourceError: The system does not let it be written; an older file stays as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunFolder:
    """One run's folder.

    Attributes:
        path: The folder; made when something is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        """Return the path of something in the folder."""
        return self.path / name

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        file = self / "metrics.jsonl"
        with writing(file):
            self.path.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                os.fsync(lines.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a last line torn by a crash is left out.

        Raises:
            CorruptDataError: A line that is not the last is not JSON.
        """
        file = self / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise CorruptDataError(f"{file}, line {number}: not JSON ({error})") from None
        return records

    def cut_after(self, epoch: int) -> None:
        """Drop the lines of later epochs, which a resumed run will write again."""
        kept = [record for record in self.records() if record["epoch"] <= epoch]
        write_whole(self / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def write_config(self, text: str) -> None:
        """Write the resolved configuration (YAML)."""
        write_whole(self / "config.yaml", text)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_whole(self / "summary.json", json.dumps(summary, indent=1) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """Return summary.json, or None before there is one."""
        file = self / "summary.json"
        content: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return content

    def add_provenance(self, **facts: Any) -> None:
        """Note in provenance.json who started this and with what; every start and resume adds an entry."""
        file = self / "provenance.json"
        starts = json.loads(file.read_text())["starts"] if file.exists() else []
        starts.append({**provenance(), **facts})
        write_whole(file, json.dumps({"starts": starts}, indent=1) + "\n")


def provenance(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what has to be known to do it again: versions, code, host, command line, time."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": gfm.__version__,
        "git": _git_commit(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "argv": list(sys.argv if argv is None else argv),
        "packages": packages,
    }


def _git_commit() -> str | None:
    """Return the commit of the source tree, with ``+changes`` if it has any; None outside of a checkout."""
    root = Path(gfm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None
