"""(layer, component) -> module; hooks; ReftModel."""

from pyreft.modeling.model import ReftModel
from pyreft.modeling.reference import ReferenceModel
from pyreft.modeling.wrapping import get_reft_model

__all__ = ["ReferenceModel", "ReftModel", "get_reft_model"]
