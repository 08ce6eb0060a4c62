"""(layer, component) -> module; hooks; ReftModel."""

from pyreft.modeling.model import ReftModel, get_reft_model
from pyreft.modeling.reference import ReferenceModel

__all__ = ["ReferenceModel", "ReftModel", "get_reft_model"]
