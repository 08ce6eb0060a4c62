"""Numbers about interventions that a training log shows beside the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyreft.interventions.projection import OrthonormalProjection


@torch.no_grad()
def describe_interventions(interventions: nn.Module) -> dict[str, float]:
    """How large the interventions have become, and how far R is from orthonormal.

    Returns:
        `intervention_norm`, the 2-norm over all of their parameters, and, if any edits along
        orthonormal directions, `orthonormality_error`, the largest entry of |R R^T - I|.
    """
    norms = [parameter.float().norm().cpu() for parameter in interventions.parameters()]
    numbers = {"intervention_norm": float(torch.stack(norms).norm())} if norms else {}
    projections = [m for m in interventions.modules() if isinstance(m, OrthonormalProjection)]
    if projections:
        numbers["orthonormality_error"] = max(_error(p.weight) for p in projections)
    return numbers


def _error(directions: Tensor) -> float:
    """Of directions (D, R)."""
    rows = directions.cpu().double()
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    return float((rows.T @ rows - identity).abs().max())
