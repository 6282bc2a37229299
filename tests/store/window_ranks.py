"""What one rank of `test_window` does: ``CASE DATASET REPORTS``; writes REPORTS/RANK.json if all went well."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from gfm.errors import DataError, GfmError
from store import memory, open_dataset, window
from store.samples import open_samples

case, path, reports = sys.argv[1], sys.argv[2], Path(sys.argv[3])
comm = MPI.COMM_WORLD
rank = comm.rank
dataset = open_dataset(path)
report = {"rank": rank}


def same(one, other):
    return one.schema == other.schema and all(
        one.columns[name].tobytes() == other.columns[name].tobytes() for name in one.schema
    )


def read(samples, rows):
    """Compare batches with the dataset's, each rank at its own pace and with its own rows."""
    rng = np.random.default_rng(rank)
    records = 0
    for count in (len(rows), 0, 1, *rng.integers(1, 50, 20)):
        ids = rng.choice(rows, count)
        assert same(samples.get(ids), dataset.batch(ids)), ids
        records += int(count)
    return records


def opening_fails(**arguments):
    """Note the error that opening raises."""
    try:
        open_samples(dataset, comm=comm, **arguments)
    except GfmError as error:
        report.update(kind=type(error).__name__, text=str(error))


if case in ("read", "hidden"):
    if case == "hidden":

        class Hidden(MPI.Win):
            """A window that does not show other ranks' memory."""

            def Shared_query(self, rank):
                if self.flavor == MPI.WIN_FLAVOR_ALLOCATE:
                    raise MPI.Exception(MPI.ERR_OTHER)
                return super().Shared_query(rank)

        MPI.Win = Hidden
    rows = np.arange(len(dataset))
    with open_samples(dataset, comm=comm, ids=rows[1::2]) as samples:
        assert samples.kind == "rma"
        assert len(samples) == len(rows[1::2])
        read(samples, rows[1::2])
        with pytest.raises(DataError, match="row 0 is not among"):
            samples.get(np.array([0]))
    with open_samples(dataset, comm=comm) as samples:
        records = read(samples, rows)
        bounds = samples._bases
        report.update(
            stats=samples.stats,
            records=records,
            progress=samples._progress is not None,
            own=int(bounds[rank + 1] - bounds[rank]),
            total=int(bounds[-1]),
        )
elif case == "runs":
    with open_samples(dataset, comm=comm) as samples:
        other = np.arange(*samples._bounds[[1 - rank, 2 - rank]])
        assert same(samples.get(other), dataset.batch(other))
        report["whole"] = samples.stats["gets"]
        window._MAX_GET = 1000
        assert same(samples.get(other), dataset.batch(other))
        report["divided"] = samples.stats["gets"] - report["whole"]
        report["other"] = int(np.diff(samples._bases)[1 - rank])
elif case == "damage":
    opening_fails()
elif case == "memory":
    if rank == 1:
        memory.available_memory = lambda: memory._RESERVE * comm.size + 2048
    opening_fails()
elif case == "shm":
    memory.available_shared_memory = lambda: 5 << 10
    opening_fails()
elif case == "disagree":
    opening_fails(ids=np.arange(rank + 3))
elif case == "beyond":
    opening_fails(ids=np.array([33, 3]))
elif case == "busy":
    flag = reports.parent / f"{reports.name}.served"
    with open_samples(dataset, comm=comm) as samples:
        if rank == 1:
            assert same(samples.get(np.array([0])), dataset.batch([0]))
            flag.touch()
        else:
            deadline = time.monotonic() + 30
            while not flag.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            report["served"] = flag.exists()

comm.Barrier()
(reports / f"{rank}.json").write_text(json.dumps(report))
