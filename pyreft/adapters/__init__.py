"""A base model and its adapters: calls, generation, saving, several by name."""

from pyreft.adapters.model import EditedModel
from pyreft.adapters.reference import ReferenceModel

__all__ = ["EditedModel", "ReferenceModel"]
