"""The six kinds: which directions are edited, and how far.

    kind       edit added to h            rows of the subspace
    loreft     R^T (act(W h + b) - R h)   orthonormal
    noreft     P^T (act(W h + b) - P h)   free
    direft     R^T  act(W h + b)          orthonormal
    nodireft   P^T  act(W h + b)          free
    consreft   R^T (b - R h)              orthonormal
    lobireft   R^T  b                     orthonormal

Names are upstream's. The paper's DiReFT (eq. 3) is `nodireft` here; upstream's `direft` keeps
the rows orthonormal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.projection import OrthonormalProjection


class OrthonormalBasis(LowRankIntervention):
    """Edits along the orthonormal rows of R, the transpose of `rotate_layer.weight`."""

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
    """Edits along the rows of a matrix without constraint, `proj_layer.weight`."""

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


def _source(intervention: OrthonormalBasis | FreeBasis, hidden: Tensor) -> Tensor:
    """act(W h + b), in the type of `hidden`: (..., D) -> (..., R)."""
    return _apply(intervention.learned_source, hidden, intervention.act_fn)


def _apply(linear: nn.Linear, hidden: Tensor, act_fn: nn.Module | None = None) -> Tensor:
    """A linear map in the type it is stored in, its result in the type of `hidden`."""
    mapped: Tensor = linear(hidden.to(linear.weight.dtype))
    return (mapped if act_fn is None else act_fn(mapped)).to(hidden.dtype)


class LoreftIntervention(OrthonormalBasis):
    """Edit a hidden state inside a learned low-rank subspace (LoReFT).

    h' = h + R^T (act(W h + b) - R h), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, eq. 2.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return _source(self, hidden) - hidden @ basis.mT


class NoreftIntervention(FreeBasis):
    """LoReFT without the constraint that the rows are orthonormal (NoReFT).

    h' = h + P^T (act(W h + b) - (P h + c)); c only with `add_bias`.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E; the bias c is upstream's.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    projection_bias = True
    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return _source(self, hidden) - _apply(self.proj_layer, hidden)

    @torch.no_grad()
    def edit_nothing(self) -> None:
        super().edit_nothing()
        if self.proj_layer.bias is not None:
            self.learned_source.bias.copy_(self.proj_layer.bias)


class ConsreftIntervention(OrthonormalBasis):
    """Move the projection of the hidden state to a learned constant (ConsReFT).

    h' = h + R^T (b - R h), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E. Deviation from upstream, whose class
    takes `dropout` and ignores it: here it applies to the edit, as in every kind.

    Args, Shape, Raises: see `LowRankIntervention`; there is no activation.
    """

    constant_source = True
    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return self.learned_source - hidden @ basis.mT


class LobireftIntervention(OrthonormalBasis):
    """Add a learned constant inside a learned subspace (LobiReFT).

    h' = h + R^T b, the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E.

    Args, Shape, Raises: see `LowRankIntervention`; there is no activation.
    """

    constant_source = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        source = self.learned_source.to(hidden.dtype)
        return source.expand(*hidden.shape[:-1], self.low_rank_dimension)


class DireftIntervention(OrthonormalBasis):
    """LoReFT without the difference (upstream's DiReFT).

    h' = h + R^T act(W h + b), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E, and upstream's name for it. The paper's
    DiReFT (eq. 3) has no orthonormality: that is `NodireftIntervention`.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return _source(self, hidden)


class NodireftIntervention(FreeBasis):
    """A low-rank edit without orthonormality or difference (the paper's DiReFT).

    h' = h + P^T act(W h + b).

    Source: Wu et al. 2024, arXiv 2404.03592, eq. 3. Upstream allocates a bias for P that its
    formula never reads; ours has none, and `add_bias` changes nothing.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return _source(self, hidden)


KINDS: dict[str, type[OrthonormalBasis | FreeBasis]] = {
    "loreft": LoreftIntervention,
    "noreft": NoreftIntervention,
    "direft": DireftIntervention,
    "nodireft": NodireftIntervention,
    "consreft": ConsreftIntervention,
    "lobireft": LobireftIntervention,
}
