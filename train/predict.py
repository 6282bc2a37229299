"""A model over a dataset: energies and forces of many structures, for ensembles and for whoever asks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.model.build import load_model
from gfm.model.potential import Potential
from store.dataset import Dataset
from train.feed import Ahead, GraphMaker

__all__ = ["Predictions", "cached_model", "predict"]


@dataclass(frozen=True)
class Predictions:
    """What a model says about n structures with N atoms in all.

    Attributes:
        ids: The rows predicted (n,).
        energy: Total energies (n,), eV, float64.
        forces: Forces (N, 3), eV/angstrom, float32.
        offsets: Atoms of structure i are ``offsets[i]:offsets[i + 1]`` (n + 1,).
    """

    ids: NDArray[np.int64]
    energy: NDArray[np.float64]
    forces: NDArray[np.float32]
    offsets: NDArray[np.int64]


@lru_cache(maxsize=8)
def cached_model(path: str | Path, device: str = "cpu") -> Potential:
    """Return a saved model, loaded once per process; for tasks that come one after the other to a worker."""
    return load_model(path, device=device).eval()


def predict(
    potential: Potential,
    data: RaggedBatch | Dataset,
    ids: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 32,
    stored: Sequence[str] | None = None,
) -> Predictions:
    """Predict energies and forces.

    Args:
        potential: The model.
        data: The structures: a dataset on disk or a batch in memory.
        ids: Rows to predict, in this order; all by default.
        batch_size: Structures at a time.
        stored: Source names that the column ``dataset`` counts; by default the dataset's own, and for a batch
            the model's.

    Raises:
        ConfigError: A structure is from a source the model has no head for.
    """
    rows = np.arange(len(data), dtype=np.int64) if ids is None else np.asarray(ids, dtype=np.int64)
    names = list(potential.dataset_names)
    if stored is None:
        stored = data.dataset_names if isinstance(data, Dataset) else names
    parameter = next(potential.parameters())
    make_graph = GraphMaker(potential.config, stored, names, parameter.dtype, parameter.device)
    potential.eval()
    energies, forces, counts = [], [], []

    def prepare(chunk: NDArray[np.int64]) -> tuple[RaggedBatch, object]:
        batch = data.batch(chunk) if isinstance(data, Dataset) else data.take(chunk)
        return batch, make_graph(batch)

    with Ahead(_chunks(rows, batch_size), prepare) as feed:
        for batch, graph in feed:
            with torch.no_grad():
                prediction = potential(graph)
            energies.append(prediction.energy.detach().cpu().numpy().astype(np.float64))
            forces.append(prediction.forces.detach().cpu().numpy().astype(np.float32))
            counts.append(batch.num_atoms)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    if energies:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    return Predictions(
        ids=rows,
        energy=np.concatenate(energies) if energies else np.empty(0),
        forces=np.concatenate(forces) if forces else np.empty((0, 3), dtype=np.float32),
        offsets=offsets,
    )


def _chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))
