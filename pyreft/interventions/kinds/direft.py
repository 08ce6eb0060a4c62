"""The kind `direft`."""

from __future__ import annotations

from torch import Tensor

from pyreft.interventions.bases import OrthonormalBasis, source_of
from pyreft.interventions.registry import register_intervention


@register_intervention("direft")
class DireftIntervention(OrthonormalBasis):
    """LoReFT without the difference (upstream's DiReFT).

    h' = h + R^T act(W h + b), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E, and upstream's name for it. The paper's
    DiReFT (eq. 3) has no orthonormality: that is `NodireftIntervention`.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    of_one_formula = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return source_of(self, hidden)
