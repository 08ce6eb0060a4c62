"""`pyreft.utils`, as upstream names it."""

from pyreft.compat.locations import ReftType, TaskType
from pyreft.modeling import ReftModel, get_reft_model

__all__ = ["ReftModel", "ReftType", "TaskType", "get_reft_model"]
