"""Ingestion: structures per CPU second of every reader beside the plain way, end to end, and on two workers.

The inputs are generated in the published layouts (`raw_files.py`) in a temporary directory. Reading is measured
from the first byte to checked structures with ids; the plain ways (`plain_readers.py`) end with bare arrays.
One part is `ingest.part.run_part`: read, normalise, count edges, write a shard with checksums. A whole build is
`ingest.build.build` on a Dask cluster inside this process, plan to manifest, so all of its CPU time is counted.
``--quick`` takes a fifth of the structures.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import package_first  # noqa: F401
import plain_readers as plain
import raw_files as raw
from measure import Result, cpu_rates, show
from speedup import Speedup, measure_speedup, spin

from gfm.runtime.cluster import ClusterConfig, open_client
from ingest.build import build
from ingest.part import run_part, task_of
from ingest.plan import make_plan
from ingest.readers import READERS
from ingest.recipe import Recipe, Source

_WHOLE = 1 << 40  # bytes of a part: a file is one part
_RATE = "structures/CPU s"


@dataclass
class Case:
    """One layout: its files, what reads them here, and the plain ways.

    Attributes:
        name: Of the dataset, as it is printed.
        reader: Name of our reader.
        path: File or folder.
        structures: How many it holds.
        peers: For each plain way its name, what it does, and how many structures it reads.
        options: Of our reader.
        limit: Structures per CPU second that are expected end to end, if any are.
    """

    name: str
    reader: str
    path: Path
    structures: int
    peers: list[tuple[str, Callable[[], int], int]]
    options: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None


def cases(folder: Path, scale: float) -> list[Case]:
    """Write the files of all layouts and say what reads them."""
    rng = np.random.default_rng(0)
    thousand = round(1000 * scale)
    slabs = list(raw.slabs(rng, 3 * thousand, 73))
    packed = raw.write_oc20_text(folder / "oc20", slabs, per_file=thousand, packed=True)
    text = raw.write_oc20_text(folder / "text", slabs[: 2 * thousand], per_file=2 * thousand, packed=False)
    third = raw.write_oc20_text(folder / "third", slabs[:thousand], per_file=thousand, packed=False)
    few_packed = raw.write_oc20_text(folder / "few", slabs[:100], per_file=100, packed=True)
    pyg1 = raw.write_lmdb(folder / "oc22.lmdb", raw.slabs(rng, 2 * thousand, 80), pyg=1)
    pyg2 = raw.write_lmdb(folder / "oc20.lmdb", slabs[: 2 * thousand], pyg=2)
    mptrj = raw.write_mptrj(folder / "mptrj.json", raw.crystals(rng, 8 * thousand, 31))
    frames = raw.write_mptrj(folder / "mptrj-few.json", raw.crystals(rng, 2 * thousand, 31))
    qm7x = raw.write_qm7x(folder / "qm7x.hdf5", rng, structures=2 * thousand)
    ani1x = raw.write_ani1x(folder / "ani1x.h5", rng, structures=100 * thousand)
    few = raw.write_ani1x(folder / "ani1x-few.h5", rng, structures=5 * thousand)
    keyed = raw.write_ani1x(folder / "keyed.h5", rng, structures=20 * thousand, conformers=100)
    keys = ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
    meaning = dict(zip(("positions_key", "energy_key", "forces_key"), keys, strict=True))
    read = "ase.io.read"
    rows = list(raw.crystals(rng, 2 * thousand, 31))
    aselmdb = raw.write_aselmdb(folder / "rows.aselmdb", rows)
    ase_db = raw.write_ase_db(folder / "rows.db", rows)
    # LMDB refuses to open one path twice in a process.
    plain1, plain2, plain3 = (
        Path(shutil.copy(file, file.with_suffix(".plain"))) for file in (pyg1, pyg2, aselmdb)
    )
    return [
        # ASE's own way with a packed file takes longer with each frame: 100 are few.
        Case("OC20 text (.xz)", "oc20", packed, 3 * thousand,
             [("ase.io.read, 100 frames", partial(plain.ase_extxyz, few_packed / "0.extxyz.xz"), 100),
              ("unpacking, then ase.io.read", partial(plain.oc20_with_ase, packed / "0.extxyz.xz"), thousand),
              ("unpacking alone", partial(plain.unpack, packed / "0.extxyz.xz", thousand), thousand)]),
        Case("OC20 text, unpacked", "oc20", text, 2 * thousand,
             [(read, partial(plain.ase_extxyz, third / "0.extxyz"), thousand)]),
        Case("extended XYZ", "extxyz", text, 2 * thousand,
             [(read, partial(plain.ase_extxyz, third / "0.extxyz"), thousand)]),
        Case("OC20 LMDB (PyG 2 pickles)", "oc20", pyg2, 2 * thousand,
             [("pickle with PyG", partial(plain.lmdb_with_pyg, plain2), 2 * thousand)]),
        Case("OC22 LMDB (PyG 1 pickles)", "oc22", pyg1, 2 * thousand,
             [("pickle with PyG", partial(plain.lmdb_with_pyg, plain1), 2 * thousand)]),
        Case("ASE database (.aselmdb)", "ase_db", aselmdb, 2 * thousand,
             [("ASE rows", partial(plain.aselmdb_rows, plain3), 2 * thousand)]),
        Case("ASE database (.db)", "ase_db", ase_db, 2 * thousand,
             [("ase.db", partial(plain.ase_rows, ase_db), 2 * thousand)]),
        Case("MPtrj JSON", "mptrj", mptrj, 8 * thousand,
             [("json, whole file", partial(plain.mptrj_json, frames), 2 * thousand),
              ("ijson, by material", partial(plain.mptrj_ijson, frames), 2 * thousand)], limit=5_000),
        Case("QM7-X HDF5", "qm7x", qm7x, 2 * thousand,
             [("h5py, by frame", partial(plain.qm7x_by_frame, qm7x), 2 * thousand)], {"duplicates": None}),
        Case("keyed HDF5", "hdf5", keyed, 20 * thousand,
             [("h5py, by conformer", partial(plain.hdf5_by_row, keyed, keys), 20 * thousand)],
             {**meaning, "energy_unit": "hartree"}),
        Case("ANI-1x HDF5", "ani1x", ani1x, 100 * thousand,
             [("h5py, by conformer", partial(plain.ani1x_by_conformer, few), 5 * thousand),
              ("h5py, by formula", partial(plain.ani1x_by_formula, ani1x), 100 * thousand)], limit=20_000),
    ]  # fmt: skip


def readers(case: Case) -> list[Result]:
    """Compare one reader with the plain ways; raise where it does not deliver every structure."""
    reader = READERS.get(case.reader).model_validate(case.options)
    parts = reader.plan(str(case.path), _WHOLE)

    def ours() -> None:
        found = sum(len(block.batch) for part in parts for block in reader.read(part))
        if found != case.structures:
            raise RuntimeError(f"{case.name}: {found} structures read of {case.structures}")

    peers = [(run, items) for _, run, items in case.peers]
    rate, *others = cpu_rates([(ours, case.structures), *peers], repeats=3)
    return [
        Result(f"{case.name}: read", rate, _RATE, name, other, rate / other)
        for (name, _, _), other in zip(case.peers, others, strict=True)
    ]


def end_to_end(case: Case, folder: Path, client: Any, reading: float) -> list[Result]:
    """Measure whole parts and whole builds, and the bytes that are left on the disk."""
    recipe = _recipe(case, folder / "output", _WHOLE)
    plan = make_plan(recipe)
    written, accepted = 0, 0

    def part() -> None:
        for planned in plan.parts:
            run_part(task_of(plan, planned))
        shutil.rmtree(recipe.output)

    def whole() -> None:
        nonlocal written, accepted
        accepted = build(recipe, client=client).structures
        written = sum(file.stat().st_size for file in recipe.output.rglob("*") if file.is_file())
        shutil.rmtree(recipe.output)

    rates = cpu_rates([(part, case.structures), (whole, case.structures)], repeats=3)
    if accepted < 0.99 * case.structures:
        raise RuntimeError(f"{case.name}: {accepted} structures accepted of {case.structures}")
    before = sum(planned.part.nbytes for planned in plan.parts) / case.structures
    peer, bar = ("limit", case.limit) if case.limit else ("reading alone", reading)
    each = written / accepted
    return [
        *(
            Result(f"{case.name}: {name}", rate, _RATE, peer, bar, rate / bar)
            for name, rate in zip(("one part", "whole build"), rates, strict=True)
        ),
        Result(f"{case.name}: on disk", each, "bytes/structure", "raw file", before, before / each),
    ]


def _recipe(case: Case, output: Path, part_bytes: int) -> Recipe:
    source = Source(name=case.reader, reader=case.reader, path=str(case.path), options=case.options)
    return Recipe.model_validate({"output": output, "sources": [source], "part_bytes": part_bytes})


def on_two_workers(folder: Path, structures: int) -> list[Result]:
    """Build a dataset of 24 parts on one and on two workers; the clusters are started before.

    The same file stands for six, so that the run is long beside what does not scale: the plan and the commit.
    """
    path = raw.write_mptrj(folder / "many.json", raw.crystals(np.random.default_rng(1), structures, 31))
    sources = [{"name": f"file{k}", "reader": "mptrj", "path": str(path)} for k in range(6)]
    settings = {"sources": sources, "duplicates": "keep", "part_bytes": -(-path.stat().st_size // 4)}
    one, two = (ClusterConfig(workers=workers, dashboard=None) for workers in (1, 2))
    with open_client(one) as first, open_client(two) as second:

        def run(client: Any) -> None:
            output = folder / f"built-{time.monotonic_ns()}"
            build(Recipe.model_validate({"output": output, **settings}), client=client)
            shutil.rmtree(output)

        def busy(client: Any) -> None:
            client.gather([client.submit(spin, 2_000_000 + i, pure=False) for i in range(16)])

        limit = measure_speedup(busy, first, second)
        found = measure_speedup(run, first, second)
    machine = f"plain busy processes{_loaded(limit)}"
    name = f"build on 2 local workers{_loaded(found)}"
    return [
        Result(name, found.ratio, "times 1 worker", "limit", 2.0, found.ratio / 2),
        Result(name, found.ratio, "times 1 worker", machine, limit.ratio, found.ratio / limit.ratio),
    ]


def _loaded(speedup: Speedup) -> str:
    return f" (others took {speedup.others:.0%} of the CPU)" if speedup.others > 0.05 else ""


def main() -> None:
    """Measure and print."""
    scale = 0.2 if "--quick" in sys.argv[1:] else 1.0
    results: list[Result] = []
    here = ClusterConfig(workers=1, processes=False, dashboard=None)
    with tempfile.TemporaryDirectory(prefix="gfm-benchmark-") as name, open_client(here) as client:
        folder = Path(name)
        for case in cases(folder, scale):
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            found = readers(case)
            results += found + end_to_end(case, folder, client, found[0].value)
        results += on_two_workers(folder, round(8_000 * scale))
    show(results)


if __name__ == "__main__":
    main()
