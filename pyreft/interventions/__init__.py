"""hidden -> edited hidden. Knows only torch."""

from importlib import import_module

from torch import nn

from pyreft.interventions.arithmetic import join, scale, select_directions
from pyreft.interventions.base import LowRankIntervention
from pyreft.interventions.kinds.consreft import ConsreftIntervention
from pyreft.interventions.kinds.direft import DireftIntervention
from pyreft.interventions.kinds.lobireft import LobireftIntervention
from pyreft.interventions.kinds.loreft import LoreftIntervention
from pyreft.interventions.kinds.nodireft import NodireftIntervention
from pyreft.interventions.kinds.noreft import NoreftIntervention
from pyreft.interventions.projection import OrthonormalProjection
from pyreft.interventions.registry import (
    accepted_arguments,
    built_in_kinds,
    constructor_arguments,
    intervention_class,
    kind_of,
    read_arguments,
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
    "accepted_arguments",
    "built_in_kinds",
    "constructor_arguments",
    "intervention_class",
    "join",
    "kind_of",
    "read_arguments",
    "register_intervention",
    "scale",
    "select_directions",
    "stacks_with",
    "takes_argument",
    "tensors_of",
]


def __getattr__(name: str) -> type[nn.Module]:
    # What upstream's module of this name has beside its interventions, taken from pyvene.
    module = import_module("pyreft.interventions.pyvene")
    if name == "LowRankRotateLayer" or name in module.NAMES:
        found: type[nn.Module] = module.find_class(name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
