"""How far an ingestion is, from what lies on the disk: works beside a running one and after a crash."""

import json
from pathlib import Path
from typing import Any

from gfm.errors import MissingDataError
from ingest.output import PLAN, RUNNING, is_running
from ingest.part import receipt_path
from store.manifest import MANIFEST, Manifest

__all__ = ["status_of"]

_IDLE: dict[str, str | None] = {"dashboard": None, "stage": None, "started": None}


def status_of(output: Path) -> dict[str, Any]:
    """Return the state of an output directory (a JSON value).

    Its keys: ``output``; ``state``: ``complete``, ``running`` or ``unfinished``; ``parts`` done and total;
    ``structures``; ``rejects`` by reason; ``datasets`` with the same for each; ``dashboard``, ``stage`` and
    when the run ``started`` (ISO 8601) while running, else null. Parts are those that were read; what is
    written afterwards is a stage.

    Raises:
        MissingDataError: No ingestion was ever begun there.
    """
    plan_path = output / PLAN
    if (output / MANIFEST).exists():
        return _complete(output, Manifest.load(output))
    if not plan_path.exists() and is_running(output):  # what must be unpacked first is not planned yet
        return {
            "output": str(output), "state": "running", **_totals([]), **_running(output), "datasets": [],
        }  # fmt: skip
    if not plan_path.exists():
        raise MissingDataError(f"{output}: no ingestion was begun here; gfm ingest run RECIPE begins one")
    plan = json.loads(plan_path.read_text())
    names = [source["name"] for source in plan["recipe"]["sources"]]
    datasets = {
        name: {"name": name, "parts": {"done": 0, "total": 0}, "structures": 0, "rejected": {}}
        for name in names
    }
    for part in plan["parts"]:
        entry: dict[str, Any] = datasets[names[part["source"]]]
        entry["parts"]["total"] += 1
        receipt = _receipt(receipt_path(output, part["name"]))
        if receipt is not None and receipt["digest"] == plan["digest"]:
            entry["parts"]["done"] += 1
            entry["structures"] += receipt["structures"]
            for reason, count in receipt["rejects"].items():
                entry["rejected"][reason] = entry["rejected"].get(reason, 0) + count
    running = is_running(output)
    return {
        "output": str(output),
        "state": "running" if running else "unfinished",
        **_totals(list(datasets.values())),
        **(_running(output) if running else _IDLE),
        "datasets": list(datasets.values()),
    }


def _complete(output: Path, manifest: Manifest) -> dict[str, Any]:
    parts = manifest.provenance.get("parts", len(manifest.shards))
    return {
        "output": str(output),
        "state": "complete",
        "parts": {"done": parts, "total": parts},
        "structures": manifest.structures,
        "rejects": manifest.rejects,
        **_IDLE,
        "datasets": [
            {"name": entry.name, "structures": entry.structures, "rejected": entry.rejected}
            for entry in manifest.datasets
        ],
    }


def _totals(datasets: list[dict[str, Any]]) -> dict[str, Any]:
    rejects: dict[str, int] = {}
    for entry in datasets:
        for reason, count in entry["rejected"].items():
            rejects[reason] = rejects.get(reason, 0) + count
    return {
        "parts": {key: sum(entry["parts"][key] for entry in datasets) for key in ("done", "total")},
        "structures": sum(entry["structures"] for entry in datasets),
        "rejects": rejects,
    }


def _receipt(path: Path) -> dict[str, Any] | None:
    """Return the receipt of a part; None if it is not there or torn, so that the part is read again."""
    try:
        receipt: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return receipt


def _running(output: Path) -> dict[str, str | None]:
    """Return where the dashboard of a running ingestion is, what it is doing, and since when it runs."""
    try:
        said = json.loads((output / RUNNING).read_text())
    except FileNotFoundError:
        return _IDLE | {"stage": "starting"}
    return {key: said.get(key) for key in _IDLE}
