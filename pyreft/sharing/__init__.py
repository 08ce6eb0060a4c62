"""adapter <-> directory."""

from pyreft.sharing.checkpoint import AdapterError, load_tensors, read_adapter, save_adapter

__all__ = ["AdapterError", "load_tensors", "read_adapter", "save_adapter"]
