"""Upstream's methods of `ReftModel`, under upstream's names and with its arguments."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pyreft.compat.calls import UpstreamCallsMixin
from pyreft.sharing import HubFiles, download_adapter


class UpstreamMethodsMixin(UpstreamCallsMixin):
    """What else scripts written for stanfordnlp/pyreft 0.1.0 call on a `ReftModel`."""

    # What `ReftModel` defines.
    model: Any
    adapters: Any
    save_pretrained: Any
    push_to_hub: Any
    load_weights: Any
    from_pretrained: Any
    if TYPE_CHECKING:
        trained = property()

    @property
    def representations(self) -> dict[str, Any]:
        """The config of each intervention of the active adapter, by its key."""
        keys = self.interventions.keys()
        return dict(zip(keys, self.reft_config.representations, strict=True))

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, of the adapter first."""
        modules = (self.adapters, self.model)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    # ---- devices and gradients ------------------------------------------------------------

    def set_device(self, device: torch.device | str, set_model: bool = True) -> None:
        """Move the adapters, and the base model unless `set_model` is false."""
        self.adapters.to(device)
        if set_model:
            self.model.to(device)

    def get_device(self) -> torch.device:
        """The device of the base model."""
        return self.model.device

    def disable_model_gradients(self) -> None:
        """Freeze the base model, but for what the adapter names in `modules_to_save`."""
        self.model.requires_grad_(False)
        self.trained.enable_gradients()

    def enable_model_gradients(self) -> None:
        """Let the base model learn as well."""
        self.model.requires_grad_(True)

    # ---- counting -------------------------------------------------------------------------

    def count_parameters(self, include_model: bool = False) -> int:
        """The number of trainable parameters of the adapter, or of adapter and base model."""
        counted = _trainable(self.adapters)
        return counted + _trainable(self.model) if include_model else counted

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and how many the base model has."""
        adapter, base = self.count_parameters(), _trainable(self.model)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        print(
            f"trainable intervention params: {adapter:,d} || trainable model params: {base:,d}\n"
            f"model params: {total:,d} || trainable%: {100 * (adapter + base) / total}"
        )

    # ---- saving and loading ---------------------------------------------------------------

    def save(
        self,
        save_directory: str | os.PathLike,
        save_to_hf_hub: bool = False,
        hf_repo_name: str = "my-awesome-model",
        include_model: bool = False,
    ) -> None:
        """Save the adapter, see `save_pretrained`, and with `save_to_hf_hub` push it as well.

        Other files that the directory holds stay, upstream's own too; of both, ours are loaded.

        Args:
            save_directory: Where to save it.
            save_to_hf_hub: Whether to push it, see `push_to_hub`.
            hf_repo_name: The repository, "owner/name", or "name" for one of one's own.
            include_model: For `save_intervention`.

        Raises:
            AdapterError: As for `push_to_hub`.
            ValueError: As for `save_pretrained`.
        """
        self.save_intervention(save_directory, include_model=include_model)
        if save_to_hf_hub:
            self.push_to_hub(hf_repo_name)

    def save_intervention(
        self, save_directory: str | os.PathLike, include_model: bool = True
    ) -> None:
        """Save the adapter, and whatever of the base model is trained with it in any case.

        Raises:
            ValueError: As for `save_pretrained`.
        """
        self.save_pretrained(save_directory, allow_other_files=True)

    def load_intervention(
        self, load_directory: str | os.PathLike, include_model: bool = True
    ) -> None:
        """Load the weights of a saved adapter into this one, which must have the same config.

        Raises:
            AdapterError: If the directory is no adapter, or another config's; nothing is changed.
        """
        self.load_weights(_checkpoint(load_directory))

    @classmethod
    def load(
        cls,
        load_directory: str | os.PathLike,
        model: PreTrainedModel,
        local_directory: str | None = None,
        from_huggingface_hub: bool = False,
        include_model: bool = False,
    ) -> Any:
        """Put a saved adapter on a base model; upstream's order of arguments.

        Args:
            load_directory: As for `from_pretrained`, a directory or a repository of the Hub.
            model: The base model.
            local_directory: Where to copy what was downloaded.
            from_huggingface_hub: Whether it is a repository even where such a directory is there.
            include_model: What of the base model was trained is loaded in any case.

        Raises:
            AdapterError: If there is no adapter, or one for another model.
            ValueError: If `local_directory` is given without `from_huggingface_hub`.
        """
        if from_huggingface_hub:
            load_directory = download_adapter(HubFiles(os.fspath(load_directory)))
            if local_directory is not None:
                load_directory = shutil.copytree(
                    load_directory, local_directory, dirs_exist_ok=True
                )
        elif local_directory is not None:
            raise ValueError("local_directory is for downloads, from_huggingface_hub=True.")
        return cls.from_pretrained(model, _checkpoint(load_directory))


def _checkpoint(directory: str | os.PathLike) -> str | os.PathLike:
    """A trainer's checkpoint, in whose folder "intervenable_model" upstream's has the adapter."""
    path = Path(directory)
    return path.parent if path.name == "intervenable_model" and not path.exists() else directory


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
