"""The kind `consreft`."""

from __future__ import annotations

from torch import Tensor

from pyreft.interventions.bases import OrthonormalBasis
from pyreft.interventions.registry import register_intervention


@register_intervention("consreft")
class ConsreftIntervention(OrthonormalBasis):
    """Move the projection of the hidden state to a learned constant (ConsReFT).

    h' = h + R^T (b - R h), the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E. Deviation from upstream, whose class
    takes `dropout` and ignores it: here it applies to the edit, as in every kind.

    Args, Shape, Raises: see `LowRankIntervention`; there is no activation.
    """

    of_one_formula = True
    constant_source = True
    replaces_projection = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        source: Tensor = self.learned_source
        return source - hidden @ basis.mT
