"""What the training structures look like: typical energies and forces per source, and which elements occur.

One pass over the training labels, before the first step. Sums are made over fixed blocks of ids and added in
the order of the blocks, so that they are bit for bit the same on any number of ranks. Labels that are not
finite are found here, by name, rather than as a loss that is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.data.references import MAX_Z, compositions
from gfm.errors import DataError
from store.samples import SampleStore
from train.feed import head_lookup
from train.ranks import Ranks

__all__ = ["TrainingScales", "structure_names", "training_scales"]

_BLOCK = 1024


@dataclass(frozen=True)
class TrainingScales:
    """Of each source of a model (D of them).

    Attributes:
        energy: Root mean square of the interaction energy per atom (D,), eV/atom; 1 without labels.
        forces: Root mean square of the force components (D,), eV/angstrom; 1 without labels.
        seen: Elements that occur, by atomic number (D, 119).
    """

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    seen: NDArray[np.bool_]


def structure_names(batch: RaggedBatch, rows: NDArray[np.int64], stored: Sequence[str]) -> list[str]:
    """Return ``source:key`` of some structures of a batch, the key in hexadecimal as the dataset has it."""
    sources, keys = batch.columns["dataset"], batch.columns["key"]
    return [f"{stored[sources[row]]}:{keys[row]:016x}" for row in rows]


def training_scales(
    samples: SampleStore,
    ids: NDArray[np.int64],
    references: NDArray[np.float64],
    *,
    stored: Sequence[str],
    trained: Sequence[str],
    ranks: Ranks,
) -> TrainingScales:
    """Look at every training structure once; collective.

    Args:
        samples: Where the structures are.
        ids: Training structures, the same on every rank (n,).
        references: Energy of each element per source of the model (D, 119), eV.
        stored: Source names of the dataset, in its order.
        trained: Source names of the model, in its order.
        ranks: Who shares the work.

    Raises:
        DataError: A label is not finite; on every rank, naming the structures.
    """
    lookup = head_lookup(stored, trained)
    blocks = [ids[first : first + _BLOCK] for first in range(0, len(ids), _BLOCK)]
    sums = np.zeros((len(blocks), len(trained), 4))
    seen = np.zeros((len(trained), MAX_Z + 1))
    bad: list[str] = []
    for block in range(ranks.rank, len(blocks), ranks.size):
        batch = samples.get(blocks[block])
        heads = lookup[batch.columns["dataset"]].astype(np.int64)
        composition = compositions(batch)
        np.add.at(seen, heads, composition)
        unsound = np.zeros(len(batch), dtype=bool)
        if (labelled := batch.has("energy")).any():
            reference = (references[heads] * composition).sum(axis=1)
            per_atom = (batch.columns["energy"] - reference)[labelled] / batch.num_atoms[labelled]
            np.add.at(sums[block, :, 0], heads[labelled], 1.0)
            np.add.at(sums[block, :, 1], heads[labelled], per_atom**2)
            unsound[labelled] = ~np.isfinite(per_atom)
        if (labelled := batch.has("forces")).any():
            atoms = np.repeat(labelled, batch.num_atoms)
            owners = np.repeat(np.arange(len(batch)), batch.num_atoms)[atoms]
            squares = (batch.columns["forces"][atoms].astype(np.float64) ** 2).sum(axis=1)
            np.add.at(sums[block, :, 2], heads[owners], 3.0)
            np.add.at(sums[block, :, 3], heads[owners], squares)
            unsound[owners[~np.isfinite(squares)]] = True
        bad += structure_names(batch, np.flatnonzero(unsound), stored)
    if names := sorted(name for part in ranks.gather(bad) for name in part):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise DataError(
            f"training labels are not finite: {shown} (source:key). Ingest again with filters, or leave the "
            "source out with `sources`."
        )
    # Each block is zero on all ranks but one, so this adds nothing but zeros: no rounding.
    total = ranks.sum(torch.from_numpy(sums).to(ranks.device)).cpu().numpy().sum(axis=0)
    counts = ranks.sum(torch.from_numpy(seen).to(ranks.device)).cpu().numpy()
    return TrainingScales(
        energy=_root_mean(total[:, 1], total[:, 0]),
        forces=_root_mean(total[:, 3], total[:, 2]),
        seen=counts > 0,
    )


def _root_mean(squares: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sqrt(squares / counts), and 1 where there is nothing to scale by."""
    root: NDArray[np.float64] = np.sqrt(squares / np.maximum(counts, 1.0))
    return np.where(root > 1e-12, root, 1.0)
