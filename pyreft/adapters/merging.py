"""Active adapters go into weights, or into PEFT's LoRA: methods of `ReftModel`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from pyreft.base_model.trained import trained_by_hand
from pyreft.lora.merging import Change, add_changes, find_changes, write_lora

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel


def merge_and_unload(model: EditedModel, add_bias: bool = False) -> PreTrainedModel:
    """Take the adapters off, and put what the active ones do into the weights of the base model.

    Only what a linear map can take up is merged: positions "all", at the output of a linear map,
    one of the six kinds without an activation. The weights are computed in float64 and rounded
    once. What else of the base model was trained stays in it.

    Args:
        add_bias: Give a linear map without a bias one, where the edit has a constant part. That is
            for use in memory: `save_pretrained` writes it, and architectures that have no bias
            there, such as Llama, do not read it.

    Returns:
        The base model, its weights changed.

    Raises:
        ValueError: If an intervention cannot be merged; the message names it and says why, and
            nothing is changed.
    """
    changes = _changes(model)
    for change in changes:
        if change.linear.bias is None and bool(change.bias.any()) and not add_bias:
            raise ValueError(
                f"cannot merge into {change.name}: the edit has a constant part, and this linear "
                "map no bias to put it in. add_bias=True gives it one, which "
                f"{type(model.model).__name__} does not read back from a file; export_lora keeps "
                "it in a LoRA."
            )
    trained = [model.adapters[name].trained for name in model.active_adapters]
    learned = [{n: t.detach().clone() for n, t in one.learned().items()} for one in trained]
    base = model.unwrap()
    with torch.no_grad():
        for one, kept in zip(trained, learned, strict=True):
            for name, tensor in one.tensors().items():
                tensor.copy_(kept[name])
    add_changes(changes)
    return base


def export_lora(model: EditedModel, directory: str | os.PathLike[str]) -> None:
    """Write the active adapters as a LoRA that `peft.PeftModel.from_pretrained` loads.

    Its rank is that of the interventions and its scale 1; a constant part is the bias of `lora_B`
    (`lora_bias`). What can be exported is what can be merged, see `merge_and_unload`.

    Args:
        directory: A new or empty directory, which appears whole or not at all.

    Raises:
        ValueError: If an intervention cannot be a LoRA, or other parts of the base model were
            trained with it.
        ImportError: If PEFT is not installed.
    """
    changes = _changes(model)
    trained = [model.adapters[name].trained for name in model.active_adapters]
    tensors = [tensor for one in trained for tensor in one.tensors().values()]
    names = [name for one in trained for name in one.names]
    if names := [*names, *trained_by_hand(model.model, tensors)]:
        raise ValueError(
            f"{', '.join(names[:5])} was trained with the interventions, and is no LoRA: use "
            "merge_and_unload, which keeps it in the base model."
        )
    write_lora(changes, model.model.config.name_or_path or None, directory)


def _changes(model: EditedModel) -> list[Change]:
    """What the active adapters make of linear maps."""
    model.adapters.require_attached()
    edits = [
        (f"intervention {i} of adapter {name!r}, at {target.config.place}", weight, target)
        for name, weight in model.adapters.active.items()
        for i, target in enumerate(model.adapters[name].targets)
    ]
    return find_changes(model.model, edits)
