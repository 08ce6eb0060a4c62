"""Positions that count a pad token before the text, as upstream's data sets do."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging

from pyreft.annotations import Arguments, Inputs
from pyreft.positions.tokens import NO_POSITION

logger = logging.get_logger(__name__)

# Columns that have a value for each token of a text.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
OF_LABELS = ("completion_mask", "labels")


def count_from_text(locations: Tensor | None, leading: Tensor | None) -> Tensor | None:
    """Convert positions that count pad tokens before each text to indices of its tokens.

    Args:
        locations: (B, I, P). Positions on the pad tokens become no position.
        leading: (B,), number of counted pad tokens, from the collator; None if there are none.
    """
    if locations is None or leading is None:
        return locations
    return shift_locations(
        locations, torch.as_tensor(leading, device=locations.device).view(-1, 1, 1)
    )


def without_leading_pad(batch: Arguments) -> Inputs:
    """Remove the leading pad tokens from a batch whose positions count them.

    Args:
        batch: Token columns (B, T); `leading_pad` (B,) from the collator, if there are any.
    """
    inputs = dict(batch)
    leading = inputs.pop("leading_pad", None)
    if leading is None:
        return inputs
    inputs["intervention_locations"] = count_from_text(
        inputs.get("intervention_locations"), leading
    )
    cut, shape = int(leading.min()), inputs["input_ids"].shape
    for name in (*BY_TOKEN, *OF_LABELS):
        value = inputs.get(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            continue
        # Labels that are not per token may have this shape by chance.
        if name != "labels" or bool((value[:, :cut] == -100).all()):
            inputs[name] = value[:, cut:]
    return inputs


def warn_of_pad_first(inputs: Arguments) -> None:
    """Warn how positions are counted if every row begins with one masked token."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask[:, 0].any()):
        return
    if bool(mask[:, 1:2].any()):
        logger.warning_once(
            "Every row of the batch begins with a masked token, and intervention_locations count "
            "the tokens after it. If they count that token too, as examples of upstream's data "
            "sets do, collate with pyreft.ReftDataCollator, or give the batch leading_pad, a "
            "(batch,) tensor of ones."
        )


def shift_locations(locations: Tensor, by: Tensor) -> Tensor:
    """Subtract a number per row from positions; those before the first token become -100."""
    moved = torch.where(locations < 0, locations, locations - by)
    return moved.masked_fill((moved < 0) & (locations >= 0), NO_POSITION)
