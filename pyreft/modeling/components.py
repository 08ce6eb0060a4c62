"""(layer, component) -> the module to hook. Read off the model's structure, for any architecture.

    block_input             the hidden state that enters the layer
    attention_input         the input of its attention
    attention_value_output  what attention gathered, before its output projection
    attention_output        the output of its attention
    mlp_input               the input of its feed-forward part
    mlp_activation          the activation inside it
    mlp_output              its output
    block_output            the hidden state that leaves the layer

`head_attention_value_output` is `attention_value_output` head by head. Anything else is a path
from the model to a module, followed by ".input" or ".output": "model.layers[3].mlp.output".

Where attention and feed-forward part are is told by the order of modules in a layer, which
every architecture shares: attention, then linear maps up and down. BERT's attention and
feed-forward part end with their residual sum and norm, and so does what is edited there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.config.intervention import is_path

NAMES = (
    "block_input",
    "attention_input",
    "attention_value_output",
    "head_attention_value_output",
    "attention_output",
    "mlp_input",
    "mlp_activation",
    "mlp_output",
    "block_output",
)


@dataclass(frozen=True)
class Component:
    """A place in a model where hidden states can be edited.

    Args:
        module: The module to hook.
        side: "input" or "output" of the module.
        width: D, the width of the hidden state there, or None if only running it will tell.
        num_heads: Number of heads that the width divides into, for a per-head component.
    """

    module: nn.Module
    side: str
    width: int | None = None
    num_heads: int | None = None


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of layers of a model: `model.layers`, `transformer.h`, `encoder.layer`, ...

    Raises:
        ValueError: If the model has no list of as many layers as its config says.
    """
    expected = text_config(model).num_hidden_layers
    # The text model first: a vision tower may have as many layers.
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for root in (decoder, model):
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            if isinstance(module, nn.ModuleList) and len(module) == expected and not _in_list(name):
                return module
    raise ValueError(
        f"{type(model).__name__} has no list of {expected} layers: name the component by a path, "
        'such as "model.layers[3].output".'
    )


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The config that knows the layers, where a model of several parts has several configs."""
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def find_component(model: PreTrainedModel, layer: int | None, component: str) -> Component:
    """Resolve a component.

    Args:
        model: The base model.
        layer: Index of the layer; not read if the component is a path.
        component: A name above, or a path.

    Raises:
        ValueError: If there is no such component; the message says what there is.
    """
    if is_path(component):
        return _find_path(model, component)
    if component not in NAMES:
        raise ValueError(
            f"unknown component {component!r}: one of {', '.join(NAMES)}, or a path such as "
            '"model.layers[3].mlp.output".'
        )
    if layer is None:
        raise ValueError(f"the component {component!r} needs a layer.")
    return _find_in_layer(model, find_layers(model)[layer], component)


def _find_path(model: PreTrainedModel, path: str) -> Component:
    dotted = re.sub(r"\[(\d+)\]", r".\1", path)
    module_path, _, side = dotted.rpartition(".")
    if side not in ("input", "output") or not module_path:
        # "encoder.layer[0].output" names a module called output, as BERT has.
        raise ValueError(
            f'the component path {path!r} must end with ".input" or ".output" of a module, as in '
            '"model.layers[3].mlp.output".'
        )
    module: nn.Module = model
    for step in module_path.split("."):
        # An attribute, since a model's `base_model` is another name of one of its children.
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            raise ValueError(
                f"the model {type(model).__name__} has no module {module_path!r} (from {path!r}): "
                f"{type(module).__name__} has no {step!r}, but {_children(module) or 'nothing'}."
            )
        module = child
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"{module_path!r} (from {path!r}) is a list of modules, which does not run by itself: "
            f"name one of them, {_children(module)}."
        )
    width = _features(module)[side == "output"] if _is_linear(module) else None
    return Component(module, side, width)


def _find_in_layer(model: PreTrainedModel, layer: nn.Module, name: str) -> Component:
    config = text_config(model)
    if name in ("block_input", "block_output"):
        return Component(layer, name.removeprefix("block_"), config.hidden_size)
    attention = _attention(layer)
    if name in ("attention_input", "attention_output"):
        return Component(attention, name.removeprefix("attention_"), config.hidden_size)
    if name.endswith("attention_value_output"):
        projection = _output_projection(attention)
        heads = config.num_attention_heads if name.startswith("head_") else None
        return Component(projection, "input", _features(projection)[0], heads)
    up_part, down_part, down = _feed_forward(layer, attention)
    if name == "mlp_input":
        return Component(up_part, "input", config.hidden_size)
    if name == "mlp_output":
        return Component(down_part, "output", config.hidden_size)
    for path, module in down_part.named_modules():
        # One activation module may serve all layers; then it is no place in this one.
        if "act" in path.split(".")[-1] and _uses(model, module) == 1:
            return Component(module, "output", _features(down)[0])
    return Component(down, "input", _features(down)[0])


def _uses(model: nn.Module, module: nn.Module) -> int:
    return sum(m is module for _, m in model.named_modules(remove_duplicate=False))


def _attention(layer: nn.Module) -> nn.Module:
    for name, child in layer.named_children():
        if re.search("attn|attention", name, re.IGNORECASE) and len(_linears(child)) > 1:
            return child
    raise ValueError(
        f"{type(layer).__name__} has no attention among {_children(layer)}: name the component by "
        "a path."
    )


def _feed_forward(layer: nn.Module, attention: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The children that hold the map up and the map down, often one, and the map down itself."""
    parts = [
        child
        for name, child in layer.named_children()
        if child is not attention
        and not re.search("attn|attention|norm", name, re.IGNORECASE)
        and _linears(child)
    ]
    if not parts or any(isinstance(part, nn.ModuleList) for part in parts):
        raise ValueError(
            f"{type(layer).__name__} has no single feed-forward part among "
            f"{_children(layer)}: name the component by a path."
        )
    return parts[0], parts[-1], _linears(parts[-1])[-1]


