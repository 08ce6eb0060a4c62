"""`pyreft.dataset`, as upstream names it."""

from pyreft.data import (
    ReftClassificationDataset,
    ReftDataCollator,
    ReftDataset,
    ReftGenerationDataset,
    ReftPreferenceDataset,
    ReftRawDataset,
    ReftRewardCollator,
    ReftRewardDataset,
    ReftSupervisedDataset,
    make_last_position_supervised_chat_data_module,
    make_last_position_supervised_data_module,
    make_multiple_position_supervised_data_module,
)
from pyreft.data.tokenize import IGNORE as IGNORE_INDEX
from pyreft.positions.integers import get_intervention_locations, parse_positions

__all__ = [
    "IGNORE_INDEX",
    "ReftClassificationDataset",
    "ReftDataCollator",
    "ReftDataset",
    "ReftGenerationDataset",
    "ReftPreferenceDataset",
    "ReftRawDataset",
    "ReftRewardCollator",
    "ReftRewardDataset",
    "ReftSupervisedDataset",
    "get_intervention_locations",
    "make_last_position_supervised_chat_data_module",
    "make_last_position_supervised_data_module",
    "make_multiple_position_supervised_data_module",
    "parse_positions",
]
