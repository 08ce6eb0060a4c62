"""The width and the layout of hidden states in a tower, from one tiny forward pass of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from pyreft.base_model.layout import Layout, layout_of
from pyreft.base_model.tiny_inputs import ROWS
from pyreft.base_model.trace import trace_of


class HiddenShape(NamedTuple):
    """What is known of a hidden state before the model runs.

    Args:
        width: D.
        layout: Its axes.
    """

    width: int
    layout: Layout


def shape_in_tower(
    tower: PreTrainedModel, module: nn.Module, side: str, named: str
) -> HiddenShape | None:
    """The shape of a hidden state in a model that reads no text.

    Args:
        tower: The model.
        module, side: The module, and which side of it.
        named: The component, for errors.

    Returns:
        The shape, or None if the model does not run on any inputs that are known here.

    Raises:
        ValueError: If the module does not run, or what it reads or returns has no axis of rows.
    """
    trace = trace_of(tower)
    if trace.problem is not None:
        return None
    path = next(name for name, inside in tower.named_modules() if inside is module)
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
