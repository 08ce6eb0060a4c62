"""hidden -> edited hidden. Knows only torch."""

from pyreft.interventions.arithmetic import join, scale, select_directions
from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.kinds import (
    ConsreftIntervention,
    DireftIntervention,
    LobireftIntervention,
    LoreftIntervention,
    NodireftIntervention,
    NoreftIntervention,
)
from pyreft.interventions.projection import OrthonormalProjection
from pyreft.interventions.registry import (
    constructor_arguments,
    intervention_class,
    kind_of,
    register_intervention,
    takes_argument,
    tensors_of,
)
from pyreft.interventions.stacked import StackedInterventions, stacks_with

__all__ = [
    "ConsreftIntervention",
    "DireftIntervention",
    "LobireftIntervention",
    "LoreftIntervention",
    "LowRankIntervention",
    "NodireftIntervention",
    "NoreftIntervention",
    "OrthonormalProjection",
    "StackedInterventions",
    "constructor_arguments",
    "intervention_class",
    "join",
    "kind_of",
    "register_intervention",
    "scale",
    "select_directions",
    "stacks_with",
    "takes_argument",
    "tensors_of",
]
