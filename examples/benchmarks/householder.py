"""R^T under torch's orthogonal parametrization, as upstream has it: what ours is compared with."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from pyreft.interventions.projection import turned_factor


class Directions(nn.Module):
    """x -> x R^T, the matrix (D, R) a parameter."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight.dtype) @ self.weight


def parametrized(projection: nn.Module, same_basis: bool = True) -> nn.Module:
    """The directions of a projection under torch's `orthogonal`, as upstream has them.

    They start where the projection does. Torch takes coordinates in a random basis of R^D, and
    Adam depends on the basis; to compare the methods and not two bases, it is ours by default.
    """
    with torch.random.fork_rng():
        made = orthogonal(Directions(projection.weight))
    if same_basis:
        made.parametrizations.weight[0].base.copy_(basis(projection))
    return made


@torch.no_grad()
def basis(projection: nn.Module) -> torch.Tensor:
    """The basis that the parameter of a projection has its coordinates in, (D, D)."""
    columns = list(projection.weight.mT)
    for index in range(len(columns), len(projection.original)):
        turn = torch.zeros_like(projection.turn)
        turn[index, 0] = 1.0  # a quarter turn, after which the first direction is this one
        columns.append(turned_factor(projection.original, turn)[:, 0])
    return torch.stack(columns, 1)
