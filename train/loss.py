"""Weighted L1 of energies per atom and of force components, normalised over all ranks together.

A rank's loss is its own sum over the *global* number of labels, so the ranks' losses add up to the loss of the
global batch, whichever structures each rank holds. Labels that a structure lacks are masked, not zero.
"""

import torch
from torch import Tensor, nn

from gfm.model.graph import Graph
from gfm.model.potential import Potential, Prediction
from train.config import LossConfig

__all__ = ["Objective", "energy_errors", "force_errors", "label_counts"]


def energy_errors(prediction: Prediction, graph: Graph) -> Tensor:
    """Return predicted minus published energy per atom (G,), eV/atom, float64; 0 where there is no label.

    The atomic reference energies cancel in the difference: it is the error of the interaction energy.
    """
    if "energy" not in graph.labels:
        return torch.zeros_like(prediction.energy)
    error = (prediction.energy - graph.labels["energy"]) / graph.num_atoms
    return torch.where(graph.masks["energy"], error, 0.0)


def force_errors(prediction: Prediction, graph: Graph) -> Tensor:
    """Return predicted minus published forces (N, 3), eV/angstrom; 0 where there is no label."""
    if "forces" not in graph.labels:
        return torch.zeros_like(prediction.forces)
    mask = graph.masks["forces"][graph.graph_index].unsqueeze(-1)
    return torch.where(mask, prediction.forces - graph.labels["forces"], 0.0)


def label_counts(graph: Graph) -> Tensor:
    """Return the number of energies and of force components that are labelled (2,), float64."""
    counts = torch.zeros(2, dtype=torch.float64, device=graph.positions.device)
    if "energy" in graph.labels:
        counts[0] = graph.masks["energy"].sum()
    if "forces" in graph.labels:
        counts[1] = 3 * (graph.masks["forces"] * graph.num_atoms).sum()
    return counts


class Objective(nn.Module):
    """The potential and its loss as one module, so that gradients are reduced over ranks as they appear."""

    def __init__(self, potential: Potential, config: LossConfig) -> None:
        super().__init__()
        self.potential = potential
        self.config = config

    def forward(self, graph: Graph, counts: Tensor) -> Tensor:
        """Return this rank's part of the loss of the global batch (scalar, float64).

        Args:
            graph: This rank's structures.
            counts: Labelled energies and force components of the whole global batch (2,).
        """
        prediction = self.potential(graph)
        energy_sum = energy_errors(prediction, graph).abs().sum()
        force_sum = force_errors(prediction, graph).abs().sum(dtype=torch.float64)
        energy_count, force_count = counts.clamp(min=1.0)
        loss = self.config.energy * energy_sum / energy_count + self.config.forces * force_sum / force_count
        # Every parameter takes part with gradient zero, so that all ranks reduce the same set whichever heads
        # their structures use; a loss that is not finite (whose L1 gradient may be) reaches all ranks this way.
        alarm = torch.where(loss.detach().isfinite(), 0.0, torch.nan)
        touched = torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        total: Tensor = loss + alarm * touched
        return total
