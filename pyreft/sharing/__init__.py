"""adapter <-> directory."""

from pyreft.sharing.checkpoint import Adapter, AdapterError
from pyreft.sharing.reading import read_adapter
from pyreft.sharing.writing import save_adapter

__all__ = ["Adapter", "AdapterError", "read_adapter", "save_adapter"]
