"""Potential: layers, heads and references put together; graph in, energies, forces and stress out.

Forces by gradient are taken with respect to the edge vectors and then summed over the edges of each atom:
nothing is differentiated through the gather of positions, and the same gradients give the stress.

Shapes: N atoms, E edges, G structures, D datasets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gfm.model.config import LAYERS, ModelConfig
from gfm.model.graph import Graph
from gfm.model.heads import EnergyHead, ForceHead
from gfm.model.radial import RadialBasis, segment_sum

__all__ = ["NUM_SPECIES", "Potential", "Prediction"]

NUM_SPECIES = 119  # atomic numbers 1 to 118, and 0 that no structure has


class Prediction(NamedTuple):
    """What a potential says of a batch.

    Attributes:
        interaction_energy: Energy minus the reference of the composition (G,), eV.
        energy: Total energy (G,) float64, eV.
        forces: (N, 3), eV/angstrom.
        stress: (G, 3, 3), eV/angstrom^3, tension positive, or None where it was not asked for; NaN for
            structures without a three-dimensional cell.
    """

    interaction_energy: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor | None


class Potential(nn.Module):
    """A model of the interaction energy and the forces, for D datasets.

    Attributes:
        config: Its architecture.
        dataset_names: Names of the datasets; a graph's ``dataset`` counts into them.
        energy_kinds: What the energy of each dataset is: "total" or "adsorption".
        references: Reference energy of each element (D, 119), eV; float64 whatever the dtype of the model.
        seen: Which elements the training data of each dataset had (D, 119) bool.
        energy_scale: Typical interaction energy of each dataset (D,), eV/atom.
        forces_scale: Typical force component of each dataset (D,), eV/angstrom.
    """

    references: Tensor
    seen: Tensor
    energy_scale: Tensor
    forces_scale: Tensor

    def __init__(self, config: ModelConfig, dataset_names: Sequence[str]) -> None:
        """Build layers and heads; references are zero and scales one until they are set."""
        super().__init__()
        self.config = config
        self.dataset_names = tuple(dataset_names)
        self.energy_kinds = ("total",) * len(self.dataset_names)
        num = len(self.dataset_names)
        direct = config.forces == "direct"
        self.radial = RadialBasis(config)
        self.trunk: Any = LAYERS.get(config.layer)(config, NUM_SPECIES, vectors_out=direct)
        branches = num if config.heads == "per-dataset" else 1
        width = config.head_hidden or config.hidden
        self.energy_head = EnergyHead(branches, config.hidden, width)
        self.force_head = ForceHead(branches, config.hidden, width, self.trunk.vector_width) if direct else None
        self.register_buffer("references", torch.zeros(num, NUM_SPECIES, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num, NUM_SPECIES, dtype=torch.bool))
        self.register_buffer("energy_scale", torch.ones(num))
        self.register_buffer("forces_scale", torch.ones(num))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or cast as every module does, but keep the references in double precision."""
        references = self.references
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.references = references.to(self.references.device)
        return self

    def forward(self, graph: Graph, *, stress: bool = False) -> Prediction:
        """Predict energies and forces, and the stress of models whose forces are gradients.

        In training mode the results can be differentiated with respect to the parameters; in evaluation mode
        gradients for forces are taken also under ``torch.no_grad``, and nothing else is kept.

        Args:
            graph: The structures, with edges up to the model's cutoff.
            stress: Whether to give the stress; refused by a model with direct forces.

        Raises:
            ValueError: The stress is asked of a model with direct forces.
        """
        if self.force_head is not None:
            if stress:
                raise ValueError("a model with direct forces has no stress; train one with forces: gradient")
            atomic_N, s_NH, v_N3K = self._features(graph, graph.vectors)
            forces_N3 = self.force_head(s_NH, v_N3K, self._branches(graph))
            forces_N3 = forces_N3 * self.forces_scale[graph.dataset][graph.graph_index, None]
            interaction_G = segment_sum(atomic_N, graph.graph_index, graph.num_graphs)
            return Prediction(interaction_G, self._total(interaction_G, graph), forces_N3, None)
        return self._by_gradient(graph, stress)

    def reference_energy(self, graph: Graph) -> Tensor:
        """Return the reference energy of each structure (G,) float64, eV."""
        atomic_N = self.references[graph.dataset[graph.graph_index], graph.numbers]
        return segment_sum(atomic_N, graph.graph_index, graph.num_graphs)

    @torch.no_grad()
    def conservation_gap(self, graph: Graph) -> float:
        """Return the mean absolute difference between forces and minus the gradient of the energy, eV/angstrom.

        It is zero for forces that are gradients. Molecular dynamics with a gap does not conserve energy.
        """
        if self.force_head is None:
            return 0.0
        training = self.training
        self.eval()
        try:
            gap = (self(graph).forces - self._by_gradient(graph, stress=False).forces).abs().mean()
        finally:
            self.train(training)
        return float(gap)

    def _features(self, graph: Graph, vectors_E3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return atomic interaction energies (N,), scalars (N, H) and vectors (N, 3, K)."""
        edges = self.radial(vectors_E3, graph.sources, graph.targets)
        s_NH, v_N3K = self.trunk(graph.numbers, edges)
        atomic_N = self.energy_head(s_NH, self._branches(graph))
        return atomic_N * self.energy_scale[graph.dataset][graph.graph_index], s_NH, v_N3K

    def _branches(self, graph: Graph) -> Tensor:
        """Return the dataset of each atom (N,)."""
        return graph.dataset[graph.graph_index]

    def _total(self, interaction_G: Tensor, graph: Graph) -> Tensor:
        return interaction_G.double() + self.reference_energy(graph)

    def _by_gradient(self, graph: Graph, stress: bool) -> Prediction:
        """Predict with forces (and stress) as gradients of the energy."""
        with torch.enable_grad():
            vectors_E3 = graph.vectors.detach().requires_grad_()
            atomic_N, _, _ = self._features(graph, vectors_E3)
            (slope_E3,) = torch.autograd.grad(atomic_N.sum(), vectors_E3, create_graph=self.training)
        num = len(graph.numbers)
        forces_N3 = segment_sum(slope_E3, graph.targets, num) - segment_sum(slope_E3, graph.sources, num)
        interaction_G = segment_sum(atomic_N, graph.graph_index, graph.num_graphs)
        if not self.training:
            interaction_G = interaction_G.detach()
        stress_G33 = None
        if stress:
            strain_slope_E33 = slope_E3[:, :, None] * vectors_E3[:, None, :]
            strain_slope = segment_sum(strain_slope_E33, graph.graph_index[graph.targets], graph.num_graphs)
            volume_G = torch.linalg.det(graph.cell).abs()
            volume_G = torch.where(volume_G > 0, volume_G, torch.nan)
            stress_G33 = 0.5 * (strain_slope + strain_slope.transpose(1, 2)) / volume_G[:, None, None]
            if not self.training:
                stress_G33 = stress_G33.detach()
        return Prediction(interaction_G, self._total(interaction_G, graph), forces_N3, stress_G33)
