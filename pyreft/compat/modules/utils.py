"""`pyreft.utils`, as upstream names it."""

from pyreft.adapters import ReftModel, get_reft_model
from pyreft.compat.locations import ReftType, TaskType

__all__ = ["ReftModel", "ReftType", "TaskType", "get_reft_model"]
