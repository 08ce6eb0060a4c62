"""The linear map whose output a component is, if it is one, and its weights can be changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pyreft.modeling.components import Component

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_linear(base: Any, component: Component) -> tuple[str, nn.Module]:
    """The name in the base model and the linear map whose output a component is.

    Where the component is a larger part of a layer, such as "mlp_output", the base model is run
    on a few tokens to see whether what it puts out is what a linear map inside it puts out.

    Raises:
        ValueError: If there is no such linear map, or its weights are not plain numbers of its own.
    """
    if component.side != "output":
        raise ValueError("it edits an input, and an input comes out of no single linear map.")
    module = component.module
    linear = module if _is_linear(module) else _last_linear(base, module)
    if linear is None:
        raise ValueError(
            f"what {type(module).__name__} puts out is not what a linear map puts out: a residual "
            "sum, a norm or an activation comes after it. Name the linear map by a path, such as "
            '"model.layers[3].mlp.down_proj.output".'
        )
    name = next(name for name, one in base.named_modules() if one is linear)
    _require_plain(base, name, linear)
    return name, linear


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


@torch.no_grad()
def _last_linear(base: PreTrainedModel, module: nn.Module) -> nn.Module | None:
    """The linear map inside a module whose output is the module's own."""
    outputs: dict[nn.Module, list[Tensor]] = {}

    def record(one: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        outputs.setdefault(one, []).append(hidden)

    linears = [one for one in module.modules() if _is_linear(one)]
    handles = [one.register_forward_hook(record) for one in (module, *linears)]
    training = [one for one in base.modules() if one.training]
    try:
        # Without dropout, which hands its input on.
        base.eval()
        base(**{name: tensor.to(base.device) for name, tensor in base.dummy_inputs.items()})
    finally:
        for handle in handles:
            handle.remove()
        for one in training:
            one.training = True
    own = outputs.get(module, [])
    for linear in linears:
        found = outputs.get(linear, [])
        if own and len(own) == len(found) and all(a is b for a, b in zip(own, found, strict=True)):
            return linear
    return None


def _require_plain(base: nn.Module, name: str, linear: Any) -> None:
    """Refuse a linear map whose weights are packed, elsewhere, or used by others as well."""
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
