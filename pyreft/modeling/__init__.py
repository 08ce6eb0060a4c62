"""(layer, component) -> module; hooks; ReftModel."""

from pyreft.modeling.model import ReftModel, get_reft_model

__all__ = ["ReftModel", "get_reft_model"]
