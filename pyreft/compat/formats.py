"""A directory in any format that is read here -> an adapter."""

from __future__ import annotations

import os
from pathlib import Path

from pyreft.compat.upstream_files import is_upstream, read_upstream
from pyreft.sharing import Adapter, read_adapter
from pyreft.sharing.checkpoint import CONFIG_NAME


def read_any(directory: str | os.PathLike) -> Adapter:
    """Read an adapter, our own or upstream's. Nothing in it is run.

    Raises:
        AdapterError: If the directory is no adapter.
    """
    # Ours first: it may hold a base model's config.json as well.
    if not (Path(directory) / CONFIG_NAME).is_file() and is_upstream(directory):
        return read_upstream(directory)
    return read_adapter(directory)
