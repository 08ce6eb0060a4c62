"""Representation finetuning (ReFT) of transformers models.

Names are imported when they are first used, so that `import pyreft` costs little and neither
`datasets` nor the transformers Trainer is loaded until it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyreft.installed.releases import check_releases as _check_releases

# For type checkers, which do not run what is below.
if TYPE_CHECKING:
    from pyreft.adapters.reference import ReferenceModel as ReferenceModel
    from pyreft.base_model.listing import (
        ListedComponent as ListedComponent,
        list_components as list_components,
    )
    from pyreft.compat.locations import (
        ReftType as ReftType,
        TaskType as TaskType,
    )
    from pyreft.compat.model import ReftModel as ReftModel
    from pyreft.compat.wrapping import get_reft_model as get_reft_model
    from pyreft.config import (
        InterventionConfig as InterventionConfig,
        ReftConfig as ReftConfig,
    )
    from pyreft.data import (
        ReftClassificationDataset as ReftClassificationDataset,
        ReftDataCollator as ReftDataCollator,
        ReftDataset as ReftDataset,
        ReftGenerationDataset as ReftGenerationDataset,
        ReftPreferenceDataset as ReftPreferenceDataset,
        ReftRawDataset as ReftRawDataset,
        ReftRewardCollator as ReftRewardCollator,
        ReftRewardDataset as ReftRewardDataset,
        ReftSupervisedDataset as ReftSupervisedDataset,
        make_examples as make_examples,
        make_last_position_supervised_chat_data_module as make_last_position_supervised_chat_data_module,
        make_last_position_supervised_data_module as make_last_position_supervised_data_module,
        make_multiple_position_supervised_data_module as make_multiple_position_supervised_data_module,
    )
    from pyreft.installed import UnsupportedReleaseError as UnsupportedReleaseError
    from pyreft.interventions import (
        ConsreftIntervention as ConsreftIntervention,
        DireftIntervention as DireftIntervention,
        LobireftIntervention as LobireftIntervention,
        LoreftIntervention as LoreftIntervention,
        LowRankIntervention as LowRankIntervention,
        NodireftIntervention as NodireftIntervention,
        NoreftIntervention as NoreftIntervention,
        register_intervention as register_intervention,
    )
    from pyreft.pictures import (
        edit_strengths as edit_strengths,
        logit_lens as logit_lens,
        plot_runs as plot_runs,
        subspace_angles as subspace_angles,
    )
    from pyreft.positions import (
        PositionSpec as PositionSpec,
        Tokens as Tokens,
        register_position as register_position,
    )
    from pyreft.positions.integers import (
        get_intervention_locations as get_intervention_locations,
        parse_positions as parse_positions,
    )
    from pyreft.sharing import (
        AdapterError as AdapterError,
    )
    from pyreft.training import (
        AdapterCheckpoints as AdapterCheckpoints,
        ReftTrainer as ReftTrainer,
        ReftTrainerForCausalLM as ReftTrainerForCausalLM,
        ReftTrainerForCausalLMDistributed as ReftTrainerForCausalLMDistributed,
        ReftTrainerForRewardModeling as ReftTrainerForRewardModeling,
        ReftTrainerForSequenceClassification as ReftTrainerForSequenceClassification,
        parameter_groups as parameter_groups,
        recommended as recommended,
        shard_only_frozen as shard_only_frozen,
    )

__version__ = "1.0.0.dev0"

_HOMES = {
    "pyreft.base_model.listing": ("ListedComponent", "list_components"),
    "pyreft.compat.locations": ("ReftType", "TaskType"),
    "pyreft.config": ("InterventionConfig", "ReftConfig"),
    "pyreft.data": (
        "ReftClassificationDataset",
        "ReftDataCollator",
        "ReftDataset",
        "ReftGenerationDataset",
        "ReftPreferenceDataset",
        "ReftRawDataset",
        "ReftRewardCollator",
        "ReftRewardDataset",
        "ReftSupervisedDataset",
        "make_examples",
        "make_last_position_supervised_chat_data_module",
        "make_last_position_supervised_data_module",
        "make_multiple_position_supervised_data_module",
    ),
    "pyreft.installed": ("UnsupportedReleaseError",),
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
    "pyreft.adapters": ("ReferenceModel",),
    "pyreft.compat.model": ("ReftModel",),
    "pyreft.compat.wrapping": ("get_reft_model",),
    "pyreft.pictures": ("edit_strengths", "logit_lens", "plot_runs", "subspace_angles"),
    "pyreft.positions": ("PositionSpec", "Tokens", "register_position"),
    "pyreft.positions.integers": ("get_intervention_locations", "parse_positions"),
    "pyreft.sharing": ("AdapterError",),
    "pyreft.training": (
        "AdapterCheckpoints",
        "ReftTrainer",
        "ReftTrainerForCausalLM",
        "ReftTrainerForCausalLMDistributed",
        "ReftTrainerForRewardModeling",
        "ReftTrainerForSequenceClassification",
        "parameter_groups",
        "recommended",
        "shard_only_frozen",
    ),
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


# Upstream's modules: `from pyreft.dataset import ReftDataset`.
__path__.append(f"{__path__[0]}/compat/modules")

_check_releases()
