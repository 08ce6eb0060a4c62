"""Merge active adapters into weights, or export them as PEFT's LoRA: methods of `ReftModel`."""

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
    """Merge the active adapters into the weights of the base model, and remove all adapters.

    An intervention can be merged if it has the positions "all", is at the output of a linear map,
    and is one of the six kinds without an activation. The weights are computed in float64 and
    rounded once. Other trained parts of the base model stay in it.

    Args:
        add_bias: Add a bias to a linear map without one if the edit has a constant part. Use the
            result in memory only: `save_pretrained` writes the bias, but architectures that have
            no bias there, such as Llama, do not load it.

    Returns:
        The base model with changed weights.

    Raises:
        ValueError: If an intervention cannot be merged; the message names it and gives the reason,
            and nothing is changed.
    """
    changes = _changes(model)
    for change in changes:
        if change.linear.bias is None and bool(change.bias.any()) and not add_bias:
            raise ValueError(
                f"cannot merge into {change.name}: the edit has a constant part, and this linear "
                "map has no bias for it. add_bias=True adds one, which "
                f"{type(model.model).__name__} does not load from a file; export_lora saves "
                "it in a LoRA."
            )
    trained = [model.adapter_set[name].trained for name in model.active_adapters]
    values = [{n: t.detach().clone() for n, t in one.trained_values().items()} for one in trained]
    base = model.unwrap()
    with torch.no_grad():
        for one, kept in zip(trained, values, strict=True):
            for name, tensor in one.tensors().items():
                tensor.copy_(kept[name])
    add_changes(changes)
    return base


def export_lora(model: EditedModel, directory: str | os.PathLike[str]) -> None:
    """Write the active adapters as a LoRA that `peft.PeftModel.from_pretrained` loads.

    Its rank is that of the interventions and its scale is 1. A constant part is the bias of
    `lora_B` (`lora_bias`). Requirements are those of `merge_and_unload`.

    Args:
        directory: A new or empty directory, written completely or not at all.

    Raises:
        ValueError: If an intervention cannot be a LoRA, or other parts of the base model were
            trained with it.
        ImportError: If PEFT is not installed.
    """
    changes = _changes(model)
    trained = [model.adapter_set[name].trained for name in model.active_adapters]
    tensors = [tensor for one in trained for tensor in one.tensors().values()]
    names = [name for one in trained for name in one.names]
    if names := [*names, *trained_by_hand(model.model, tensors)]:
        raise ValueError(
            f"{', '.join(names[:5])} was trained with the interventions, and cannot be a LoRA: use "
            "merge_and_unload, which leaves it in the base model."
        )
    write_lora(changes, model.model.config.name_or_path or None, directory)


def _changes(model: EditedModel) -> list[Change]:
    """The changes of linear maps by the active adapters."""
    model.adapter_set.require_attached()
    edits = [
        (f"intervention {i} of adapter {name!r}, at {target.config.place}", weight, target)
        for name, weight in model.adapter_set.active.items()
        for i, target in enumerate(model.adapter_set[name].targets)
    ]
    return find_changes(model.model, edits)
