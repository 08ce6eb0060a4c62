"""The width and the layout of hidden states, from one tiny forward pass of the model."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from pyreft.base_model.layout import ROWS_FIRST, Layout, layout_of, layout_of_text
from pyreft.base_model.stacks import size_of, text_config
from pyreft.base_model.structure import Traced
from pyreft.base_model.tiny_inputs import OF_DECODER, ROWS, TOKENS
from pyreft.base_model.towers import TOWER


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
    layout = layout_of_text(shape, ROWS, count, offset, copies)
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
    layout = layout_of(runs[0], ROWS, module)
    if layout is None or len(runs) > 1:
        raise ValueError(
            f"{named} has {len(runs)} hidden states of the shape {runs[0]} in one forward pass of "
            f"{type(tower).__name__} on {ROWS} rows: there must be one, with axes for rows, tokens "
            "and features. Name another module."
        )
    return HiddenShape(runs[0][layout.width], layout)
