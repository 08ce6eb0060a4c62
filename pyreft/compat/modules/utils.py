"""`pyreft.utils`, as upstream names it."""

from pyreft.compat.locations import ReftType, TaskType
from pyreft.compat.model import ReftModel
from pyreft.compat.wrapping import get_reft_model

__all__ = ["ReftModel", "ReftType", "TaskType", "get_reft_model"]
