"""Neighbour lists per CPU second, against vesin: 41-atom crystals at 5 angstrom, and a large cell for the slope.

Run as ``python benchmarks/neighbors.py [--json]``. Own and peer alternate; medians of five.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from vesin import NeighborList

from gfm.data.neighbors import neighbor_edges

CUTOFF, ROUNDS = 5.0, 5


def crystals(num: int, atoms: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    edge = (14.0 * atoms) ** (1 / 3)
    cells = edge * (np.eye(3) + 0.1 * rng.uniform(-1, 1, (num, 3, 3)))
    positions = np.concatenate([rng.random((atoms, 3)) @ cell for cell in cells])
    return positions, cells, np.arange(num + 1) * atoms


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, num: int, atoms: int) -> dict[str, object]:
    positions, cells, offsets = crystals(num, atoms)
    pbc = np.ones((num, 3), dtype=bool)

    def own() -> None:
        neighbor_edges(positions, cells, pbc, offsets, CUTOFF)

    def peer() -> None:
        calculator = NeighborList(cutoff=CUTOFF, full_list=True)
        for g in range(num):
            rows = positions[offsets[g] : offsets[g + 1]]
            calculator.compute(points=rows, box=cells[g], periodic=True, quantities="ijSD")

    own(), peer()
    times = [(cpu_seconds(own), cpu_seconds(peer)) for _ in range(ROUNDS)]
    mine, theirs = (num / statistics.median(column) for column in zip(*times, strict=True))
    return {
        "name": name,
        "value": mine,
        "unit": "structures per CPU second",
        "peer": "vesin",
        "peer_value": theirs,
        "ratio": mine / theirs,
    }


def main() -> None:
    results = [
        compare("41-atom crystals, batch of 64", 64, 41),
        compare("200-atom crystals, batch of 16", 16, 200),
        compare("4,000-atom cell", 1, 4000),
    ]
    if "--json" in sys.argv[1:]:
        print(json.dumps({"machine": f"{platform.machine()} {platform.system()}", "results": results}))
        return
    for row in results:
        print(
            f"{row['name']:32s} {row['value']:10.0f} {row['unit']}   vesin {row['peer_value']:8.0f}   "
            f"x {row['ratio']:.1f}"
        )


if __name__ == "__main__":
    main()
