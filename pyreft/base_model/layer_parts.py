"""The parts of one layer: attention, feed-forward part, and their linear maps.

They are identified by the order of modules in a layer, which every architecture shares: attention,
then linear maps up and down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeGuard

from torch import nn

from pyreft.base_model.linear_maps import is_linear, linears, walk


def parts(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer; T5 has them in a list, each with its own norm."""
    for name, child in layer.named_children():
        inner = [part for one in child for part in one.named_children()] if _is_list(child) else []
        if any(is_attention(*part) for part in inner):
            yield from inner
        else:
            yield name, child


def _is_list(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList)


def is_attention(name: str, module: nn.Module) -> bool:
    named = re.search("attn|attention", name, re.IGNORECASE) is not None
    return named and len(linears(module)) > 1


def attention_of(layer: nn.Module, cross: bool = False) -> nn.Module:
    """The self-attention of the layer, or the cross-attention that comes after it."""
    found = [module for name, module in parts(layer) if is_attention(name, module)]
    if len(found) <= cross:
        raise ValueError(
            f"{type(layer).__name__} has no {'cross-' if cross else ''}attention among "
            f"{_names(layer)}: name the component by a path."
        )
    return found[cross]


def mixer_of(layer: nn.Module) -> nn.Module:
    """The part that mixes the tokens: attention, or in a layer of a hybrid what it has instead."""
    attention = [module for name, module in parts(layer) if is_attention(name, module)]
    others = [m for _, m in parts(layer) if m not in attention and _mixes_tokens(m)]
    # A second attention is cross-attention.
    found = [*attention[:1], *others]
    if len(found) != 1:
        raise ValueError(
            f"{type(layer).__name__} has {'several parts' if found else 'no part'} that "
            f"{'mix' if found else 'mixes'} tokens among {_names(layer)}: name one by a path."
        )
    return found[0]


def feed_forward(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The parts that hold the map up and the map down: often one, also one of experts."""
    found = [
        part
        for name, part in parts(layer)
        if not re.search("attn|attention|norm", name, re.IGNORECASE)
        and (linears(part) or _holds_experts(part))
    ]
    found = [part for part in found if not _mixes_tokens(part)]
    if not found or any(_is_list(part) for part in found):
        raise ValueError(
            f"{type(layer).__name__} has no single feed-forward part among "
            f"{_names(layer)}: name the component by a path."
        )
    if len([part for part in found if len(linears(part)) > 1 or _holds_experts(part)]) > 1:
        raise ValueError(
            f"{type(layer).__name__} has several feed-forward parts side by side among "
            f"{_names(layer)}, and none returns what they all compute: name one by a path."
        )
    return found[0], found[-1]


def map_down(part: nn.Module) -> nn.Module:
    """The linear map down of a feed-forward part."""
    if not (maps := linears(part)) or _holds_experts(part):
        raise ValueError(
            f"{type(part).__name__} has experts, whose activations are those of some tokens each: "
            "name its input or its output."
        )
    return maps[-1]


def _holds_experts(part: nn.Module) -> bool:
    """Whether a part has the weights of several experts, in one tensor or in a list of modules."""
    own = ((m, p) for m in part.modules() for p in m.parameters(recurse=False))
    if any(p.dim() == 3 and not isinstance(m, nn.Conv1d) for m, p in own):
        return True
    return any(_is_list(module) and linears(module) for module in part.modules())


def _mixes_tokens(part: nn.Module) -> bool:
    """Whether a part has a convolution along the tokens, or computes queries, keys and values."""
    maps = {name.split(".")[-1] for name, module in walk(part) if is_linear(module)}
    qkv = sum(re.match("w?[qkv](_|$)", name) is not None for name in maps)
    return qkv > 2 or any(isinstance(module, nn.Conv1d) for module in part.modules())


def _names(layer: nn.Module) -> str:
    return ", ".join(name for name, _ in parts(layer))


def output_projection(attention: nn.Module) -> nn.Module:
    """The last linear map of attention that computes neither queries, keys nor values."""
    maps = [m for n, m in walk(attention) if is_linear(m) and not makes_qkv(n)]
    if not maps:
        raise ValueError(
            f"{type(attention).__name__} has no output projection among {child_names(attention)}: "
            "name the component by a path."
        )
    return maps[-1]


def projection_of(attention: nn.Module, what: str) -> nn.Module:
    """The linear map of attention that computes only its queries, its keys or its values."""
    alone = re.compile(f"w?{what[0]}(?!kv|uery_key)", re.IGNORECASE)
    maps = [m for n, m in walk(attention) if is_linear(m) and alone.match(n.split(".")[-1])]
    if not maps:
        raise ValueError(
            f"{type(attention).__name__} has no linear map for the {what} alone among "
            f"{child_names(attention)}: name a component by a path."
        )
    return maps[-1]


def makes_qkv(name: str) -> bool:
    return re.match("w?[qkv]|c_attn|in_proj", name.split(".")[-1], re.IGNORECASE) is not None


def child_names(module: nn.Module) -> str:
    """The names of the children, "0 to 29" for a list."""
    names = [name for name, _ in module.named_children()]
    return f"0 to {len(names) - 1}" if isinstance(module, nn.ModuleList) else ", ".join(names)
