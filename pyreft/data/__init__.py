"""prompt + completion -> ids, labels, positions -> padded batch."""

from pyreft.data.collator import ReftDataCollator
from pyreft.data.examples import make_examples
from pyreft.data.modules import (
    make_last_position_supervised_chat_data_module,
    make_last_position_supervised_data_module,
    make_multiple_position_supervised_data_module,
)

__all__ = [
    "ReftDataCollator",
    "make_examples",
    "make_last_position_supervised_chat_data_module",
    "make_last_position_supervised_data_module",
    "make_multiple_position_supervised_data_module",
]
