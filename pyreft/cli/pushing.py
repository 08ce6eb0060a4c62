"""An adapter's own files -> a repository of the Hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from pyreft.sharing import push_directory, read_adapter
from pyreft.sharing.card import CARD_NAME, IMAGE_NAME
from pyreft.sharing.checkpoint import CONFIG_NAME, LORA_FILES, WEIGHTS_NAME


def push_adapter(directory: Path, repository: str, **where: Any) -> CommitInfo:
    """Push an adapter that is intact, and its card.

    A trainer's directory holds checkpoints, optimisers and its arguments as well: these stay.

    Args:
        directory: Where it is.
        repository: "owner/name".
        **where: As for `push_directory`.

    Raises:
        AdapterError: If it is not intact, or the Hub refuses it.
    """
    adapter = read_adapter(directory)
    lora = LORA_FILES if adapter.lora is not None else ()
    names = (CONFIG_NAME, WEIGHTS_NAME, *lora, CARD_NAME, IMAGE_NAME)
    with tempfile.TemporaryDirectory() as temporary:
        for path in (directory / name for name in names):
            if path.is_file():
                shutil.copyfile(path, Path(temporary) / path.name)
        return push_directory(temporary, repository, **where)
