"""Save adapters as files and as repositories of the Hub: methods of `ReftModel`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo

from pyreft.adapters.fitting import take_adapter
from pyreft.adapters.replicas import require_whole
from pyreft.lora.peft_lora import peft_files
from pyreft.positions import PositionSpec
from pyreft.sharing import push_directory, save_adapter
from pyreft.sharing.card import write_card as write_card_of

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel


def record_positions(model: EditedModel, positions: list[PositionSpec]) -> None:
    """Set the positions of interventions whose config leaves them to the batch.

    A data module knows the positions. Recording them in the adapter makes it edit them wherever
    it is loaded.

    Args:
        positions: One for all interventions, or one for each.

    Raises:
        ValueError: If the number of positions does not fit, or the config has others.
    """
    model.adapter_set.first.record_positions(positions)


def save_pretrained(
    model: EditedModel,
    save_directory: str | os.PathLike[str],
    *,
    selected_adapters: Sequence[str] | None = None,
    is_main_process: bool = True,
    allow_other_files: bool = False,
) -> None:
    """Save the adapter: `reft_config.json`, `reft_model.safetensors`, and its card.

    If there are several adapters, as in PEFT, "default" is saved in the directory, and each other
    one in a subdirectory of its name.

    Trained parameters of the base model are saved with it: `modules_to_save`, and all others that
    require a gradient. PEFT's LoRA is saved too, and again in PEFT's own files. If a save is
    killed, or the disk is full, the previous files stay. A `README.md` that was written or edited
    by hand is not changed.

    Args:
        save_directory: A new or empty directory, or one with an adapter, which is replaced; files
            of tokenizers and trainers may be in it too.
        selected_adapters: Names of the adapters to save; all by default.
        is_main_process: Whether to save at all; false in the other processes of a run.
        allow_other_files: Whether the directory may contain any other files.

    Raises:
        AdapterError: If the directory contains something else.
        ValueError: If a kind or a position function has no name to be saved under, or this
            process has only shards of the interventions, or PEFT trains more than a LoRA.
    """
    names = list(model.adapter_set) if selected_adapters is None else list(selected_adapters)
    model.adapter_set.require_known(names)
    base = model.model
    for name in names if is_main_process else ():
        attached = model.adapter_set[name]
        require_whole(attached)
        adapter = take_adapter(base, attached, *model.adapter_set.trained_with(name, base))
        folder = model.adapter_set.folder(save_directory, name)
        beside = peft_files(base) if adapter.lora is not None else {}
        save_adapter(folder, adapter, allow_other_files, beside)
        write_card_of(folder, adapter, attached.training_facts)


def write_card(model: EditedModel, directory: str | os.PathLike[str]) -> None:
    """Write the model card of each adapter as it is now, as `save_pretrained` does.

    Args:
        directory: Where the model was saved.
    """
    base = model.model
    for name, attached in model.adapter_set.items():
        adapter = take_adapter(base, attached, *model.adapter_set.trained_with(name, base))
        folder = model.adapter_set.folder(directory, name)
        write_card_of(folder, adapter, attached.training_facts)


def push_to_hub(
    model: EditedModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    subfolder: str | None = None,
) -> CommitInfo:
    """Save the adapter in a repository of the Hugging Face Hub, in one commit.

    Readers get either the previous adapter or this one. Other files of the repository stay.

    Args:
        repo_id: "owner/name", or "name" for a repository of your own; created if it is missing.
        private: Whether a new repository is private; the owner's default by default.
        token: Of a user who may write there; that of the log-in by default.
        revision: The branch, created if it is missing; "main" by default.
        create_pr: Open a pull request with the commit.
        commit_message: The first line of the commit.
        subfolder: The folder in the repository.

    Returns:
        The commit: `oid`, `commit_url`, and for a pull request `pr_url`.

    Raises:
        AdapterError: If the Hub refuses; the repository is unchanged.
        ValueError: As for `save_pretrained`.
    """
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return push_directory(
            directory,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            subfolder=subfolder,
        )
