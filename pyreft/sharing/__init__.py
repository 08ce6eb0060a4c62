"""adapter <-> directory <-> Hub."""

from pyreft.sharing.checkpoint import Adapter, AdapterError
from pyreft.sharing.hub import (
    HubFiles,
    HubSource,
    download_adapter,
    find_adapter,
    is_repo_id,
    push_directory,
)
from pyreft.sharing.reading import Formats, read_adapter
from pyreft.sharing.writing import save_adapter

__all__ = [
    "Adapter",
    "AdapterError",
    "Formats",
    "HubFiles",
    "HubSource",
    "download_adapter",
    "find_adapter",
    "is_repo_id",
    "push_directory",
    "read_adapter",
    "save_adapter",
]
