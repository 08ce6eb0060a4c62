"""adapter <-> directory."""

from pyreft.sharing.checkpoint import Adapter, AdapterError, read_adapter, save_adapter

__all__ = ["Adapter", "AdapterError", "read_adapter", "save_adapter"]