def _output_projection(attention: nn.Module) -> nn.Module:
    """The last linear map of attention that makes neither queries, keys nor values."""
    linears = [m for n, m in attention.named_modules() if _is_linear(m) and not _makes_qkv(n)]
    if not linears:
        raise ValueError(
            f"{type(attention).__name__} has no output projection among {_children(attention)}: "
            "name the component by a path."
        )
    return linears[-1]


def _makes_qkv(name: str) -> bool:
    return re.match("w?[qkv]|c_attn|in_proj", name.split(".")[-1], re.IGNORECASE) is not None


def _linears(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if _is_linear(m)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear map, its weight the other way round."""
    return type(module).__name__ == "Conv1D"


def _features(linear: Any) -> tuple[int, int]:
    """(in, out) features of a linear map."""
    if _is_conv1d(linear):
        return linear.weight.shape[0], linear.weight.shape[1]
    return linear.in_features, linear.out_features


def _children(module: nn.Module) -> str:
    """The names of the children, "0 to 29" for a list."""
    names = [name for name, _ in module.named_children()]
    return f"0 to {len(names) - 1}" if isinstance(module, nn.ModuleList) else ", ".join(names)


def running_model(model: Any) -> nn.Module:
    """The transformers model itself, inside what torch.compile and PEFT put around it."""
    while (inner := getattr(model, "_orig_mod", None)) is not None:
        model = inner
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def execution_device(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module runs: where its parameters are, or where accelerate brings them from disk."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    hooks = (getattr(m, "_hf_hook", None) for m in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    found = next((device for device in devices if device is not None), default)
    return torch.device(found)


def _in_list(name: str) -> bool:
    """Whether a module lies inside another list, as the experts of a layer do."""
    return any(part.isdigit() for part in name.split("."))
