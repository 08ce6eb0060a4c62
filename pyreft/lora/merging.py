"""Interventions that can be merged into a linear map -> its weights, or PEFT's LoRA.

An intervention without an activation, on every token, edits the output of y = A x + a to

    y' = y + B^T ((W - s B) y + b - s c)          see `pyreft.interventions.forms`
       = (I + L M) A x + (I + L M) a + L k        L = B^T (D, R),  M = W - s B (R, D),  k = b - s c

which is affine in x: A' = A + L (M A) is a LoRA of rank R, and L (M a + k) is added to the bias.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pyreft.base_model.running import running_model
from pyreft.config import InterventionConfig
from pyreft.installed.tuners import is_peft_model
from pyreft.interventions.forms import Form, read_form
from pyreft.lora.last_linears import find_linear, last_linears
from pyreft.placement.targets import Target
from pyreft.sharing.whole import new_directory

if TYPE_CHECKING:
    pass

_WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class Change:
    """The change of a linear map by interventions: A + up @ down, a + bias; in float64.

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

    def plus(self, other: Change) -> Change:
        """The sum of two changes of one linear map; their ranks add up."""
        up, down = torch.cat([self.up, other.up], 1), torch.cat([self.down, other.down])
        return Change(self.name, self.linear, up, down, self.bias + other.bias)


def find_changes(base: PreTrainedModel, edits: Sequence[tuple[str, float, Target]]) -> list[Change]:
    """Compute the changes of linear maps by interventions, one for each map.

    An intervention can be merged if it has the positions "all", is at the output of a linear map,
    and is one of the six kinds without an activation.

    Args:
        base: The base model.
        edits: For each intervention its name in errors, its weight, and its target.

    Raises:
        ValueError: If one cannot be merged; the message names it and gives the reason.
    """
    if is_peft_model(base):
        raise ValueError(
            "PEFT wraps the base model: merge its LoRA first, with merge_and_unload()."
        )
    inner = running_model(base)
    forms = []
    for what, _, target in edits:
        with _naming(what):
            forms.append(_linear_form(target.config))
    linears = last_linears(inner, [target.component.module for *_, target in edits])
    changes: dict[str, Change] = {}
    for (what, weight, target), form in zip(edits, forms, strict=True):
        with _naming(what):
            name, linear = find_linear(inner, target.component, linears)
        change = _change(name, linear, form, weight)
        # Each edit is computed from the unedited output of the linear map, so they add up.
        changes[name] = changes[name].plus(change) if name in changes else change
    return list(changes.values())


@torch.no_grad()
def add_changes(changes: Sequence[Change]) -> None:
    """Add changes to the weights of linear maps, computed in float64 and rounded once."""
    for change in changes:
        _add(change)


def write_lora(
    changes: Sequence[Change], base_name: str | None, directory: str | os.PathLike[str]
) -> None:
    """Write changes as PEFT's LoRA, see `ReftModel.export_lora`.

    Args:
        changes: What to write.
        base_name: The name of the base model.
        directory: A new or empty directory, written completely or not at all.

    Raises:
        ImportError: If PEFT is not installed.
    """
    from peft import LoraConfig

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
        base_model_name_or_path=base_name,
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


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Prepend the name of the intervention to an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}, cannot be merged: {error}") from None


def _linear_form(config: InterventionConfig) -> Form:
    """The linear form of an intervention.

    Raises:
        ValueError: If it is not linear, or does not edit every token.
    """
    if config.positions is None or not config.positions.edits_all:
        raise ValueError(
            f'it edits {config.positions!r}; weights apply to every token, as positions "all".'
        )
    if config.heads is not None:
        raise ValueError(f"it edits only the heads {list(config.heads)}.")
    assert config.intervention is not None
    form = read_form(config.intervention)
    if form.act_fn is not None:
        raise ValueError(f"its activation {form.act_fn!r} is not linear.")
    return form


def _change(name: str, linear: Any, form: Form, factor: float) -> Change:
    inner, constant = form.net_weight, form.net_bias
    weight = linear.weight.detach().to(form.basis.device, torch.float64)
    weight = weight.mT if isinstance(linear, Conv1D) else weight
    if linear.bias is not None:
        constant = constant + inner @ linear.bias.detach().to(constant)
    up = factor * form.basis.mT
    return Change(name, linear, up, inner @ weight, up @ constant)


def _add(change: Change) -> None:
    linear, weight = change.linear, change.linear.weight
    added = change.up @ change.down
    added = added.mT if isinstance(linear, Conv1D) else added
    weight.copy_(weight.to(added) + added)
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.to(added) + change.bias)
    elif bool(change.bias.any()):
        linear.bias = nn.Parameter(change.bias.to(weight), requires_grad=weight.requires_grad)
