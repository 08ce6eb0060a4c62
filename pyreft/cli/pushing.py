"""An adapter's own files -> a repository of the Hub, and back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo

from pyreft.sharing import (
    HubFiles,
    HubSource,
    download_adapter,
    push_directory,
    read_adapter,
)
from pyreft.sharing.card import CARD_NAME, IMAGE_NAME
from pyreft.sharing.checkpoint import CONFIG_NAME, LORA_FILES, WEIGHTS_NAME
from pyreft.sharing.whole import new_directory


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
    with tempfile.TemporaryDirectory() as temporary:
        _copy_own_files(directory, Path(temporary))
        return push_directory(
            temporary,
            repository,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
        )


def pull_adapter(
    repository: str, directory: Path, *, revision: str | None = None, token: str | None = None
) -> None:
    """Download an adapter that is intact into a new directory.

    Args:
        repository: "owner/name".
        directory: A new or empty directory.
        revision, token: Of the repository.

    Raises:
        AdapterError: If it is not intact, or the Hub does not give it.
    """
    files = HubFiles(repository, HubSource(revision=revision, token=token))
    with new_directory(directory) as path:
        source = download_adapter(files)
        files.fetch_matching((CARD_NAME, IMAGE_NAME, *LORA_FILES))
        _copy_own_files(source, path)


def _copy_own_files(source: Path, target: Path) -> None:
    """Copy the files of an adapter, after reading and checking it."""
    adapter = read_adapter(source)
    lora = LORA_FILES if adapter.lora is not None else ()
    for name in (CONFIG_NAME, WEIGHTS_NAME, *lora, CARD_NAME, IMAGE_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
