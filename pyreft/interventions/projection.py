"""The orthonormal projection R that LoReFT and its relatives edit through."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OrthonormalProjection(nn.Module):
    """Project a hidden state onto R orthonormal directions: x -> x Q, Q^T Q = I.

    Q is the orthonormal factor of a free matrix A = Q U, U upper triangular with a positive
    diagonal (a thin QR decomposition), so that no optimiser step can leave the manifold and
    nothing has to be repaired after loading. It costs O(D R^2) and holds no D x D matrix. The
    decomposition runs in float64 (where the device has it), which keeps ||Q^T Q - I|| at the
    rounding error of float32 even if A is badly conditioned.

    Deviation from upstream: its Householder parametrisation keeps a dense D x D base matrix
    and loses orthonormality when training goes on after loading.

    Args:
        embed_dim: D, the width of the input.
        rank: R, the number of directions, 1 <= R <= D.
        dtype: Type of the free matrix A.
        device: Where to put it.

    Attributes:
        original: The free matrix A, (D, R): what is trained and saved.

    Shape:
        x: (..., D) -> (..., R), in float32 at least.
    """

    def __init__(
        self,
        embed_dim: int,
        rank: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.original = nn.Parameter(torch.empty(embed_dim, rank, dtype=dtype, device=device))
        with torch.no_grad():
            # orthogonal_ has no kernel for half precision.
            start = torch.empty(embed_dim, rank, dtype=torch.promote_types(dtype, torch.float32))
            self.original.copy_(nn.init.orthogonal_(start))

    @property
    def weight(self) -> Tensor:
        """Q = R^T, (D, R), its columns orthonormal; differentiable with respect to `original`."""
        return orthonormal_factor(self.original)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        with torch.no_grad():
            self.original.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return x.to(weight.dtype) @ weight

    def extra_repr(self) -> str:
        embed_dim, rank = self.original.shape
        return f"{embed_dim} -> {rank}, orthonormal"


def orthonormal_factor(free: Tensor) -> Tensor:
    """The orthonormal factor of free matrices: (..., D, R) -> (..., D, R), float32 at least."""
    exact = torch.float32 if free.device.type == "mps" else torch.float64
    q, u = torch.linalg.qr(free.to(exact))
    signs = torch.where(u.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(exact)
    return (q * signs[..., None, :]).to(torch.promote_types(free.dtype, torch.float32))
