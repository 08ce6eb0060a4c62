"""`ReftModel`: the edited model, with the calling conventions of transformers and upstream."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import update_wrapper
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.adapters.model import EditedModel
from pyreft.annotations import Arguments, Inputs
from pyreft.compat.formats import ANY_FORMAT
from pyreft.compat.pyvene_config import is_config, read_config
from pyreft.compat.upstream_calls import (
    call_subclass,
    call_upstream,
    generate_upstream,
    refuse_upstream_arguments,
)
from pyreft.config import ReftConfig
from pyreft.editing.pass_plan import Placed
from pyreft.placement.arguments import present
from pyreft.sharing import HubFiles, download_adapter


class ReftModel(EditedModel):
    """A frozen base model with an adapter of interventions.

    It is called, generates and is trained like the base model: attributes that are not defined here
    are looked up on the base model. The end of a prompt is inferred from the batch, see `forward`.

        model = get_reft_model(base, ReftConfig(layers=[15], positions="l1", rank=4))
        model(input_ids=..., attention_mask=..., labels=...).loss.backward()
        model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"))

    Args:
        config: The interventions to train and where they edit; upstream's order of arguments.
        model: The base model, any transformers model; only hooks are added to it.
        adapter_name: The name of the adapter, because there may be several.

    Attributes:
        model: The base model.
        adapters: All adapters by name.
        config: The base model's config, as transformers and its trainers expect.

    Raises:
        ValueError: If a layer or component does not exist, or an intervention does not fit it.
        TypeError: If `config` is not a `ReftConfig`, or `model` is not a transformers model or
            already has an adapter.
    """

    adapter_formats = ANY_FORMAT
    # Whether a subclass defines `forward` in upstream's convention.
    follows_upstream = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (own := vars(cls).get("forward")) is not None:
            cls.follows_upstream = "base" in list(inspect.signature(own).parameters)[1:2]

    def __init__(
        self, config: ReftConfig, model: PreTrainedModel, adapter_name: str = "default"
    ) -> None:
        if is_config(config):
            config = read_config(config)
        super().__init__(config, model, adapter_name)

    def __repr__(self) -> str:
        first = f"ReftModel({type(self.model).__name__}, {self.count_parameters():,} parameters"
        return "\n".join([first, *self.adapter_set.describe(), ")"])

    # ---- calls ----------------------------------------------------------------------------

    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, *upstream: Any, **kwargs: Any
    ) -> Any:
        """Run `forward`, or a trainer's replacement of it, edited. For arguments, see `forward`.

        A dict as the first argument selects upstream's convention: `pyreft.compat.upstream_calls`.
        """
        if _is_upstream_call(input_ids, kwargs):
            return nn.Module.__call__(self, input_ids, attention_mask, *upstream, **kwargs)
        refuse_upstream_arguments(kwargs)
        if self.follows_upstream and not upstream:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
            return call_subclass(super(EditedModel, self).__call__, present(given))
        return super().__call__(input_ids, attention_mask, *upstream, **kwargs)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, *upstream: Any, **kwargs: Any
    ) -> Any:
        if _is_upstream_call(input_ids, kwargs):
            base, sources = kwargs.pop("base", input_ids), kwargs.pop("sources", attention_mask)
            return call_upstream(self, base, sources, *upstream, **kwargs)
        return super().forward(input_ids, attention_mask, *upstream, **kwargs)

    def generate(self, inputs: Tensor | Arguments | None = None, **kwargs: Any) -> Any:
        if isinstance(inputs, Mapping) or "base" in kwargs:
            return generate_upstream(self, kwargs.pop("base", inputs), **kwargs)
        refuse_upstream_arguments(kwargs)
        return super().generate(inputs, **kwargs)

    # Their signatures and docstrings are those of the core.
    update_wrapper(forward, EditedModel.forward, ("__doc__",))
    update_wrapper(generate, EditedModel.generate, ("__doc__",))

    def place(self, inputs: Inputs) -> list[Placed]:
        """Where a call edits, see `EditedCalls.place`."""
        return self.edited_calls.place(self, inputs)

    def placed(self, placed: list[Placed]) -> AbstractContextManager[None]:
        """Edit there in the calls of this thread inside the block, see `EditedCalls.placed`."""
        return self.edited_calls.placed(placed)

    # ---- parameters -----------------------------------------------------------------------

    @property
    def representations(self) -> Inputs:
        """The config of each intervention of the active adapter, by its key."""
        keys = self.interventions.keys()
        return dict(zip(keys, self.reft_config.representations, strict=True))

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, those of the adapters first."""
        modules = (self.adapters, self.model)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    # ---- devices and gradients ------------------------------------------------------------

    def set_device(self, device: torch.device | str, set_model: bool = True) -> None:
        """Move the adapters, and the base model unless `set_model` is false."""
        self.adapters.to(device)
        base: nn.Module = self.model
        if set_model:
            base.to(device)

    def get_device(self) -> torch.device:
        """The device of the base model."""
        return self.model.device

    def enable_model_gradients(self) -> None:
        """Make the base model trainable as well."""
        self.model.requires_grad_(True)

    # ---- PEFT's names ---------------------------------------------------------------------

    def get_base_model(self) -> PreTrainedModel:
        """The base model. Its own calls are not edited; see `unwrap` to remove the adapter."""
        return self.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The numbers of trainable and of all parameters, base model and adapter together."""
        parameters = [*self.model.parameters(), *self.adapters.parameters()]
        return self.count_parameters(True), sum(parameter.numel() for parameter in parameters)

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
        save_directory: str | os.PathLike[str],
        save_to_hf_hub: bool = False,
        hf_repo_name: str = "my-awesome-model",
        include_model: bool = False,
    ) -> None:
        """Save the adapter, see `save_pretrained`, and with `save_to_hf_hub` push it as well.

        Other files in the directory stay, also upstream's; if both formats exist, ours is loaded.

        Args:
            save_directory: Where to save it.
            save_to_hf_hub: Whether to push it, see `push_to_hub`.
            hf_repo_name: The repository, "owner/name", or "name" for one of your own.
            include_model: For `save_intervention`.

        Raises:
            AdapterError: As for `push_to_hub`.
            ValueError: As for `save_pretrained`.
        """
        self.save_intervention(save_directory, include_model=include_model)
        if save_to_hf_hub:
            self.push_to_hub(hf_repo_name)

    def save_intervention(
        self, save_directory: str | os.PathLike[str], include_model: bool = True
    ) -> None:
        """Save the adapter; trained parts of the base model are always saved with it.

        Raises:
            ValueError: As for `save_pretrained`.
        """
        self.save_pretrained(save_directory, allow_other_files=True)

    def load_intervention(
        self, load_directory: str | os.PathLike[str], include_model: bool = True
    ) -> None:
        """Load the weights of a saved adapter into this one, which must have the same config.

        Raises:
            AdapterError: If it is not an adapter, or its config differs; nothing is changed.
        """
        self.load_weights(_checkpoint(load_directory))

    @classmethod
    def load(
        cls,
        load_directory: str | os.PathLike[str],
        model: PreTrainedModel,
        local_directory: str | None = None,
        from_huggingface_hub: bool = False,
        include_model: bool = False,
    ) -> Any:
        """Put a saved adapter on a base model; upstream's order of arguments.

        Args:
            load_directory: As for `from_pretrained`, a directory or a repository of the Hub.
            model: The base model.
            local_directory: Where to copy the downloaded files.
            from_huggingface_hub: Whether it is a repository, even if such a directory exists.
            include_model: Ignored; trained parts of the base model are always loaded.

        Raises:
            AdapterError: If there is no adapter, or it is for another model.
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


def _is_upstream_call(first: object, kwargs: Arguments) -> bool:
    """Whether a call follows upstream's convention, in which the batch is a dict."""
    return "base" in kwargs or isinstance(first, Mapping)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _checkpoint(directory: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The adapter's directory; upstream's checkpoints have it in "intervenable_model"."""
    path = Path(directory)
    return path.parent if path.name == "intervenable_model" and not path.exists() else directory
