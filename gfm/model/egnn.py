"""EGNN: E(n)-equivariant graph network, with the coordinate update kept as a vector feature.

Source: Satorras, Hoogeboom, Welling 2021, doi:10.48550/arXiv.2102.09844. Different from there: coordinates stay
fixed, and what would move them is a vector feature of several channels, whose norms feed the next update;
messages vanish smoothly at the cutoff; the first product of the message network is taken per atom and not per
edge, and the last one after the sum over neighbours, where it is linear. So no edge is ever multiplied by an
(H, H) matrix.

Shapes: N atoms, E edges, R radial functions, H features, K vector channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gfm.model.config import ModelConfig
from gfm.model.radial import Edges, segment_sum

__all__ = ["EGNN"]

SOFT = 1e-8  # keeps the slope of a norm finite where the vector vanishes


class EGNN(nn.Module):
    """Species embedding and message-passing layers; returns scalars (N, H) and vectors (N, 3, K)."""

    def __init__(self, config: ModelConfig, num_species: int, vectors_out: bool) -> None:
        """Build the layers; the vectors feed every update, so ``vectors_out`` changes nothing."""
        super().__init__()
        self.vector_width = max(1, config.hidden // 4)
        self.embedding = nn.Embedding(num_species, config.hidden)
        self.layers = nn.ModuleList(Layer(config, self.vector_width) for _ in range(config.num_layers))

    def forward(self, numbers_N: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return scalar and vector features of each atom."""
        h_NH: Tensor = self.embedding(numbers_N)
        v_N3K = h_NH.new_zeros(len(h_NH), 3, self.vector_width)
        for layer in self.layers:
            h_NH, v_N3K = layer(h_NH, v_N3K, edges)
        return h_NH, v_N3K


class Layer(nn.Module):
    """One round: messages along edges, their sum and their vector sum, the update of each atom."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.scale = config.average_neighbors**-0.5
        self.of_target = nn.Linear(hidden, hidden)
        self.of_source = nn.Linear(hidden, hidden, bias=False)
        self.of_distance = nn.Linear(config.num_radial + 1, hidden, bias=False)
        self.to_vectors = nn.Linear(hidden, channels, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * hidden + channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(self, h_NH: Tensor, v_N3K: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return the updated features."""
        num = len(h_NH)
        message_EH = (
            self.of_target(h_NH).index_select(0, edges.targets)
            + self.of_source(h_NH).index_select(0, edges.sources)
            + self.of_distance(edges.basis)
        )
        message_EH = functional.silu(message_EH) * (self.scale * edges.envelope)
        sum_NH = segment_sum(message_EH, edges.targets, num)
        weights_EK = self.to_vectors(message_EH)
        v_N3K = v_N3K + segment_sum(weights_EK.unsqueeze(1) * edges.directions.unsqueeze(2), edges.targets, num)
        norm_NK = (v_N3K.square().sum(dim=1) + SOFT).sqrt()
        return h_NH + self.update(torch.cat([h_NH, sum_NH, norm_NK], dim=1)), v_N3K
