"""PaiNN: polarisable atom interaction network, scalar and vector features per atom.

Source: Schuett, Unke, Gastegger 2021, doi:10.48550/arXiv.2102.03150. Sums over neighbours are batched matrix
products over padded neighbour lists. The first layer, whose vectors are still zero, sends no vector-to-vector
messages, and a last layer whose vectors nobody reads does not compute them: every parameter takes part.

Shapes: N atoms, E edges, K neighbour slots, R radial functions (the envelope included), H features.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfm.model.config import ModelConfig
from gfm.model.radial import Edges

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
        slots = slots_of(edges, len(s_NH))
        for message, update in zip(self.messages, self.updates, strict=True):
            ds_NH, dv_N3H = message(s_NH, v_N3H, slots)
            s_NH, v_N3H = update(s_NH + ds_NH, v_N3H + dv_N3H)
        return s_NH, v_N3H


class Slots(NamedTuple):
    """The edges as padded neighbour lists: every atom has K slots, and what is in an empty one is zero.

    Attributes:
        sources: Neighbour in each slot (N * K,).
        radial: Radial functions, one row each (N, R, K).
        along: Radial functions times x, y, z of the direction (N, 3 R, K).
    """

    sources: Tensor
    radial: Tensor
    along: Tensor


def slots_of(edges: Edges, num: int) -> Slots:
    """Give each atom as many slots as the most crowded atom needs."""
    counts_N = torch.bincount(edges.targets, minlength=num)
    most = max(int(counts_N.max()), 1) if num else 1
    starts_N = counts_N.cumsum(0) - counts_N
    rank_E = torch.arange(len(edges.targets), device=edges.targets.device) - starts_N[edges.targets]
    place_E = edges.targets * most + rank_E
    sources = edges.targets.new_zeros(num * most).index_copy(0, place_E, edges.sources)
    along_E3R = edges.directions.unsqueeze(2) * edges.basis.unsqueeze(1)
    both = torch.cat([edges.basis, along_E3R.flatten(1)], dim=1)
    padded = both.new_zeros(num * most, both.shape[1]).index_copy(0, place_E, both)
    rows = padded.view(num, most, -1).transpose(1, 2).contiguous()
    functions = edges.basis.shape[1]
    return Slots(sources, rows[:, :functions], rows[:, functions:])


class Message(nn.Module):
    """What neighbours tell: filtered scalars, scalars along the edge and, after the first layer, vectors.

    A filter is linear in the radial functions, so the sum over neighbours is taken for each radial function
    first (one batched product over the slots) and filtered after: no edge ever holds a message.
    """

    def __init__(self, config: ModelConfig, first: bool) -> None:
        super().__init__()
        hidden = config.hidden
        self.first = first
        self.scale = config.average_neighbors**-0.5
        self.context = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, (2 if first else 3) * hidden)
        )
        functions = config.num_radial + 1
        bound = functions**-0.5
        self.filters = nn.Parameter(torch.empty(2 if first else 3, functions, hidden).uniform_(-bound, bound))

    def forward(self, s_NH: Tensor, v_N3H: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Return the sums over neighbours, (N, H) and (N, 3, H)."""
        num, hidden = s_NH.shape
        functions, most = slots.radial.shape[1:]
        context = self.scale * self.context(s_NH)
        tell = context[:, :hidden]
        if not self.first:
            tell = torch.cat([tell, (context[:, None, 2 * hidden :] * v_N3H).flatten(1)], dim=1)
        told = torch.bmm(slots.radial, tell.index_select(0, slots.sources).view(num, most, tell.shape[1]))
        told = told.view(num, functions, tell.shape[1] // hidden, hidden)
        ds_NH = (told[:, :, 0] * self.filters[0]).sum(dim=1)
        context_d = context[:, hidden : 2 * hidden].index_select(0, slots.sources).view(num, most, hidden)
        along = torch.bmm(slots.along, context_d).view(num, 3, functions, hidden)
        dv_N3H = (along * self.filters[1]).sum(dim=2)
        if not self.first:
            dv_N3H = dv_N3H + (told[:, :, 1:] * self.filters[2].unsqueeze(1)).sum(dim=1)
        return ds_NH, dv_N3H


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
