"""Interventions that a linear map can take up -> its weights, or PEFT's LoRA.

An intervention without an activation, on every token, at the output of y = A x + a, makes of it

    y' = y + B^T ((W - s B) y + b - s c)          see `pyreft.interventions.forms`
       = (I + L M) A x + (I + L M) a + L k        L = B^T (D, R),  M = W - s B (R, D),  k = b - s c

which is linear in x: A' = A + L (M A) is a LoRA of rank R, and L (M a + k) goes into the bias.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pyreft.base_model.components import Component
from pyreft.base_model.running import running_model
from pyreft.base_model.trained import trained_by_hand
from pyreft.config import InterventionConfig
from pyreft.installed.tuners import is_peft_model
from pyreft.interventions.forms import Form, read_form
from pyreft.lora.last_linears import find_linear, last_linears
from pyreft.sharing.whole import new_directory

if TYPE_CHECKING:
    from pyreft.adapters.model import ReftModel

_WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class _Change:
    """What an intervention makes of a linear map: A + up @ down, a + bias; in float64.

    Args:
        name: Name of the linear map in the base model.
        linear: The linear map.
        up: L, (D, R).
        down: M A, (R, in features).
        bias: L (M a + k), (D,).
    """

    name: str
    linear: Any
    up: Tensor
    down: Tensor
    bias: Tensor

    def plus(self, other: _Change) -> _Change:
        """Both, of one linear map; their ranks add up."""
        up, down = torch.cat([self.up, other.up], 1), torch.cat([self.down, other.down])
        return _Change(self.name, self.linear, up, down, self.bias + other.bias)


def merge_and_unload(model: ReftModel, add_bias: bool = False) -> PreTrainedModel:
    """Take the adapters off, and put what the active ones do into the weights of the base model.

    Only what a linear map can take up is merged: positions "all", at the output of a linear map,
    one of the six kinds without an activation. The weights are computed in float64 and rounded
    once. What else of the base model was trained stays in it.

    Args:
        model: The model; its adapters are gone afterwards.
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
        for change in changes:
            _add(change)
    return base


def export_lora(model: ReftModel, directory: str | os.PathLike) -> None:
    """Write the active adapters as a LoRA that `peft.PeftModel.from_pretrained` loads.

    Its rank is that of the interventions and its scale 1; a constant part is the bias of `lora_B`
    (`lora_bias`). What can be exported is what can be merged, see `merge_and_unload`.

    Args:
        model: The model; it is not changed.
        directory: A new or empty directory, which appears whole or not at all.

    Raises:
        ValueError: If an intervention cannot be a LoRA, or other parts of the base model were
            trained with it.
        ImportError: If PEFT is not installed.
    """
    from peft import LoraConfig

    changes = _changes(model)
    if names := _names_trained(model):
        raise ValueError(
            f"{', '.join(names[:5])} was trained with the interventions, and is no LoRA: use "
            "merge_and_unload, which keeps it in the base model."
        )
    ranks = {change.name: change.up.shape[1] for change in changes}
    with_bias = any(bool(change.bias.any()) for change in changes)
    rank = max(ranks.values())
    smaller = {name: r for name, r in ranks.items() if r < rank}
    config = LoraConfig(
        r=rank,
        # The scale is alpha / rank.
        lora_alpha=rank,
        rank_pattern=smaller,
        alpha_pattern=smaller,
        target_modules=list(ranks),
        fan_in_fan_out=any(isinstance(change.linear, Conv1D) for change in changes),
        lora_bias=with_bias,
        inference_mode=True,
        base_model_name_or_path=model.model.config.name_or_path or None,
    )
    tensors: dict[str, Tensor] = {}
    for change in changes:
        prefix = f"base_model.model.{change.name}.lora_"
        tensors |= {f"{prefix}A.weight": change.down, f"{prefix}B.weight": change.up}
        tensors |= {f"{prefix}B.bias": change.bias} if with_bias else {}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    with new_directory(directory) as path:
        safetensors.torch.save_file(tensors, path / _WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(path))


def _names_trained(model: ReftModel) -> list[str]:
    """What else of the base model was trained."""
    trained = [model.adapters[name].trained for name in model.active_adapters]
    tensors = [tensor for one in trained for tensor in one.tensors().values()]
    named = [name for one in trained for name in one.names]
    return [*named, *trained_by_hand(model.model, tensors)]


def _changes(model: ReftModel) -> list[_Change]:
    """What the active adapters make of linear maps, one change for each."""
    model._hooks.require()
    if is_peft_model(model.model):
        raise ValueError(
            "PEFT wraps the base model: merge its LoRA first, with merge_and_unload()."
        )
    base = running_model(model.model)
    edits = [
        (f"intervention {index} of adapter {name!r}, at {config.place}", weight, config, component)
        for name, weight in model._active.items()
        for index, (config, component) in enumerate(_placed(model.adapters[name]))
    ]
    forms = []
    for what, _, config, _ in edits:
        with _naming(what):
            forms.append(_linear_form(config))
    linears = last_linears(base, [component.module for *_, component in edits])
    changes: dict[str, _Change] = {}
    for (what, weight, _, component), form in zip(edits, forms, strict=True):
        with _naming(what):
            name, linear = find_linear(base, component, linears)
        change = _change(name, linear, form, weight)
        # Each edit sees what the linear map returns without the others, so they add up.
        changes[name] = changes[name].plus(change) if name in changes else change
    return list(changes.values())


def _placed(adapter: Any) -> Iterator[tuple[InterventionConfig, Component]]:
    return ((target.config, target.component) for target in adapter.targets)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say of an error which intervention it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}, cannot be merged: {error}") from None


def _linear_form(config: InterventionConfig) -> Form:
    """What an intervention computes.

    Raises:
        ValueError: If that is not linear, or not of every token.
    """
    if config.positions is None or not config.positions.edits_all:
        raise ValueError(
            f'it edits {config.positions!r}; weights act on every token, as the positions "all" do.'
        )
    if config.heads is not None:
        raise ValueError(f"it edits the heads {list(config.heads)} alone.")
    assert config.intervention is not None
    form = read_form(config.intervention)
    if form.act_fn is not None:
        raise ValueError(f"its activation {form.act_fn!r} is not linear.")
    return form


def _change(name: str, linear: Any, form: Form, factor: float) -> _Change:
    inner, constant = form.net_weight, form.net_bias
    weight = linear.weight.detach().to(form.basis.device, torch.float64)
    weight = weight.mT if isinstance(linear, Conv1D) else weight
    if linear.bias is not None:
        constant = constant + inner @ linear.bias.detach().to(constant)
    up = factor * form.basis.mT
    return _Change(name, linear, up, inner @ weight, up @ constant)


def _add(change: _Change) -> None:
    linear, weight = change.linear, change.linear.weight
    added = change.up @ change.down
    added = added.mT if isinstance(linear, Conv1D) else added
    weight.copy_(weight.to(added) + added)
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.to(added) + change.bias)
    elif bool(change.bias.any()):
        linear.bias = nn.Parameter(change.bias.to(weight), requires_grad=weight.requires_grad)
