"""The two bases of the low-rank kinds: orthonormal rows, and free rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.projection import OrthonormalProjection


class OrthonormalBasis(LowRankIntervention):
    """An edit along the orthonormal rows of R, the transpose of `rotate_layer.weight`."""

    def __init__(self, *args: Any, device: torch.device | str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = torch.promote_types(self.dtype, torch.float32)
        self.rotate_layer = OrthonormalProjection(
            self.embed_dim, self.low_rank_dimension, dtype=dtype, device=device
        )
        if self.constant_source:
            start = torch.rand(self.low_rank_dimension, dtype=self.dtype, device=device)
            self.learned_source = nn.Parameter(start)
        else:
            self.learned_source = _linear(self, device)

    def basis(self) -> Tensor:
        return self.rotate_layer.weight.mT


class FreeBasis(LowRankIntervention):
    """An edit along the rows of an unconstrained matrix, `proj_layer.weight`."""

    projection_bias = False

    def __init__(self, *args: Any, device: torch.device | str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj_layer = _linear(self, device, bias=self.add_bias and self.projection_bias)
        self.learned_source = _linear(self, device)

    def basis(self) -> Tensor:
        return self.proj_layer.weight


def _linear(
    of: LowRankIntervention, device: torch.device | str | None, bias: bool = True
) -> nn.Linear:
    return nn.Linear(of.embed_dim, of.low_rank_dimension, bias=bias, device=device, dtype=of.dtype)


def source_of(intervention: OrthonormalBasis | FreeBasis, hidden: Tensor) -> Tensor:
    """Compute act(W h + b), in the type of `hidden`: (..., D) -> (..., R)."""
    return apply_linear(intervention.learned_source, hidden, intervention.act_fn)


def apply_linear(linear: nn.Linear, hidden: Tensor, act_fn: nn.Module | None = None) -> Tensor:
    """Apply a linear map in the type of its weight; the result has the type of `hidden`."""
    mapped: Tensor = linear(hidden.to(linear.weight.dtype))
    return (mapped if act_fn is None else act_fn(mapped)).to(hidden.dtype)
