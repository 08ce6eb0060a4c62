"""prompt + completion -> ids, labels, positions -> padded batch."""

from pyreft.data.classification import ReftClassificationDataset
from pyreft.data.collator import ReftDataCollator
from pyreft.data.completions import (
    ReftGenerationDataset,
    ReftPreferenceDataset,
    ReftRawDataset,
    ReftSupervisedDataset,
)
from pyreft.data.dataset import ReftDataset
from pyreft.data.examples import make_examples
from pyreft.data.modules import (
    make_last_position_supervised_chat_data_module,
    make_last_position_supervised_data_module,
    make_multiple_position_supervised_data_module,
)
from pyreft.data.rewards import ReftRewardCollator, ReftRewardDataset

__all__ = [
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
]
