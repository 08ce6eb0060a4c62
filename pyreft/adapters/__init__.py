"""(layer, component) -> module; hooks; ReftModel."""

from pyreft.adapters.model import ReftModel
from pyreft.adapters.reference import ReferenceModel
from pyreft.adapters.wrapping import get_reft_model

__all__ = ["ReferenceModel", "ReftModel", "get_reft_model"]
