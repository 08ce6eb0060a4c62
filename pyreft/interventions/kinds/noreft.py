"""The kind `noreft`."""

from __future__ import annotations

import torch
from torch import Tensor

from pyreft.interventions.bases import FreeBasis, apply_linear, source_of
from pyreft.interventions.registry import register_intervention


@register_intervention("noreft")
class NoreftIntervention(FreeBasis):
    """LoReFT without the constraint that the rows are orthonormal (NoReFT).

    h' = h + P^T (act(W h + b) - (P h + c)); c only with `add_bias`.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E; the bias c is upstream's.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    of_one_formula = True
    projection_bias = True
    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return source_of(self, hidden) - apply_linear(self.proj_layer, hidden)

    @torch.no_grad()
    def edit_nothing(self) -> None:
        super().edit_nothing()
        if self.proj_layer.bias is not None:
            self.learned_source.bias.copy_(self.proj_layer.bias)
