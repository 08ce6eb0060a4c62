"""Find the linear map whose output a component is, and check that its weights can be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pyreft.base_model.components import Component
from pyreft.base_model.running import evaluating

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def last_linears(base: PreTrainedModel, modules: Sequence[nn.Module]) -> dict[nn.Module, nn.Module]:
    """The linear map whose output each module returns, if there is one.

    The base model is run on a few tokens, to check whether a module returns the output of a linear
    map inside it. The structure of a layer does not show what comes after a linear map.
    """
    found = {module: module for module in modules if _is_linear(module)}
    larger = [module for module in modules if module not in found]
    if not larger:
        return found
    inside = {module: [m for m in module.modules() if _is_linear(m)] for module in larger}
    outputs: dict[nn.Module, list[Tensor]] = {}

    def record(one: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        outputs.setdefault(one, []).append(hidden)

    watched = {one for module in larger for one in (module, *inside[module])}
    handles = [one.register_forward_hook(record) for one in watched]
    try:
        # In evaluation mode, in which dropout returns its input.
        with evaluating(base):
            inputs = {name: tensor.to(base.device) for name, tensor in base.dummy_inputs.items()}
            base(**{"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs)
    finally:
        for handle in handles:
            handle.remove()
    for module in larger:
        own = [id(hidden) for hidden in outputs.get(module, [])]
        for linear in inside[module]:
            if own and own == [id(hidden) for hidden in outputs.get(linear, [])]:
                found[module] = linear
    return found


def find_linear(
    base: nn.Module, component: Component, linears: Mapping[nn.Module, nn.Module]
) -> tuple[str, nn.Module]:
    """The linear map whose output a component is, and its name in the base model.

    Args:
        base: The base model.
        component: The component.
        linears: What `last_linears` found.

    Raises:
        ValueError: If there is no such linear map, or its weights are not plain and unshared.
    """
    if component.side != "output":
        raise ValueError("it edits an input, which is not the output of one linear map.")
    module = component.module
    if module not in linears:
        raise ValueError(
            f"what {type(module).__name__} returns is not what a linear map returns: a residual "
            "sum, a norm or an activation comes after it. Name the linear map by a path, such as "
            '"model.layers[3].mlp.down_proj.output".'
        )
    linear = linears[module]
    name = next(name for name, one in base.named_modules() if one is linear)
    _require_plain(base, name, linear)
    return name, linear


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _require_plain(base: nn.Module, name: str, linear: Any) -> None:
    """Refuse a linear map whose weights are packed, offloaded, or shared with other modules."""
    weight = linear.weight
    plain = type(linear) in (nn.Linear, Conv1D) and type(weight) is nn.Parameter
    if not plain or weight.dtype not in _FLOATS or weight.is_meta:
        raise ValueError(
            f"the weights of {name} are not plain numbers in memory (a {type(linear).__name__} of "
            f"{weight.dtype}, quantised, sharded or offloaded): load the base model without that."
        )
    for other, module in base.named_modules():
        if module is not linear and any(p is weight for p in module.parameters(recurse=False)):
            raise ValueError(
                f"{name} shares its weight with {other}, which would change as well: load the base "
                "model with tie_word_embeddings=False."
            )
