"""Exact means over structures: sums per source on every rank, added up, divided once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gfm.data.ragged import RaggedBatch
from gfm.model.graph import Graph
from gfm.model.potential import Potential, Prediction
from store.samples import SampleStore
from train.config import LossConfig
from train.feed import Ahead, GraphMaker
from train.loss import energy_errors, force_errors
from train.ranks import Ranks

__all__ = ["ALONE", "error_sums", "evaluate", "metrics_of_sums"]

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def evaluate(
    potential: Potential,
    samples: SampleStore,
    ids: NDArray[np.int64],
    *,
    stored: Sequence[str],
    loss: LossConfig | None = None,
    batch_size: int = 32,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Return the errors of a potential on these structures, the same on every rank.

    Args:
        potential: The model; evaluated without autocast.
        samples: Where the structures are.
        ids: Dataset row ids, the same on every rank (n,).
        stored: The dataset's source names, in its order.
        loss: Weights for the entry ``loss``.
        batch_size: Structures at a time on each rank.
        ranks: Who shares the work.

    Returns:
        Pooled ``loss``, ``energy_mae_mev_per_atom``, ``energy_rmse_mev_per_atom``,
        ``forces_mae_ev_per_angstrom``, ``forces_rmse_ev_per_angstrom``, ``structures``, the MAE of the zero
        model (reference energies only, no forces) as ``energy_mae_zero_model_mev_per_atom`` and
        ``forces_mae_zero_model_ev_per_angstrom``, and the same for each source under ``datasets``; a value
        without a single label is None.
    """
    parameter = next(potential.parameters())
    names = list(potential.dataset_names)
    make_graph = GraphMaker(potential.config, stored, names, parameter.dtype, parameter.device)
    mine = ids[ranks.rank :: ranks.size]
    chunks = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]

    def prepare(chunk: NDArray[np.int64]) -> Graph:
        batch: RaggedBatch = samples.get(chunk)
        return make_graph(batch)

    training = potential.training
    potential.eval()
    sums = torch.zeros(len(names), 9, dtype=torch.float64, device=parameter.device)
    with Ahead(chunks, prepare) as graphs:
        for graph in graphs:
            sums += error_sums(potential, graph)
    potential.train(training)
    return metrics_of_sums(ranks.sum(sums).cpu().numpy(), names, loss or LossConfig())


def error_sums(potential: Potential, graph: Graph) -> torch.Tensor:
    """Return sums by source (D, 9): structures; n, sum |e|, sum e^2 of energies; the same of forces.

    The last two are sum |e| of energies and forces for the zero model, which knows the reference energies only.
    """
    with torch.no_grad():  # a potential that differentiates its energy turns gradients on for itself
        prediction = potential(graph)
        references = potential.reference_energy(graph)
        nothing = torch.zeros_like(prediction.interaction_energy)
        zero = Prediction(nothing, references, torch.zeros_like(prediction.forces), None)
    energy, zero_energy = energy_errors(prediction, graph), energy_errors(zero, graph)
    forces, zero_forces = force_errors(prediction, graph).double(), force_errors(zero, graph).double()
    columns = torch.zeros(graph.num_graphs, 9, dtype=torch.float64, device=energy.device)
    columns[:, 0] = 1.0
    if "energy" in graph.labels:
        columns[:, 1] = graph.masks["energy"]
    if "forces" in graph.labels:
        columns[:, 4] = 3 * graph.masks["forces"] * graph.num_atoms
    columns[:, 2], columns[:, 3], columns[:, 7] = energy.abs(), energy.square(), zero_energy.abs()
    columns[:, 5].index_add_(0, graph.graph_index, forces.abs().sum(-1))
    columns[:, 6].index_add_(0, graph.graph_index, forces.square().sum(-1))
    columns[:, 8].index_add_(0, graph.graph_index, zero_forces.abs().sum(-1))
    sums = torch.zeros(len(potential.dataset_names), 9, dtype=torch.float64, device=energy.device)
    return sums.index_add_(0, graph.dataset, columns)


def metrics_of_sums(sums: NDArray[np.float64], names: Sequence[str], loss: LossConfig) -> dict[str, Any]:
    """Return the metrics of the sums (D, 9), pooled and by source."""
    metrics = _metrics(sums.sum(axis=0), loss)
    metrics["datasets"] = {
        name: _metrics(row, loss) for name, row in zip(names, sums, strict=True) if row[0] > 0
    }
    return metrics


def _metrics(row: NDArray[np.float64], loss: LossConfig) -> dict[str, Any]:
    structures, energies, energy_sum, energy_square, components, force_sum, force_square, *zero = row.tolist()

    def mean(total: float, count: float) -> float | None:
        return total / count if count else None

    energy_mae, forces_mae = mean(energy_sum, energies), mean(force_sum, components)
    return {
        "loss": loss.energy * (energy_mae or 0.0) + loss.forces * (forces_mae or 0.0),
        "energy_mae_mev_per_atom": mean(1e3 * energy_sum, energies),
        "energy_rmse_mev_per_atom": 1e3 * (energy_square / energies) ** 0.5 if energies else None,
        "energy_mae_zero_model_mev_per_atom": mean(1e3 * zero[0], energies),
        "forces_mae_ev_per_angstrom": forces_mae,
        "forces_rmse_ev_per_angstrom": (force_square / components) ** 0.5 if components else None,
        "forces_mae_zero_model_ev_per_angstrom": mean(zero[1], components),
        "structures": int(structures),
    }
