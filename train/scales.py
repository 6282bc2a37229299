"""Typical sizes of energies and forces per source, from the training structures alone.

The sums are made over fixed blocks of ids and added in the order of the blocks, so that they are bit for bit
the same on any number of ranks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.references import compositions
from store.samples import SampleStore
from train.feed import head_lookup
from train.ranks import Ranks

__all__ = ["training_scales"]

_BLOCK = 1024


def training_scales(
    samples: SampleStore,
    ids: NDArray[np.int64],
    references: NDArray[np.float64],
    *,
    stored: Sequence[str],
    trained: Sequence[str],
    ranks: Ranks,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return root mean squares of interaction energy per atom and of force components, per source.

    Args:
        samples: Where the structures are.
        ids: Training structures, the same on every rank (n,).
        references: Energy of each element per source of the model (D, 119), eV.
        stored: Source names of the dataset, in its order.
        trained: Source names of the model, in its order.
        ranks: Who shares the work.

    Returns:
        (D,) eV/atom and (D,) eV/angstrom; 1 where a source has no such label.
    """
    lookup = head_lookup(stored, trained)
    blocks = [ids[first : first + _BLOCK] for first in range(0, len(ids), _BLOCK)]
    sums = np.zeros((len(blocks), len(trained), 4))
    for block in range(ranks.rank, len(blocks), ranks.size):
        batch = samples.get(blocks[block])
        heads = lookup[batch.columns["dataset"]].astype(np.int64)
        if (labelled := batch.has("energy")).any():
            reference = (references[heads] * compositions(batch)).sum(axis=1)
            per_atom = (batch.columns["energy"] - reference)[labelled] / batch.num_atoms[labelled]
            np.add.at(sums[block, :, 0], heads[labelled], 1.0)
            np.add.at(sums[block, :, 1], heads[labelled], per_atom**2)
        if (labelled := batch.has("forces")).any():
            atoms = np.repeat(labelled, batch.num_atoms)
            squares = (batch.columns["forces"][atoms].astype(np.float64) ** 2).sum(axis=1)
            owners = np.repeat(heads, batch.num_atoms)[atoms]
            np.add.at(sums[block, :, 2], owners, 3.0)
            np.add.at(sums[block, :, 3], owners, squares)
    # Each block is zero on all ranks but one, so this adds nothing but zeros: no rounding.
    total = ranks.sum(torch.from_numpy(sums).to(ranks.device)).cpu().numpy().sum(axis=0)
    return _root_mean(total[:, 1], total[:, 0]), _root_mean(total[:, 3], total[:, 2])


def _root_mean(squares: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sqrt(squares / counts), and 1 where there is nothing to scale by."""
    root: NDArray[np.float64] = np.sqrt(squares / np.maximum(counts, 1.0))
    return np.where(root > 1e-12, root, 1.0)
