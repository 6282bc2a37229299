"""Neighbour lists on one core: structures per CPU second beside vesin, matscipy and ASE; large cells; growth.

All return the full periodic list: both atoms of every pair and the lattice shifts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import vesin
from ase import Atoms
from ase.neighborlist import neighbor_list
from matscipy.neighbours import neighbour_list
from measure import Result, cpu_rates, show
from raw_files import crystals

from gfm.data.neighbors import neighbor_edges
from gfm.data.ragged import RaggedBatch

CUTOFF = 5.0
EXPECTED = 10_000  # small structures per CPU second
LARGE = (1_000, 2_000, 5_000, 10_000)  # atoms


def ours(batch: RaggedBatch) -> int:
    columns = batch.columns
    edges = neighbor_edges(columns["positions"], columns["cell"], columns["pbc"], batch.offsets, CUTOFF)
    return len(edges.sources)


def with_vesin(structures: list[Atoms]) -> int:
    calculator = vesin.NeighborList(cutoff=CUTOFF, full_list=True)
    return sum(len(calculator.compute(atoms.positions, atoms.cell[:], True, "ijS")[0]) for atoms in structures)


def with_matscipy(structures: list[Atoms]) -> int:
    return sum(len(neighbour_list("ijS", atoms, CUTOFF)[0]) for atoms in structures)


def with_ase(structures: list[Atoms]) -> int:
    return sum(len(neighbor_list("ijS", atoms, CUTOFF)[0]) for atoms in structures)


PEERS: dict[str, Callable[[list[Atoms]], int]] = {
    "vesin": with_vesin,
    "matscipy": with_matscipy,
    "ase.neighborlist": with_ase,
}


def small() -> list[Result]:
    """Crystals of 41 atoms in irregular cells."""
    batch = RaggedBatch.from_structures(list(crystals(np.random.default_rng(0), 200, 41, spread=0)))
    structures = [structure.to_atoms() for structure in batch]
    edges = ours(batch)
    name = f"41-atom crystals, {edges // len(batch):,} edges at 5 A"
    # ASE is so slow that a tenth of them will do.
    taken = {peer: structures[:20] if peer == "ase.neighborlist" else structures for peer in PEERS}
    for peer, run in PEERS.items():
        _check(peer, run(taken[peer]), ours(batch) if len(taken[peer]) == len(batch) else None)
    runs: list[tuple[Callable[[], Any], int]] = [(partial(ours, batch), len(batch))]
    runs += [(partial(run, taken[peer]), len(taken[peer])) for peer, run in PEERS.items()]
    rate, *others = cpu_rates(runs)
    unit = "structures/CPU s"
    return [
        Result(name, rate, unit, "expected", EXPECTED, rate / EXPECTED),
        *(
            Result(name, rate, unit, peer, other, rate / other)
            for peer, other in zip(PEERS, others, strict=True)
        ),
    ]


def large() -> list[Result]:
    """One cell of up to 10,000 atoms: the cost per atom does not grow."""
    rng = np.random.default_rng(1)
    results = []
    first = 0.0
    for size in LARGE:
        batch = RaggedBatch.from_structures(list(crystals(rng, 1, size, spread=0)))
        structures = [structure.to_atoms() for structure in batch]
        runs: list[tuple[Callable[[], Any], int]] = [(partial(ours, batch), size)]
        for peer in ("vesin", "matscipy"):
            _check(peer, PEERS[peer](structures), ours(batch))
            runs.append((partial(PEERS[peer], structures), size))
        rate, *others = cpu_rates(runs, repeats=3)
        first = first or rate
        compared = {"vesin": others[0], "matscipy": others[1], f"{LARGE[0]:,} atoms": first}
        name = f"one cell of {size:,} atoms"
        results += [
            Result(name, rate, "atoms/CPU s", peer, other, rate / other)
            for peer, other in compared.items()
            if size > LARGE[0] or not peer.endswith("atoms")
        ]
    return results


def _check(peer: str, found: int, expected: int | None) -> None:
    """Compare numbers of edges: a list that misses some is no peer."""
    if expected is not None and found != expected:
        raise RuntimeError(f"{peer} finds {found} edges, ours {expected}")


if __name__ == "__main__":
    show([*small(), *large()])
