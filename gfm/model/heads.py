"""Heads: from features of an atom to its energy and, where forces are direct, its force.

With one branch per dataset the weights of all branches lie in one tensor and every branch runs on every atom;
the atom then takes the result of its own. So all parameters take part in every step, whichever datasets a rank
drew: no rank waits for a gradient that another does not have.

Shapes: N atoms, D branches, H features, K vector channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BranchLinear", "EnergyHead", "ForceHead"]


class BranchLinear(nn.Module):
    """A linear layer with one weight per branch: (N, inputs) and the branch of each row to (N, outputs)."""

    def __init__(self, num_branches: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.num_branches, self.outputs = num_branches, outputs
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(num_branches * outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_branches * outputs))

    def forward(self, x_NI: Tensor, branch_N: Tensor) -> Tensor:
        """Return each row's result in its own branch."""
        y = functional.linear(x_NI, self.weight, self.bias)
        if self.num_branches == 1:
            return y
        index = branch_N[:, None, None].expand(-1, 1, self.outputs)
        return y.view(-1, self.num_branches, self.outputs).gather(1, index).squeeze(1)


class EnergyHead(nn.Module):
    """Scalars (N, H) to the energy of each atom (N,), in units of the dataset's energy scale."""

    def __init__(self, num_branches: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first = BranchLinear(num_branches, inputs, hidden)
        self.last = BranchLinear(num_branches, hidden, 1)

    def forward(self, s_NH: Tensor, branch_N: Tensor) -> Tensor:
        """Return the energy of each atom."""
        energy: Tensor = self.last(functional.silu(self.first(s_NH, branch_N)), branch_N)
        return energy.squeeze(1)


class ForceHead(nn.Module):
    """Vectors (N, 3, K) weighted by gates from the scalars: forces that rotate with the structure."""

    def __init__(self, num_branches: int, inputs: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.first = BranchLinear(num_branches, inputs, hidden)
        self.last = BranchLinear(num_branches, hidden, channels)

    def forward(self, s_NH: Tensor, v_N3K: Tensor, branch_N: Tensor) -> Tensor:
        """Return the force on each atom (N, 3)."""
        gates_NK: Tensor = self.last(functional.silu(self.first(s_NH, branch_N)), branch_N)
        return torch.einsum("nck,nk->nc", v_N3K, gates_NK)
