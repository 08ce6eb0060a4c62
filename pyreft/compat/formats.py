"""A directory in any supported format -> an adapter."""

from __future__ import annotations

import os
from pathlib import Path

from pyreft.compat import adapter_hub, upstream_files
from pyreft.sharing import Adapter, Formats, read_adapter
from pyreft.sharing.checkpoint import CONFIG_NAME

# The files to download from a repository without an adapter in our format.
FILE_PATTERNS = (*upstream_files.FILE_PATTERNS, *adapter_hub.FILE_PATTERNS)


def read_any(directory: str | os.PathLike[str]) -> Adapter:
    """Read an adapter: our own, upstream's or adapter-hub's. No code in it is run.

    Raises:
        AdapterError: If the directory is not an adapter.
    """
    # Ours first: it may also contain a base model's config.json and PEFT's adapter_config.json.
    if (Path(directory) / CONFIG_NAME).is_file():
        return read_adapter(directory)
    if upstream_files.is_upstream(directory):
        return upstream_files.read_upstream(directory)
    if adapter_hub.is_adapter_hub(directory):
        return adapter_hub.read_adapter_hub(directory)
    return read_adapter(directory)


ANY_FORMAT = Formats(read_any, FILE_PATTERNS)
