"""The kind `nodireft`."""

from __future__ import annotations

from torch import Tensor

from pyreft.interventions.bases import FreeBasis, source_of
from pyreft.interventions.registry import register_intervention


@register_intervention("nodireft")
class NodireftIntervention(FreeBasis):
    """A low-rank edit without orthonormality or difference (the paper's DiReFT).

    h' = h + P^T act(W h + b).

    Source: Wu et al. 2024, arXiv 2404.03592, eq. 3. Upstream allocates a bias for P that its
    formula never reads; ours has none, and `add_bias` changes nothing.

    Args, Shape, Raises: see `LowRankIntervention`.
    """

    of_one_formula = True

    def coefficients(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return source_of(self, hidden)
