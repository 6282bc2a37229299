"""Ingestion at length: memory over many parts, and one large dataset; takes hours and tens of gigabytes.

    python benchmarks/ingest_scale.py --parts 20000 --structures 3000000 --rates ingest.json

``--parts`` ingests so many tiny OC20 text files on two local workers and follows the memory of every process
over the parts that are read: what grows is what a plan of 100,000 parts would run out of. ``--structures``
ingests one HDF5 file of so many molecules in the layout of ANI-1x. Both call ``gfm ingest run`` and look at it
from outside each second; plots and samples go to ``--output``. With the JSON of ``ingest.py`` as ``--rates``
there is an estimate for the published mix of 154 million structures.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from measure import Result, show
from raw_files import slabs, write_ani1x, write_oc20_text
from watch import ROOT, Watched, watch

_MIB = 1 << 20
# Structures of each published data set, and the layout by which `ingestion.py` names its rates.
PUBLISHED = {
    "ANI-1x": (4_956_005, "ANI-1x HDF5"),
    "QM7-X": (4_195_237, "QM7-X HDF5"),
    "OC20": (133_934_018, "OC20 text (.xz)"),
    "OC22": (9_854_504, "OC22 LMDB (PyG 1 pickles)"),
    "MPtrj": (1_580_395, "MPtrj JSON"),
}
# What client and scheduler may grow by: 2 GiB for 100,000 parts.
_BYTES_A_PART = 2 * 1024 * _MIB / 100_000


def many_parts(folder: Path, parts: int, workers: int, output: Path) -> list[Result]:
    """Ingest tiny parts and follow the memory over them; at 100 % is what there is after all were read."""
    _check_room(folder, nbytes=parts * 120_000, inodes=parts * 20)
    print(f"writing {parts:,} files ...", file=sys.stderr, flush=True)
    raw = write_oc20_text(
        folder / "raw", slabs(np.random.default_rng(0), 2 * parts, 16), per_file=2, packed=False
    )
    watched = _ingest(folder, "oc20", raw, workers)
    _save(output / "many_parts", watched)
    memory = [(sample.finished, sample.memory[ROOT]) for sample in watched.samples if ROOT in sample.memory]
    at = {share: _memory_at(memory, share * parts) for share in (0.1, 0.5, 1.0)}
    early = at[0.1] / _MIB
    # While parts are read: what comes after is one more step, not growth.
    grown = [point for point in memory if 0.1 * parts <= point[0] < parts] or memory
    finished, size = np.array(grown, dtype=float).T
    slope = float(np.polyfit(finished, size, deg=1)[0])
    name = f"{parts:,} parts"
    results = [
        Result(f"{name}: {ROOT} at {share:.0%}", value / _MIB, "MiB", "at 10%", early, at[0.1] / value)
        for share, value in at.items()
    ]
    ratio = _BYTES_A_PART / max(slope, 1.0)
    results += [
        Result(f"{name}: growth of {ROOT}", slope, "bytes/part", "limit", _BYTES_A_PART, ratio),
        _peak(name, watched, ROOT, 1024),
        _peak(name, watched, "worker", 1024),
        Result(f"{name}: rate", parts / watched.wall, "parts/s", "wall s", watched.wall, 1.0),
    ]
    return results


def _memory_at(memory: list[tuple[float, int]], finished: float) -> int:
    """Return the bytes at the last sample with at most so many finished parts."""
    return max((done, place, size) for place, (done, size) in enumerate(memory) if done <= finished)[2]


def one_large(folder: Path, structures: int, workers: int, output: Path) -> list[Result]:
    """Ingest one large file: peaks of memory, time, bytes."""
    _check_room(folder, nbytes=structures * 2_500, inodes=10_000)
    print(f"writing {structures:,} molecules ...", file=sys.stderr, flush=True)
    raw = write_ani1x(folder / "large.h5", np.random.default_rng(0), structures=structures)
    watched = _ingest(folder, "ani1x", raw, workers)
    _save(output / "one_large", watched)
    manifest = json.loads((folder / "dataset" / "manifest.json").read_text())
    written = sum(file.stat().st_size for file in (folder / "dataset").rglob("*") if file.is_file())
    found = sum(dataset["structures"] for dataset in manifest["datasets"])
    name = f"{structures:,} molecules"
    rate, before = found / watched.cpu, raw.stat().st_size / structures
    return [
        _peak(name, watched, ROOT, 1024),
        _peak(name, watched, "worker", 2048),
        Result(f"{name}: rate", rate, "structures/CPU s", "limit", 20_000, rate / 20_000),
        Result(
            f"{name}: {workers} workers",
            found / watched.wall,
            "structures/s",
            "per CPU second",
            rate,
            found / watched.wall / rate,
        ),
        Result(f"{name}: accepted", found, "structures", "in the file", float(structures), found / structures),
        Result(
            f"{name}: on disk", written / found, "bytes/structure", "raw file", before, before * found / written
        ),
    ]


def _peak(name: str, watched: Watched, role: str, limit: float) -> Result:
    size = watched.peak(role) / _MIB
    return Result(f"{name}: peak of {role}", size, "MiB", "limit", limit, limit / size)


def _ingest(folder: Path, reader: str, raw: Path, workers: int) -> Watched:
    """Call ``gfm ingest run`` and watch it; a part is finished with its receipt."""
    output = folder / "dataset"
    recipe = folder / "recipe.yaml"
    settings = {
        "output": str(output),
        "sources": [{"name": reader, "reader": reader, "path": str(raw)}],
        "cluster": {"workers": workers, "dashboard": None},
    }
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    most = 0

    def finished() -> int:
        nonlocal most
        # Receipts are removed as the dataset is complete.
        most = max(most, _entries(output / "build" / "receipts"))
        return most

    command = [sys.executable, "-P", "-m", "gfm", "ingest", "run", str(recipe)]
    print("ingesting ...", file=sys.stderr, flush=True)
    watched = watch(command, finished, log=folder / "log.txt")
    return watched


def _entries(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(".json") for entry in entries)
    except FileNotFoundError:
        return 0


def _check_room(folder: Path, *, nbytes: int, inodes: int) -> None:
    """End with a sentence where the disk is too small."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        sys.exit(f"{folder}: {nbytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; give another --folder")
    files = os.statvfs(folder).f_favail
    if 0 < files < inodes:
        sys.exit(f"{folder}: {inodes:,} files needed, {files:,} possible; give another --folder")


def _save(path: Path, watched: Watched) -> None:
    """Write samples as JSON, and the memory of all processes over parts read and over time as a plot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(asdict(watched)))
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    roles = dict.fromkeys(role for sample in watched.samples for role in sample.memory)
    for axes, x, label in zip(panels, ("finished", "seconds"), ("parts read", "seconds"), strict=True):
        for role in roles:
            if role == ROOT or role.startswith("worker"):
                points = [(getattr(s, x), s.memory[role] / _MIB) for s in watched.samples if role in s.memory]
                axes.plot(*zip(*points, strict=True), label=role)
        axes.set(xlabel=label, ylim=(0, None))
    panels[0].set(ylabel="resident memory, MiB")
    panels[0].legend()
    figure.savefig(path.with_suffix(".png"), dpi=150)
    pyplot.close(figure)


def extrapolate(rates: dict[str, Any]) -> list[Result]:
    """Estimate core-hours and bytes of the published mix from the results of `ingestion.py`."""
    values = {result["name"]: result["value"] for result in rates["results"]}
    results = []
    hours = gigabytes = count = 0.0
    for name, (structures, layout) in PUBLISHED.items():
        hour = structures / values[f"{layout}: whole build"] / 3600
        size = structures * values[f"{layout}: on disk"] / 1e9
        hours, gigabytes, count = hours + hour, gigabytes + size, count + structures
        results.append(Result(f"{name}, {structures:,}", hour, "core-hours", "GB on disk", size, 1.0))
    results.append(Result(f"all, {count:,.0f}", hours, "core-hours", "GB on disk", gigabytes, 1.0))
    return results


def main() -> None:
    """Measure what the command line asks for, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, help="ingest so many tiny parts")
    parser.add_argument("--structures", type=int, help="ingest one file of so many molecules")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where raw files and datasets are made (default: a temporary one)"
    )
    parser.add_argument("--output", type=Path, default=Path("ingest-scale"), help="where plots and samples go")
    parser.add_argument("--rates", type=Path, help="JSON of ingestion.py, for the published mix")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[Result] = []
    for measure, amount in ((many_parts, options.parts), (one_large, options.structures)):
        if amount is not None:
            with tempfile.TemporaryDirectory(prefix="gfm-scale-", dir=options.folder) as name:
                results += measure(Path(name), amount, options.workers, options.output)
    if options.rates is not None:
        results += extrapolate(json.loads(options.rates.read_text()))
    if not results:
        parser.error("nothing to do: give --parts, --structures or --rates")
    show(results)


if __name__ == "__main__":
    main()
