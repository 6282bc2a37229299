"""What all benchmarks share: alternating timings of ours and a peer's, and how results are printed.

A benchmark is ``benchmarks/NAME.py``: a table for people, or with ``--json`` one object
``{"machine": ..., "results": [{"name", "value", "unit", "peer", "peer_value", "ratio"}, ...]}`` where a ratio
above 1 is better than the peer, or, for a limit, the share of it that is reached.
"""

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Result", "cpu_rates", "machine", "show"]


@dataclass(frozen=True)
class Result:
    """One measured value beside that of a named peer or limit, in the same unit."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float


def cpu_rates(runs: Sequence[tuple[Callable[[], object], int]], *, repeats: int = 5) -> list[float]:
    """Return items per CPU second of each run: the median over alternating repeats.

    CPU time of this process, so that other work on the machine does not count; one call of each first, to
    compile and to warm caches. What the benchmark itself holds (libraries of all peers, inputs) is kept out of
    the search for garbage: neither ours nor a peer would have it in a process of its own.
    """
    for run, _ in runs:
        run()
    gc.collect()
    gc.freeze()
    rates: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for place, (run, items) in enumerate(runs):
            started = time.process_time()
            run()
            rates[place].append(items / (time.process_time() - started))
    return [statistics.median(values) for values in rates]


def machine() -> str:
    """Describe this machine in a line."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def show(results: Sequence[Result]) -> None:
    """Print results as a table, or as one JSON object where the command line says ``--json``."""
    if "--json" in sys.argv[1:]:
        print(json.dumps({"machine": machine(), "results": [asdict(result) for result in results]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ours", "unit", "peer", "peer's", "ratio", title=machine())
    for r in results:
        table.add_row(r.name, f"{r.value:,.4g}", r.unit, r.peer, f"{r.peer_value:,.4g}", f"{r.ratio:.2f}")
    Console(width=140).print(table)
