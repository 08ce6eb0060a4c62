"""(layer, component) -> the module to hook, found from the structure of any architecture.

    block_input             the hidden state that enters the layer
    attention_input         the input of its attention
    query_output            its queries; key_output and value_output likewise
    attention_value_output  the weighted values, before the output projection of attention
    attention_output        the output of its attention
    mixer_output            the output of what mixes its tokens: attention, a convolution, a state
    mlp_input               the input of its feed-forward part
    mlp_activation          the activation inside it
    mlp_output              its output
    block_output            the hidden state that leaves the layer

`head_attention_value_output` is `attention_value_output` split into heads. In a model with an
encoder and a decoder, these names mean the encoder; the prefix `decoder_` means the decoder, which
also has `decoder_cross_attention_output` and so on. Anything else is a path from the model to a
module, followed by ".input" or ".output": "model.layers[3].mlp.output".

Attention and feed-forward part are identified by the order of modules in a layer, which every
architecture shares: attention, then linear maps up and down. BERT's attention and feed-forward
part include their residual sum and norm, so edits apply after these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.base_model.hidden_shapes import (
    kinds_in_tower,
    kinds_of_text,
    shape_in_tower,
    shape_of_text,
)
from pyreft.base_model.layer_parts import (
    attention_of,
    child_names,
    feed_forward,
    is_attention,
    makes_qkv,
    map_down,
    mixer_of,
    output_projection,
    parts,
    projection_of,
)
from pyreft.base_model.layout import ROWS_FIRST, Layout
from pyreft.base_model.linear_maps import features, is_linear, walk
from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import (
    find_stack,
    outer_lists,
    size_of,
    stack_of,
    text_config,
)
from pyreft.base_model.structure import Structure
from pyreft.base_model.towers import TOWER, modules_around
from pyreft.config.intervention import is_path
from pyreft.config.layer_counts import split_stack, stack_named
from pyreft.positions import Kinds

NAMES = (
    "block_input",
    "attention_input",
    "attention_value_output",
    "head_attention_value_output",
    "attention_output",
    "mixer_output",
    "mlp_input",
    "mlp_activation",
    "mlp_output",
    "block_output",
)
# Only if attention computes each of them by a separate linear map.
PROJECTIONS = ("query_output", "key_output", "value_output")
# Only in layers that also attend to the encoder.
CROSS_NAMES = tuple(
    name.replace("attention", "cross_attention") for name in NAMES if "attention" in name
)


@dataclass(frozen=True)
class Component:
    """The input or output of a module, where hidden states can be edited.

    Args:
        module: The module to hook.
        side: "input" or "output" of the module.
        width: D, the width of the hidden state there, or None if it is known only when it runs.
        num_heads: Number of heads that the width is split into, for a per-head component.
        stack: "encoder" or "decoder", in a model with both: the module runs on its tokens. "tower"
            in a part that reads no text, whose tokens the hidden state shows.
        in_head: Whether it is in the output head, which runs on the tokens of `logits_to_keep`.
        layout: The axes of the hidden state.
        around: In a tower, the modules around it: their attention masks say what is padding.
        run, runs: Which time it is edited, of how many times that it runs in a forward pass.
        kinds: The kinds of its tokens, such as image tokens and text.
        ids_rows: How many rows of ids the model reads for each row of the hidden state.
    """

    module: nn.Module
    side: str
    width: int | None = None
    num_heads: int | None = None
    stack: str | None = None
    in_head: bool = False
    layout: Layout = ROWS_FIRST
    around: tuple[nn.Module, ...] = ()
    run: int = 0
    runs: int = 1
    kinds: Kinds = field(default_factory=Kinds)
    ids_rows: int = 1


def find_component(
    model: PreTrainedModel | Structure, layer: int | None, component: str
) -> Component:
    """Resolve a component.

    Args:
        model: The base model, or its structure if several components are resolved.
        layer: Index of the layer; ignored if the component is a path.
        component: A name above, or a path.

    Raises:
        ValueError: If there is no such component; the message lists those that exist.
    """
    structure = model if isinstance(model, Structure) else Structure(model)
    model = structure.model
    if is_path(component):
        return _with_shape(structure, _find_path(model, component), component)
    stack = stack_named(component) if structure.has_two_stacks else None
    name = component if stack is None else split_stack(component)[1]
    if name not in NAMES + PROJECTIONS + (CROSS_NAMES if stack == "decoder" else ()):
        raise ValueError(
            f"unknown component {component!r}: one of {', '.join(NAMES + PROJECTIONS)}"
            + ("" if stack is None else ', with "decoder_" before it for the decoder')
            + (f"; or, in the decoder only, {', '.join(CROSS_NAMES)}" if stack else "")
            + ', or a path such as "model.layers[3].mlp.output".'
        )
    if layer is None:
        raise ValueError(f"the component {component!r} needs a layer.")
    layers = structure.layers(stack)
    found = _find_in_layer(layers[layer], name, text_config(model, stack), model)
    if name == "block_output":
        found = replace(found, module=structure.output_of(stack, layer))
    same = [index for index, one in enumerate(layers) if one is layers[layer]]
    found = replace(found, stack=stack, run=same.index(layer), runs=len(same))
    return _with_shape(structure, found, f"{component} of layer {layer}")


def _with_shape(structure: Structure, found: Component, named: str) -> Component:
    """The component with the shape of its hidden state, as one tiny forward pass shows it."""
    tower = structure.tower_of(found.module)
    seen, kinds = None, kinds_of_text(structure.running.config)
    if tower is not None:
        traced = structure.traced(tower)
        seen = shape_in_tower(traced, found.module, found.side, named)
        around = modules_around(tower, found.module)
        kinds = kinds_in_tower(traced, found.module, found.side)
        found = replace(found, stack=TOWER, around=around)
    found = replace(found, kinds=kinds)
    if seen is None:
        # The tower may not run by itself: Perceiver's reads what embeddings of text return.
        whole = structure.traced(structure.running)
        found = replace(found, ids_rows=whole.trace.ids_rows)
        seen = shape_of_text(whole, found.module, found.side, found.stack)
    if seen is not None and seen.counted_as is not None:
        # Perceiver reads a text by queries, of which none is padding.
        inside = seen.counted_as == "text"
        around = modules_around(structure.running, found.module) if inside else ()
        kinds = Kinds(columns={seen.counted_as: slice(None)})
        found = replace(found, stack=TOWER, around=around, kinds=kinds)
    return found if seen is None else replace(found, width=seen.width, layout=seen.layout)


def _find_path(model: PreTrainedModel, path: str) -> Component:
    dotted = re.sub(r"\[(\d+)\]", r".\1", path)
    module_path, _, side = dotted.rpartition(".")
    if side not in ("input", "output") or not module_path:
        # "encoder.layer[0].output" names a module called output, as BERT has.
        raise ValueError(
            f'the component path {path!r} must end with ".input" or ".output" of a module, as in '
            '"model.layers[3].mlp.output".'
        )
    module = _find_module(model, module_path, path)
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"{module_path!r} (from {path!r}) is a list of modules, which does not run by itself: "
            f"name one of them, {child_names(module)}."
        )
    width = features(module)[side == "output"] if is_linear(module) else None
    stack = stack_of(model, module, path)
    if any(m is module for one in _maps_of_encoder(model, stack) for m in one.modules()):
        raise ValueError(
            f"{path!r} computes keys or values from the encoder's output: it runs on the tokens of "
            "the encoder while the decoder runs, and positions in the decoder do not count those. "
            'Edit the output of the encoder (its last "block_output"), or the input of the '
            'cross-attention\'s output projection, "decoder_cross_attention_value_output".'
        )
    head = model.get_output_embeddings()
    in_head = head is not None and any(m is module for m in head.modules())
    return Component(module, side, width, stack=stack, in_head=in_head)


def _maps_of_encoder(model: PreTrainedModel, stack: str | None) -> Iterator[nn.Module]:
    """The linear maps of keys and values in a decoder that run on the encoder's output.

    The last attention of a layer attends to the encoder; T5Gemma 2's only one attends to both.
    """
    if stack != "decoder" and not getattr(text_config(model, stack), "add_cross_attention", False):
        return
    root = model if stack is None else find_stack(model, stack)
    for layer in (layer for found in outer_lists(root) for layer in found):
        for attention in [part for name, part in parts(layer) if is_attention(name, part)][-1:]:
            for name, one in walk(attention):
                if is_linear(one) and makes_qkv(name) and not name.split(".")[-1].startswith("q"):
                    yield one


def _find_module(model: nn.Module, module_path: str, path: str) -> nn.Module:
    if (inner := running_model(model)) is not model:
        # A path stays valid if PEFT wraps the model; it may also begin at the wrapper.
        with suppress(ValueError):
            return _find_module(inner, module_path, path)
    module = model
    for step in module_path.split("."):
        # An attribute, because a model's `base_model` is another name of one of its children.
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            raise ValueError(
                f"the model {type(model).__name__} has no module {module_path!r} (from {path!r}): "
                f"{type(module).__name__} has no {step!r}, but {child_names(module) or 'nothing'}."
            )
        module = child
    return module


def _find_in_layer(
    layer: nn.Module, name: str, config: PreTrainedConfig, model: PreTrainedModel
) -> Component:
    hidden_size = size_of(config, "hidden_size")
    if name in ("block_input", "block_output"):
        return Component(layer, name.removeprefix("block_"), hidden_size)
    if "attention" in name or name in PROJECTIONS:
        return _find_in_attention(layer, name, config)
    if name == "mixer_output":
        return Component(mixer_of(layer), "output", hidden_size)
    up_part, down_part = feed_forward(layer)
    if name == "mlp_input":
        return Component(up_part, "input", hidden_size)
    if name == "mlp_output":
        return Component(down_part, "output", hidden_size)
    down = map_down(down_part)
    for path, module in walk(down_part):
        # All layers may share one activation module; then it cannot be hooked for this layer.
        if "act" in path.split(".")[-1] and _uses(model, module) == 1:
            return Component(module, "output", features(down)[0])
    return Component(down, "input", features(down)[0])


def _find_in_attention(layer: nn.Module, name: str, config: PreTrainedConfig) -> Component:
    hidden_size = size_of(config, "hidden_size")
    attention = attention_of(layer, cross="cross_attention" in name)
    if name in CROSS_NAMES:
        name = name.replace("cross_", "")
    if name in ("attention_input", "attention_output"):
        return Component(attention, name.removeprefix("attention_"), hidden_size)
    if name in PROJECTIONS:
        projection = projection_of(attention, name.removesuffix("_output"))
        return Component(projection, "output", features(projection)[1])
    projection = output_projection(attention)
    heads = _count_heads(config, layer) if name.startswith("head_") else None
    return Component(projection, "input", features(projection)[0], heads)


def _count_heads(config: PreTrainedConfig, layer: nn.Module) -> int:
    heads = size_of(config, "num_attention_heads")
    if heads is None:
        raise ValueError(
            f"the config does not say how many heads {type(layer).__name__} has: name "
            '"attention_value_output", which is all of them.'
        )
    return heads


def _uses(model: nn.Module, module: nn.Module) -> int:
    return sum(m is module for _, m in model.named_modules(remove_duplicate=False))
