"""The adapter of a model, and what it must fit: ReftModel <-> Adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.config import InterventionConfig, ReftConfig
from pyreft.modeling.lora import TRAINED_LORA, peft_tensors
from pyreft.modeling.stacks import base_sizes
from pyreft.modeling.trained import lies_in
from pyreft.sharing import Adapter, AdapterError

# Before the names of trained tensors of the base model.
_OF_BASE = "base_model."


def take_adapter(
    model: PreTrainedModel,
    config: ReftConfig,
    interventions: nn.ModuleDict,
    trained: Mapping[str, Tensor],
) -> Adapter:
    """What there is to save.

    Args:
        model: The base model.
        config: The config.
        interventions: The interventions.
        trained: Tensors of the base model that are trained as well, by their name in it.

    Raises:
        ValueError: If a tensor is not finite.
    """
    base = {"name_or_path": model.config.name_or_path or None} | base_sizes(model)
    if peft_tensors(model):
        base[TRAINED_LORA] = True
    tensors = _tensors(config.representations, interventions, trained)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the parameter {name} is not finite (NaN or infinite), so the adapter is not "
                "saved: training has diverged. Go back to an earlier checkpoint and lower the "
                "learning rate."
            )
    named = config.modules_to_save or []
    by_hand = [name for name in trained if not lies_in(name, named)]
    config = replace(config, modules_to_save=[*named, *by_hand] or None)
    return Adapter(config, tensors, base)


def require_base(adapter: Adapter, model: PreTrainedModel) -> None:
    """Raise AdapterError unless the adapter was trained on a model of this shape."""
    for name, has in base_sizes(model).items():
        said = adapter.base.get(name)
        if said is not None and said != has:
            trained_on = adapter.base.get("name_or_path") or "another base model"
            raise AdapterError(
                f"{adapter.origin} is an adapter for {trained_on}, with {name} {said!r}; this "
                f"model has {name} {has!r}."
            )


def require_config(adapter: Adapter, config: ReftConfig, left_to_batch: Set[int]) -> None:
    """Raise AdapterError unless the adapter is of this config, but for positions it left open."""
    theirs, ours = adapter.config.to_dict()["interventions"], config.to_dict()["interventions"]
    if len(theirs) != len(ours):
        raise AdapterError(
            f"{adapter.origin} has {len(theirs)} interventions, this model has {len(ours)}."
        )
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        for name in ("layer", "component", "kind", "arguments", "heads", "tied_to", "positions"):
            left_open = name == "positions" and index in left_to_batch
            if their.get(name) != our.get(name) and not left_open:
                raise AdapterError(
                    f"intervention {index} of {adapter.origin} has {name} {their.get(name)!r}, "
                    f"this model's has {our.get(name)!r}."
                )


def load_tensors(
    adapter: Adapter,
    config: ReftConfig,
    interventions: nn.ModuleDict,
    trained: Mapping[str, Tensor],
) -> None:
    """Copy the saved tensors into interventions and base model, all of them or none.

    Raises:
        AdapterError: If a name or a shape differs.
    """
    ours = _tensors(config.representations, interventions, trained)
    theirs = [name.removeprefix(_OF_BASE) for name in adapter.tensors if name.startswith(_OF_BASE)]
    if set(theirs) != set(trained):
        raise AdapterError(
            f"{adapter.origin} was trained with modules_to_save {sorted(theirs) or None}, this "
            f"model with {sorted(trained) or None}."
        )
    if wrong := sorted(set(ours) ^ set(adapter.tensors)):
        verb = "lacks" if wrong[0] in ours else "has the unknown"
        raise AdapterError(f"{adapter.origin} {verb} tensor {wrong[0]}.")
    for name, tensor in ours.items():
        saved = adapter.tensors[name]
        both_float = saved.is_floating_point() and tensor.is_floating_point()
        if saved.shape != tensor.shape or not (both_float or saved.dtype == tensor.dtype):
            raise AdapterError(
                f"the tensor {name} of {adapter.origin} is {_describe(saved)}; the config makes it "
                f"{_describe(tensor)}."
            )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(adapter.tensors[name])


def _tensors(
    configs: Sequence[InterventionConfig],
    interventions: nn.ModuleDict,
    trained: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Every tensor of the adapter by name; those of tied interventions once."""
    of_base = {f"{_OF_BASE}{name}": tensor for name, tensor in trained.items()}
    return of_base | {
        f"{key}.{name}": tensor
        for config, (key, module) in zip(configs, interventions.items(), strict=True)
        if config.tied_to is None
        for name, tensor in module.state_dict().items()
    }


def _describe(tensor: Tensor) -> Any:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
