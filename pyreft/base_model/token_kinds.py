"""The kinds of tokens of a hidden state: what its columns are, or what the ids of a text say.

LLaVA    <image> <image> what is this     image image text text text
ViT      hidden (B, 197, D)               class patch patch ...
DINOv2   hidden (B, 201, D)               class register register register register patch ...
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from pyreft.base_model.structure import Traced
from pyreft.base_model.towers import modalities_of
from pyreft.positions import Kinds

_IN_TEXTS = ("image", "video", "audio")
# What the tokens of a tower are that the model makes of its input.
_OF_INPUT = {"image": "patch", "audio": "frame"}


def kinds_of_text(config: PreTrainedConfig) -> Kinds:
    """The kinds of tokens in the texts of a model: pictures and sounds have an id each.

    Args:
        config: Of the whole model.
    """
    ids = {}
    for kind in _IN_TEXTS:
        named = (getattr(config, f"{kind}_token_{end}", None) for end in ("id", "index"))
        if (found := next((one for one in named if isinstance(one, int)), None)) is not None:
            ids[kind] = found
    return Kinds(ids)


def kinds_in_tower(traced: Traced, module: nn.Module, side: str) -> Kinds:
    """The kinds of tokens in a part that reads pictures or sound.

    Those that the model adds are alike in all rows before the layers. They are class tokens, and
    after these as many registers as the config says.

    Args:
        traced: The tower.
        module, side: The module that is edited, and which side of it.
    """
    shapes = traced.trace.shapes.get((traced.names[module], side), ())
    read = modalities_of(traced.model)
    if not shapes or (len(shapes[0]) == 3 and shapes[0][1] not in traced.trace.added):
        # The model has no weights, or does not run on any inputs that are known here.
        return Kinds(columns={read: slice(None)})
    # Two axes of tokens are a grid, to which nothing is added.
    before, after = traced.trace.added[shapes[0][1]] if len(shapes[0]) == 3 else (0, 0)
    registers = min(getattr(traced.model.config, "num_register_tokens", 0) or 0, before)
    columns = {
        "class": slice(0, before - registers),
        "register": slice(before - registers, before),
        _OF_INPUT.get(read, read): slice(before, -after or None),
    }
    return Kinds(columns={kind: at for kind, at in columns.items() if at.start != at.stop})
