"""PaiNN: polarisable atom interaction network, scalar and vector features per atom.

Source: Schuett, Unke, Gastegger 2021, doi:10.48550/arXiv.2102.03150. Written for batches of sorted edges:
filters are one product with the radial functions and their envelope, the first layer (whose vectors are still
zero) sends no vector-to-vector messages, and a last layer whose vectors nobody reads does not compute them, so
that every parameter takes part.

Shapes: N atoms, E edges, R radial functions, H features.
"""

import torch
from torch import Tensor, nn

from gfm.model.config import ModelConfig
from gfm.model.radial import Edges, segment_sum

__all__ = ["PaiNN"]

SOFT = 1e-8  # keeps the slope of a norm finite where the vector vanishes


class PaiNN(nn.Module):
    """Species embedding and message-passing layers; returns scalars (N, H) and vectors (N, 3, H)."""

    def __init__(self, config: ModelConfig, num_species: int, vectors_out: bool) -> None:
        """Build the layers; without ``vectors_out`` the last one leaves the vectors as they are."""
        super().__init__()
        self.hidden = config.hidden
        self.vector_width = config.hidden
        self.embedding = nn.Embedding(num_species, config.hidden)
        last = config.num_layers - 1
        self.messages = nn.ModuleList(Message(config, first=k == 0) for k in range(config.num_layers))
        self.updates = nn.ModuleList(
            Update(config.hidden, vectors_out=vectors_out or k < last) for k in range(config.num_layers)
        )

    def forward(self, numbers_N: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return scalar and vector features of each atom."""
        s_NH: Tensor = self.embedding(numbers_N)
        v_N3H = s_NH.new_zeros(len(s_NH), 3, self.hidden)
        for message, update in zip(self.messages, self.updates, strict=True):
            ds_NH, dv_N3H = message(s_NH, v_N3H, edges)
            s_NH, v_N3H = update(s_NH + ds_NH, v_N3H + dv_N3H)
        return s_NH, v_N3H


class Message(nn.Module):
    """What neighbours tell: filtered scalars, scalars along the edge and, after the first layer, vectors."""

    def __init__(self, config: ModelConfig, first: bool) -> None:
        super().__init__()
        hidden = config.hidden
        self.first = first
        self.scale = config.average_neighbors**-0.5
        width = (2 if first else 3) * hidden
        self.context = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.filter = nn.Linear(config.num_radial + 1, width, bias=False)

    def forward(self, s_NH: Tensor, v_N3H: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return the sums over neighbours, (N, H) and (N, 3, H)."""
        num, hidden = s_NH.shape
        context = self.scale * self.context(s_NH)
        x = context.index_select(0, edges.sources) * self.filter(edges.basis)
        x_s, x_d = x[:, :hidden], x[:, hidden : 2 * hidden]
        dv_E3H = x_d.unsqueeze(1) * edges.directions.unsqueeze(2)
        if not self.first:
            dv_E3H = dv_E3H + x[:, None, 2 * hidden :] * v_N3H.index_select(0, edges.sources)
        return segment_sum(x_s, edges.targets, num), segment_sum(dv_E3H, edges.targets, num)


class Update(nn.Module):
    """Mixing of features within an atom; scalars learn of vectors through norms and inner products."""

    def __init__(self, hidden: int, vectors_out: bool) -> None:
        super().__init__()
        self.vectors_out = vectors_out
        self.mix = nn.Linear(hidden, 2 * hidden, bias=False)
        self.gates = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, (3 if vectors_out else 2) * hidden)
        )

    def forward(self, s_NH: Tensor, v_N3H: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated features."""
        hidden = s_NH.shape[1]
        u_N3H, w_N3H = self.mix(v_N3H).split(hidden, dim=2)
        norm_NH = (w_N3H.square().sum(dim=1) + SOFT).sqrt()
        gates = self.gates(torch.cat([s_NH, norm_NH], dim=1))
        inner_NH = (u_N3H * w_N3H).sum(dim=1)
        s_NH = s_NH + gates[:, :hidden] + gates[:, hidden : 2 * hidden] * inner_NH
        if self.vectors_out:
            v_N3H = v_N3H + gates[:, None, 2 * hidden :] * u_N3H
        return s_NH, v_N3H
