"""Which interventions an adapter has, and which hidden states they edit: JSON in, JSON out."""

from pyreft.config.intervention import (
    InterventionConfig,
    intervention_keys,
    require_disjoint,
    share_no_head,
)
from pyreft.config.layer_counts import STACKS
from pyreft.config.reft import ReftConfig

__all__ = [
    "STACKS",
    "InterventionConfig",
    "ReftConfig",
    "intervention_keys",
    "require_disjoint",
    "share_no_head",
]
