"""An adapter's own files -> a repository of the Hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo

from pyreft.sharing import push_directory, read_adapter
from pyreft.sharing.card import CARD_NAME, IMAGE_NAME
from pyreft.sharing.checkpoint import CONFIG_NAME, LORA_FILES, WEIGHTS_NAME


def push_adapter(
    directory: Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push an adapter that is intact, and its card.

    A trainer's directory also holds checkpoints, optimisers and its arguments. They are not pushed.

    Args:
        directory: The directory of the adapter.
        repository: "owner/name".
        private, revision, commit_message, token: As for `push_directory`.

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
        return push_directory(
            temporary,
            repository,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
        )
