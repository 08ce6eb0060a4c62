"""A base model that PEFT put a LoRA on: what PEFT trains is saved and loaded in PEFT's own files.

They lie beside the adapter's, so that PEFT can load them from there by itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyreft.sharing import Adapter, AdapterError

# What `reft_config.json` says of the base model, if PEFT's files belong to the adapter.
TRAINED_LORA = "trained_lora"
CONFIG_NAME = "adapter_config.json"
_FILES = ("adapter_model.safetensors", CONFIG_NAME)
# What PEFT writes of a run, rather than of what is trained.
_OF_THE_RUN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights"}
_OF_THE_RUN |= {"peft_version", "revision", "task_type"}


def is_peft_model(model: Any) -> bool:
    """Whether PEFT wraps the model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def peft_tensors(model: Any) -> dict[str, Tensor]:
    """What PEFT saves of the model, by PEFT's names; nothing if it wraps none or is frozen."""
    if not is_peft_model(model):
        return {}
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    return tensors if any(t.data_ptr() in trained for t in tensors.values()) else {}


def has_lora(adapter: Adapter) -> bool:
    """Whether a saved adapter has a LoRA: its config says so, since files may be left from others.

    Raises:
        AdapterError: If it has, and PEFT's files are not there.
    """
    if not adapter.base.get(TRAINED_LORA):
        return False
    if missing := [name for name in _FILES if not (Path(adapter.origin) / name).is_file()]:
        raise AdapterError(
            f"{adapter.origin} was trained with a LoRA of PEFT's, but has no {missing[0]}: copy "
            "the whole directory, or save the adapter again."
        )
    return True


def frozen_lora(model: Any) -> bool:
    """Whether PEFT put something on the model to be trained, and nothing of it learns."""
    if not is_peft_model(model):
        return False
    return not model.active_peft_config.inference_mode and not peft_tensors(model)


@contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Turn off, inside the block, what PEFT trains of the model; a frozen LoRA stays on."""
    if not peft_tensors(model):
        yield
        return
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with model.disable_adapter():
        _learn_only(model, learning)
        yield
    _learn_only(model, learning)


def _learn_only(model: Any, parameters: list[Any]) -> None:
    """PEFT freezes what it turns off, and lets all of it learn afterwards."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def save_peft(model: Any, directory: str | os.PathLike) -> None:
    """Write what PEFT trains; each file appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".peft-") as temporary:
        model.save_pretrained(temporary, selected_adapters=[model.active_adapter])
        # PEFT gives adapters that are not called "default" a folder of their own.
        folder = next(Path(temporary).rglob(CONFIG_NAME)).parent
        for name in _FILES:
            os.replace(folder / name, Path(directory) / name)


def load_peft(model: Any, directory: str | os.PathLike) -> Any:
    """Load what `save_peft` wrote, into the model's own LoRA or as a new one.

    Returns:
        The model that PEFT wraps, the one given if it was wrapped already.

    Raises:
        AdapterError: If the model's LoRA has another config; nothing is changed.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict

    if not is_peft_model(model):
        return PeftModel.from_pretrained(model, os.fspath(directory), is_trainable=True)
    ours = model.peft_config[model.active_adapter].to_dict()
    theirs = PeftConfig.from_pretrained(os.fspath(directory)).to_dict()
    for name in [name for name in ours if name in theirs and name not in _OF_THE_RUN]:
        if ours[name] != theirs[name]:
            raise AdapterError(
                f"the LoRA in {os.fspath(directory)} has {name} {theirs[name]!r}, this model's has "
                f"{ours[name]!r}."
            )
    weights = load_peft_weights(os.fspath(directory), device=str(model.device))
    set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)
    return model
