"""Radial bases and the smooth cutoff: what a layer knows of the length of an edge.

Every radial function is multiplied by an envelope that goes to zero at the cutoff with two derivatives, so
energies, forces and their slopes stay continuous when a neighbour crosses it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfm.model.config import ModelConfig

__all__ = ["Edges", "RadialBasis", "segment_sum"]

SHORTEST = 1e-4  # angstrom; below it an edge has no direction


class Edges(NamedTuple):
    """The edges as layers read them; E edges between N atoms, R radial functions.

    Attributes:
        sources: Neighbour (E,).
        targets: Atom that receives the message (E,), ascending.
        basis: Radial functions times the envelope (E, R), and the envelope itself as last column: (E, R + 1).
        directions: Unit vectors from target to neighbour (E, 3).
    """

    sources: Tensor
    targets: Tensor
    basis: Tensor
    directions: Tensor

    @property
    def envelope(self) -> Tensor:
        """The envelope (E, 1)."""
        return self.basis[:, -1:]


def segment_sum(x_EF: Tensor, index_E: Tensor, num: int) -> Tensor:
    """Sum rows with the same index: (E, ...) to (num, ...); fastest where the index ascends."""
    return x_EF.new_zeros(num, *x_EF.shape[1:]).index_add(0, index_E, x_EF)


class RadialBasis(nn.Module):
    """Edge vectors (E, 3) to radial functions and directions.

    The Bessel functions are ``sqrt(2/c) sin(n pi d/c)/d``, n = 1..R; the Gaussians have R equidistant centres
    from 0 to the cutoff and their distance as width. The envelope is the polynomial of degree p + 2, p = 6.

    Source: doi:10.48550/arXiv.2003.03123 (Bessel basis and envelope).
    """

    def __init__(self, config: ModelConfig) -> None:
        """Read cutoff, kind and number of functions from the configuration."""
        super().__init__()
        self.kind, self.cutoff = config.radial_basis, config.cutoff
        steps = torch.arange(1, config.num_radial + 1, dtype=torch.float64)
        spacing = self.cutoff / max(config.num_radial - 1, 1)
        self.width = spacing
        values = steps * math.pi / self.cutoff if self.kind == "bessel" else (steps - 1.0) * spacing
        self.register_buffer("parameters_of_basis", values.to(torch.get_default_dtype()), persistent=False)

    def forward(self, vectors_E3: Tensor, sources_E: Tensor, targets_E: Tensor) -> Edges:
        """Return what layers read of these edges."""
        distance_E1 = vectors_E3.square().sum(dim=1, keepdim=True).clamp_min(SHORTEST**2).sqrt()
        values = self.get_buffer("parameters_of_basis")
        if self.kind == "bessel":
            basis_ER = math.sqrt(2.0 / self.cutoff) * torch.sin(distance_E1 * values) / distance_E1
        else:
            basis_ER = torch.exp(-0.5 * ((distance_E1 - values) / self.width).square())
        envelope_E1 = polynomial_envelope(distance_E1 / self.cutoff)
        basis = torch.cat([basis_ER * envelope_E1, envelope_E1], dim=1)
        return Edges(sources_E, targets_E, basis, vectors_E3 / distance_E1)


def polynomial_envelope(x: Tensor, p: int = 6) -> Tensor:
    """Fall from 1 at x = 0 to 0 at x = 1 with two vanishing derivatives there; 0 beyond."""
    x = x.clamp(max=1.0)
    falling: Tensor = 1.0 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x.square())
    return falling
