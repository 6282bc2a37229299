"""Neighbour lists: structures per CPU second on one core, beside vesin and ASE; how cost grows with size."""

from functools import partial

import numpy as np
import vesin
from ase.build import bulk
from ase.neighborlist import neighbor_list
from measure import Result, cpu_rates, show

from gfm.data.neighbors import neighbor_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure

CUTOFF = 5.0


def crystals(count: int, repeat: tuple[int, int, int], seed: int = 0) -> RaggedBatch:
    """Rattled copper-like cells of the same size with a random lattice constant each."""
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True, a=rng.uniform(3.6, 5.0)).repeat(repeat)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        structures.append(Structure.from_atoms(atoms))
    return RaggedBatch.from_structures(structures)


def main() -> None:
    """Measure and print."""
    results = []
    small = crystals(100, (2, 2, 3))  # 48 atoms

    def ours(batch: RaggedBatch) -> None:
        columns = batch.columns
        neighbor_edges(columns["positions"], columns["cell"], columns["pbc"], batch.offsets, CUTOFF)

    peers = [structure.to_atoms() for structure in small]
    calculator = vesin.NeighborList(cutoff=CUTOFF, full_list=True)

    def with_vesin() -> None:
        for atoms in peers:
            calculator.compute(atoms.positions, atoms.cell[:], True, "ijS")

    def with_ase() -> None:
        for atoms in peers[:10]:
            neighbor_list("ijS", atoms, CUTOFF)

    rates = cpu_rates([(lambda: ours(small), len(small)), (with_vesin, len(peers)), (with_ase, 10)])
    for peer, rate in zip(("vesin", "ase.neighborlist"), rates[1:], strict=True):
        name = "48-atom crystals, 5 A"
        results.append(Result(name, rates[0], "structures/CPU s", peer, rate, rates[0] / rate))

    sizes = [crystals(1, (n, n, n)) for n in (6, 8, 11, 14)]  # 864 to 10,976 atoms
    grown = cpu_rates([(partial(ours, batch), int(batch.offsets[-1])) for batch in sizes], repeats=3)
    for batch, rate in zip(sizes, grown, strict=True):
        name = f"one cell of {batch.offsets[-1]:,} atoms"
        results.append(Result(name, rate, "atoms/CPU s", "864 atoms", grown[0], rate / grown[0]))
    show(results)


if __name__ == "__main__":
    main()
