"""The width, the layout and the kinds of tokens of hidden states, from one tiny forward pass.

The kinds of tokens: what its columns are, or what the ids of a text say.

LLaVA    <image> <image> what is this     image image text text text
ViT      hidden (B, 197, D)               class patch patch ...
DINOv2   hidden (B, 201, D)               class register register register register patch ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedConfig

from pyreft.base_model.layout import ROWS_FIRST, Layout
from pyreft.base_model.stacks import size_of, text_config
from pyreft.base_model.structure import Traced
from pyreft.base_model.tiny_inputs import OF_DECODER, ROWS, TOKENS
from pyreft.base_model.towers import TOWER, modalities_of
from pyreft.positions import Kinds

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
_IN_TEXTS = ("image", "video", "audio")
# What the tokens of a tower are that the model makes of its input.
_OF_INPUT = {"image": "patch", "audio": "frame"}


class HiddenShape(NamedTuple):
    """What is known of a hidden state before the model runs.

    Args:
        width: D.
        layout: Its axes.
        counted_as: "query" for queries of the model's own, "text" for fewer tokens than the text
            has; None for the tokens of the text.
    """

    width: int
    layout: Layout
    counted_as: str | None = None


def shape_of_text(
    traced: Traced, module: nn.Module, side: str, stack: str | None
) -> HiddenShape | None:
    """The shape of a hidden state of text; None if the tiny pass does not show it.

    Args:
        traced: The model.
        module, side: The module, and which side of it.
        stack: The stack that it is in.
    """
    trace = traced.trace
    stack = None if stack == TOWER else stack
    name = traced.names.get(module)
    # A wrapper of PEFT's around the model is not in it.
    runs = None if name is None else trace.shapes.get((name, side))
    if not runs:
        return None
    count = OF_DECODER if stack == "decoder" else TOKENS
    shape = runs[0]
    # A decoder that was given no tokens began with one of its own.
    if stack != "decoder" and len(shape) == 3 and shape[0] == ROWS and shape[1] in trace.queries:
        return HiddenShape(shape[2], ROWS_FIRST, counted_as="query")
    offset = trace.offsets.get(shape[1]) if len(shape) == 3 else None
    copies = 1 + (size_of(text_config(traced.model, stack), "ngram") or 0)
    layout = _layout_of_text(shape, ROWS, count, offset, copies)
    if layout is not None:
        return HiddenShape(shape[layout.width], layout)
    # CANINE and Funnel read a text in fewer tokens. Steps of a generation would count others.
    fewer = len(shape) == 3 and shape[0] == ROWS and 1 < shape[1] < TOKENS
    if fewer and stack != "decoder" and not traced.model.can_generate():
        return HiddenShape(shape[2], ROWS_FIRST, counted_as="text")
    return None


def shape_in_tower(traced: Traced, module: nn.Module, side: str, named: str) -> HiddenShape | None:
    """The shape of a hidden state in a model that reads no text.

    Args:
        traced: The model.
        module, side: The module, and which side of it.
        named: The component, for errors.

    Returns:
        The shape, or None if the model does not run on any inputs that are known here.

    Raises:
        ValueError: If the module does not run, or what it reads or returns has no axis of rows.
    """
    tower, trace = traced.model, traced.trace
    if trace.problem is not None:
        return None
    path = traced.names[module]
    runs = trace.shapes.get((path, side))
    if runs is None:
        raise ValueError(
            f"{named} is {type(module).__name__} at {path!r}, which does not run when "
            f"{type(tower).__name__} does: name a module around it, or inside it."
        )
    layout = _layout_of(runs[0], ROWS, module)
    if layout is None or len(runs) > 1:
        raise ValueError(
            f"{named} has {len(runs)} hidden states of the shape {runs[0]} in one forward pass of "
            f"{type(tower).__name__} on {ROWS} rows: there must be one, with axes for rows, tokens "
            "and features. Name another module."
        )
    return HiddenShape(runs[0][layout.width], layout)


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


def _layout_of_text(
    shape: Sequence[int], rows: int, count: int, offset: int | None, copies: int = 1
) -> Layout | None:
    """The layout of a hidden state of text, from its shape in a forward pass.

    Args:
        shape: The shape.
        rows: B, the number of rows in that pass; no other size of it may be taken for it.
        count: T, the number of tokens in that pass, likewise.
        offset: The index of the first of these tokens, if the hidden state has more.
        copies: The number of streams that may follow each other.

    Returns:
        The layout, or None if the shape does not show one.
    """
    found = tuple(shape)
    if copies > 1 and len(found) == 3 and found[:2] == (rows, copies * count):
        return Layout(copies=copies)
    if found[:2] == (rows, count):
        return {3: ROWS_FIRST, 4: Layout(0, (1,), 3, streams=2)}.get(len(found))
    if len(found) == 3 and found[:2] == (count, rows):
        return Layout(1, (0,), 2)
    if len(found) == 3 and found[0] == rows and found[2] == count and offset is None:
        return Layout(0, (2,), 1)
    if len(found) == 4 and found[1:3] == (rows, count):
        return Layout(1, (2,), 3, streams=0)
    if len(found) == 3 and found[0] == rows and offset is not None:
        return Layout(offset=offset)
    return None


def _layout_of(shape: Sequence[int], rows: int, module: nn.Module) -> Layout | None:
    """The layout of a hidden state of no text, from its shape in a forward pass.

    Args:
        shape: The shape.
        rows: B, the number of rows in that pass; no other size of it may be taken for it.
        module: The module that reads or returns it.

    Returns:
        The layout, or None if the shape does not show one.
    """
    if len(shape) == 3 and shape[0] == rows:
        return Layout(0, (2,), 1) if _features_come_first(shape, module) else ROWS_FIRST
    if len(shape) == 3 and shape[1] == rows:
        return Layout(1, (0,), 2)
    if len(shape) == 4 and shape[0] == rows:
        # The picture of the pass is a square.
        if shape[1] == shape[2] != shape[3]:
            return Layout(0, (1, 2), 3)
        if shape[2] == shape[3] != shape[1] or _features_come_first(shape, module):
            return Layout(0, (2, 3), 1)
        return Layout(0, (1, 2), 3)
    return None


def _features_come_first(shape: Sequence[int], module: nn.Module) -> bool:
    """Whether the second axis is that of the features, as convolutions have it."""
    leaves = [one for one in module.modules() if not list(one.children())]
    widths = {w for one in leaves for w in _widths(one)}
    if (shape[1] in widths) != (shape[-1] in widths):
        return shape[1] in widths
    return bool(leaves) and isinstance(leaves[-1], _CONVOLUTIONS)


def _widths(leaf: nn.Module) -> list[int]:
    names = ("out_features", "out_channels", "num_features", "num_channels", "normalized_shape")
    found = (getattr(leaf, name, None) for name in names)
    return [size[-1] if isinstance(size, tuple) else size for size in found if size]
