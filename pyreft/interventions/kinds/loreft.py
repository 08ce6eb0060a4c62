"""The kind `loreft`."""

from __future__ import annotations

from torch import Tensor

from pyreft.interventions.bases import OrthonormalBasis, source_of
from pyreft.interventions.registry import register_intervention


@register_intervention("loreft")
class LoreftIntervention(OrthonormalBasis):
    """Edit a hidden state inside a learned low-rank subspace (LoReFT).

    h' = h + R^T (act(W h + b) - R h), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, eq. 2.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    of_one_formula = True
    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return source_of(self, hidden) - hidden @ basis.mT
