"""The kind `lobireft`."""

from __future__ import annotations

from torch import Tensor

from pyreft.interventions.bases import OrthonormalBasis
from pyreft.interventions.registry import register_intervention


@register_intervention("lobireft")
class LobireftIntervention(OrthonormalBasis):
    """Add a learned constant inside a learned subspace (LobiReFT).

    h' = h + R^T b, the rows of R orthonormal.

    Source: Wu et al. 2024, arXiv 2404.03592, appendix E.

    Args, Shape, Raises: see `LowRankIntervention`; there is no activation.
    """

    of_one_formula = True
    constant_source = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        source: Tensor = self.learned_source.to(hidden.dtype)
        return source.expand(*hidden.shape[:-1], self.low_rank_dimension)
