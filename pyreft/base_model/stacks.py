"""The stacks of layers of a model: one, or the encoder and the decoder of an encoder-decoder.

Llama, GPT-2, BERT    None                       model.layers, transformer.h, encoder.layer
T5, BART              "encoder", "decoder"       encoder.block, decoder.block
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.config import STACKS


def has_two_stacks(model: PreTrainedModel) -> bool:
    """Whether a model has an encoder, which reads the prompt, and a decoder, which continues."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return False
    # The encoder of T5, used alone to tag tokens, keeps the config of the whole model.
    encoder, decoder = model.get_encoder(), model.get_decoder()
    return all(encoder is not m for m in decoder.modules())


def find_stack(model: PreTrainedModel, stack: str) -> PreTrainedModel:
    """The encoder or the decoder."""
    found: PreTrainedModel = model.get_encoder() if stack == "encoder" else model.get_decoder()
    return found


def stack_of(model: PreTrainedModel, module: nn.Module, path: str) -> str | None:
    """The stack that a module runs in; None if the model has only one.

    Raises:
        ValueError: If both stacks share the module, as a token embedding.
    """
    if not has_two_stacks(model):
        return None
    inside = [s for s in STACKS if any(m is module for m in find_stack(model, s).modules())]
    if len(inside) == 2 or (not inside and module is model.get_input_embeddings()):
        raise ValueError(
            f"{path!r} is shared by the encoder and the decoder of {type(model).__name__}, so the "
            "tokens it runs on are not known: name a module inside one of them."
        )
    # A module in neither stack is the head, which comes after the decoder.
    return inside[0] if inside else "decoder"


def text_config(model: PreTrainedModel, stack: str | None = None) -> PreTrainedConfig:
    """The config that describes the layers; a model of several parts has several configs."""
    config = model.config if stack is None else find_stack(model, stack).config
    if not hasattr(config, "get_text_config"):
        return config
    return config.get_text_config(**{stack or "decoder": True})


def positions_depend_on_length(config: PreTrainedConfig) -> bool:
    """Whether the rotary frequencies depend on the longest text of a batch."""
    rope = str(getattr(config, "rope_parameters", None))
    return "dynamic" in rope or "longrope" in rope


def find_layers(model: PreTrainedModel, stack: str | None = None) -> nn.ModuleList:
    """The list of layers of a stack: `model.layers`, `transformer.h`, `encoder.layer`, ...

    Raises:
        ValueError: If no list has the number of layers that the config specifies.
    """
    expected = text_config(model, stack).num_hidden_layers
    roots: list[nn.Module | None]
    if stack is not None:
        roots = [find_stack(model, stack)]
    else:
        # The text model first, because a vision tower may have the same number of layers.
        roots = [model.get_decoder() if hasattr(model, "get_decoder") else None, model]
    for root in roots:
        for found in outer_lists(root) if isinstance(root, nn.Module) else ():
            if len(found) == expected:
                return found
    where = f"the {stack} of {type(model).__name__}" if stack else type(model).__name__
    raise ValueError(
        f"{where} has no list of {expected} layers: name the component by a path, such as "
        '"model.layers[3].output".'
    )


def count_layers(model: PreTrainedModel) -> list[int]:
    """The number of layers of each stack."""
    stacks = STACKS if has_two_stacks(model) else [None]
    return [len(find_layers(model, stack)) for stack in stacks]


def outer_lists(root: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of modules in a model that are not inside another list, as lists of experts are."""
    for name, module in root.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.ModuleList) and not inside:
            yield module
