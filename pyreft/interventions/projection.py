"""The orthonormal projection R that LoReFT and its relatives edit through.

    A = Q0 U     thin QR, the diagonal of U positive: the initial R
    R^T = Q      Q0, turned by R reflections, one for each column of X

X is the trainable parameter, and begins at zero. D width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


class OrthonormalProjection(nn.Module):
    """Project a hidden state onto R orthonormal directions: x -> x Q, Q^T Q = I.

    No optimizer step can leave the manifold, and nothing has to be repaired after loading. The
    learning rate does not depend on the size of A: a step of size s in X turns a column of Q by
    2 s at the start, and by 2 s / (1 + |x|^2) when its column x of X has grown. Weight decay of X
    pulls Q back to Q0.

    Source: the map is that of `torch.nn.utils.parametrizations.orthogonal`, which upstream uses.
    That stores a random basis of R^D, a matrix D x D, for the coordinates of X. Here the basis is
    the matrix product of R reflections and a fast transform, at a cost of O(D R^2 + D R log D), in
    float64. Deviation: torch's weight decay also shrinks the signs that it keeps in X, and sets
    Q to zero at the first step.

    Args:
        embed_dim: D, the width of the input.
        rank: R, the number of directions, 1 <= R <= D.
        dtype: Type of A and X.
        device: Device of A and X.

    Attributes:
        original: A, (D, R), a buffer. Setting `weight` sets it, and X to zero.
        turn: X, (D, R), the parameter. Only the entries below its diagonal are used.

    Shape:
        x: (..., D) -> (..., R), in float32 at least.
    """

    original: Tensor

    def __init__(
        self,
        embed_dim: int,
        rank: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        # orthogonal_ has no kernel for half precision.
        start = torch.empty(embed_dim, rank, dtype=torch.promote_types(dtype, torch.float32))
        start = nn.init.orthogonal_(start).to(device=device, dtype=dtype)
        self.register_buffer("original", start)
        self.turn = nn.Parameter(torch.zeros_like(start))

    @property
    def weight(self) -> Tensor:
        """Q = R^T, (D, R), its columns orthonormal; differentiable with respect to `turn`."""
        return turned_factor(self.original, self.turn)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        with torch.no_grad():
            self.original.copy_(value)
            self.turn.zero_()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return x.to(weight.dtype) @ weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        state_dict |= complete_tensors(state_dict, [f"{prefix}turn"])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        embed_dim, rank = self.original.shape
        return f"{embed_dim} -> {rank}, orthonormal"


def orthonormal_factor(free: Tensor) -> Tensor:
    """Q0, the orthonormal factor of matrices A: (..., D, R) -> (..., D, R), float32 at least."""
    q, signs, _, _ = _factor(free)
    return (q * signs[..., None, :]).to(_result(free))


def turned_factor(free: Tensor, turn: Tensor) -> Tensor:
    """Q: Q0, the orthonormal factor of A, turned by X.

    In a basis of R^D that begins with Q0, Q is minus the first R columns of H_1 ... H_R, where
    H_i reflects along v_i, and v_i is column i of X below the diagonal with a 1 on it. In the
    compact WY form (Schreiber and Van Loan 1989) these columns are E - V S, with

        V = [v_1 ... v_R]      S = T^-1 L^T
        L = the first R rows of V
        T = the upper triangle of V^T V, its diagonal halved

    Args:
        free: A, (..., D, R).
        turn: X, (..., D, R); gradients reach it.

    Returns:
        (..., D, R) on the device of A, float32 at least.
    """
    q, signs, reflectors, scales = _factor(free)
    below = turn.to(q.device, q.dtype).tril(-1)
    rank = below.shape[-1]
    eye = torch.eye(rank, dtype=q.dtype, device=q.device)
    lower, outside = below[..., :rank, :] + eye, below[..., rank:, :]
    gram = lower.mT @ lower + outside.mT @ outside
    triangle = gram.triu(1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
    mixing = torch.linalg.solve_triangular(triangle, lower.mT, upper=True)
    # The difference to Q0, in that basis: V S - 2 E.
    inside = (lower @ mixing - 2 * eye) * signs[..., :, None]
    # Compiled code cannot have functions with forward derivatives.
    cls = _InBasis if torch.compiler.is_compiling() else _InBasisForward
    in_basis: Callable[[Tensor, Tensor, Tensor], Tensor] = cls.apply
    moved = in_basis(torch.cat([inside, outside @ mixing], dim=-2), reflectors, scales)
    return (q * signs[..., None, :] + moved).to(free.device, _result(free))


def complete_tensors(saved: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Saved tensors, with a zero X for each name of an X that is missing.

    Files of format 1 and of other libraries have no X: their R is Q0.
    """
    found = dict(saved)
    for name in names:
        start = f"{name.removesuffix('turn')}original"
        if name.split(".")[-1] == "turn" and name not in found and start in found:
            found[name] = torch.zeros_like(found[start])
    return found


@torch.no_grad()
def _factor(free: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A = q u: q, the signs of u's diagonal, and q as LAPACK's reflections, in float64.

    Computed on the CPU if the device has no float64.
    """
    exact = free.to("cpu" if free.device.type == "mps" else free.device, torch.float64)
    reflectors, scales = torch.geqrf(exact)
    q = torch.linalg.householder_product(reflectors, scales)
    signs = torch.where(reflectors.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return q, signs, reflectors, scales


class _InBasis(torch.autograd.Function):
    """Coordinates -> vectors of R^D: an orthogonal map, whose backward pass is its transpose.

    The basis begins with q. The rest of it is a transform that mixes all coordinates of the hidden
    state. Adam divides each coordinate by its own size, so its steps depend on the basis. In the
    basis of the hidden state a few coordinates are far larger than the others. In torch's random
    basis all are of similar size, and R trains faster.
    """

    @staticmethod
    def forward(x: Tensor, reflectors: Tensor, scales: Tensor) -> Tensor:
        return torch.ormqr(reflectors, scales, _spread(x, scales.shape[-1]))

    @staticmethod
    def setup_context(ctx: BackwardCFunction, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor, None, None]:
        reflectors, scales = _saved(ctx)
        x = torch.ormqr(reflectors, scales, gradients[0], transpose=True)
        return _spread(x, scales.shape[-1]), None, None


class _InBasisForward(_InBasis):
    """The same with a derivative for forward mode, and for `torch.func.vmap`."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: BackwardCFunction, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _InBasis.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(ctx: BackwardCFunction, *tangents: Tensor) -> Tensor:
        reflectors, scales = _saved(ctx)
        return torch.ormqr(reflectors, scales, _spread(tangents[0], scales.shape[-1]))


def _saved(ctx: BackwardCFunction) -> tuple[Tensor, ...]:
    return ctx.saved_tensors


def _spread(x: Tensor, rank: int) -> Tensor:
    """The Hartley transform of all rows except the first R; it is its own transpose."""
    if x.shape[-2] == rank:
        return x
    found = torch.fft.fft(x[..., rank:, :], dim=-2, norm="ortho")
    return torch.cat([x[..., :rank, :], found.real - found.imag], dim=-2)


def _result(free: Tensor) -> torch.dtype:
    return torch.promote_types(free.dtype, torch.float32)
