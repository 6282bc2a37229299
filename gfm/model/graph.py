"""Graph: a batch of structures as tensors, with the edges a cutoff gives them.

Shapes: N atoms, E edges, G structures, all structures of the batch one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gfm.data.fields import FIELDS
from gfm.data.neighbors import edge_vectors, neighbor_edges
from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure

__all__ = ["LABELS", "Graph", "graph_from_batch", "graph_from_structures"]

LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Graph:
    """What a model reads, and the labels it is compared with.

    Attributes:
        numbers: Atomic numbers (N,) int64.
        positions: Cartesian positions (N, 3), angstrom.
        cell: Lattice vectors as rows (G, 3, 3), angstrom.
        graph_index: Structure of each atom (N,) int64, ascending.
        num_atoms: Atoms per structure (G,) int64.
        sources: Neighbour of each edge (E,) int64.
        targets: Atom whose neighbour it is (E,) int64, ascending.
        vectors: From the target to its neighbour (E, 3), angstrom, periodic images included; subtracted in
            double precision before they are cast.
        dataset: Index of each structure's dataset (G,) int64.
        charge: Total charge (G,), e; 0 where ``masks["charge"]`` is false.
        spin: Multiplicity (G,); 0 where ``masks["spin"]`` is false.
        labels: Per name of `LABELS` that some structure has: energy (G,) float64, total, eV; forces (N, 3),
            eV/angstrom; stress (G, 3, 3), eV/angstrom^3. Zero where a structure has none.
        masks: Which structures have it (G,) bool, for all names of `LABELS`, charge and spin.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    graph_index: Tensor
    num_atoms: Tensor
    sources: Tensor
    targets: Tensor
    vectors: Tensor
    dataset: Tensor
    charge: Tensor
    spin: Tensor
    labels: dict[str, Tensor]
    masks: dict[str, Tensor]

    @property
    def num_graphs(self) -> int:
        """Number of structures G."""
        return len(self.num_atoms)

    @property
    def num_edges(self) -> int:
        """Number of directed edges E."""
        return len(self.sources)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the graph on a device, its floating point tensors in a dtype; the energy stays float64."""

        def moved(tensor: Tensor, keep: bool = False) -> Tensor:
            cast = dtype if tensor.is_floating_point() and not keep else None
            return tensor.to(device=device, dtype=cast, non_blocking=True)

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, dict):
                values[name] = {key: moved(tensor, key == "energy") for key, tensor in value.items()}
            else:
                values[name] = moved(value)
        return type(self)(**values)


def graph_from_batch(
    batch: RaggedBatch,
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    positions: NDArray[np.float64] | None = None,
) -> Graph:
    """Find the edges of a batch and return it as tensors.

    Args:
        batch: G structures.
        cutoff: Largest edge, angstrom.
        max_neighbors: The cap of `gfm.data.neighbors.neighbor_edges`.
        dtype: Of all floating point tensors but the energy, which is float64.
        positions: To be used instead of those of the batch (N, 3), where they are known in double precision.

    Raises:
        DataError: A structure has a flat periodic cell or a position that is not finite.
    """
    if positions is None:
        positions = batch.columns["positions"].astype(np.float64)
    cells = batch.columns["cell"]
    edges = neighbor_edges(positions, cells, batch.columns["pbc"], batch.offsets, cutoff, max_neighbors)

    def floats(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    masks = {name: torch.from_numpy(batch.has(name)) for name in (*LABELS, "charge", "spin")}
    labels = {}
    for name in LABELS:
        if masks[name].any():
            values = batch.columns[name].copy()
            # Only what is absent: a label that is there and not finite must not turn into a number.
            absent = ~batch.has(name)
            values[np.repeat(absent, batch.num_atoms) if FIELDS[name].per == "atom" else absent] = 0
            labels[name] = torch.from_numpy(values) if name == "energy" else floats(values)
    num = len(batch)
    return Graph(
        numbers=torch.from_numpy(batch.columns["numbers"].astype(np.int64)),
        positions=floats(positions),
        cell=floats(cells),
        graph_index=torch.from_numpy(np.repeat(np.arange(num), batch.num_atoms)),
        num_atoms=torch.from_numpy(batch.num_atoms.copy()),
        sources=torch.from_numpy(edges.sources),
        targets=torch.from_numpy(edges.targets),
        vectors=floats(edge_vectors(edges, positions, cells)),
        dataset=torch.from_numpy(batch.columns["dataset"].astype(np.int64)),
        charge=floats(batch.columns["charge"]) if masks["charge"].any() else torch.zeros(num, dtype=dtype),
        spin=floats(batch.columns["spin"]) if masks["spin"].any() else torch.zeros(num, dtype=dtype),
        labels=labels,
        masks=masks,
    )


def graph_from_structures(
    structures: Sequence[Structure],
    cutoff: float,
    max_neighbors: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """Do what `graph_from_batch` does for single structures, whose positions may be in double precision."""
    parts = [np.asarray(structure.positions, dtype=np.float64) for structure in structures]
    return graph_from_batch(
        RaggedBatch.from_structures(structures),
        cutoff,
        max_neighbors,
        dtype=dtype,
        positions=np.concatenate(parts) if parts else None,
    )
