"""Representation finetuning (ReFT) of transformers models.

Names are imported when they are first used, so that `import pyreft` costs little and neither
`datasets` nor the transformers Trainer is loaded until it is needed.
"""

from importlib import import_module
from typing import Any

__version__ = "1.0.0.dev0"

_HOMES = {
    "pyreft.compat.locations": (
        "ReftType",
        "TaskType",
        "get_intervention_locations",
        "parse_positions",
    ),
    "pyreft.config": ("InterventionConfig", "ReftConfig"),
    "pyreft.data": (
        "ReftDataCollator",
        "make_examples",
        "make_last_position_supervised_chat_data_module",
        "make_last_position_supervised_data_module",
        "make_multiple_position_supervised_data_module",
    ),
    "pyreft.interventions": (
        "ConsreftIntervention",
        "DireftIntervention",
        "LobireftIntervention",
        "LoreftIntervention",
        "LowRankIntervention",
        "NodireftIntervention",
        "NoreftIntervention",
        "register_intervention",
    ),
    "pyreft.modeling": ("ReftModel", "get_reft_model"),
    "pyreft.positions": ("PositionSpec", "Tokens", "register_position"),
    "pyreft.sharing": ("AdapterError",),
    "pyreft.training": ("ReftTrainer", "ReftTrainerForCausalLM"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
