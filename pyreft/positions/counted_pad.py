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
    """Positions that count so many pad tokens before each text, as indices of its tokens.

    Args:
        locations: (B, I, P). Those on the pad tokens are no positions.
        leading: (B,), from the collator; None if texts begin with none.
    """
    if locations is None or leading is None:
        return locations
    return shift_locations(
        locations, torch.as_tensor(leading, device=locations.device).view(-1, 1, 1)
    )


def without_leading_pad(batch: Arguments) -> Inputs:
    """A batch whose texts begin with pad tokens that its positions count, without those.

    Args:
        batch: Token columns (B, T); `leading_pad` (B,) from the collator, if they do.
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
        # Labels of another kind may be as many by chance.
        if name != "labels" or bool((value[:, :cut] == -100).all()):
            inputs[name] = value[:, cut:]
    return inputs


def warn_of_pad_first(inputs: Arguments) -> None:
    """Say how positions are counted where every row begins with one masked token."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask[:, 0].any()):
        return
    if bool(mask[:, 1:2].any()):
        logger.warning_once(
            "Every row of the batch begins with a masked token, and intervention_locations count "
            "the tokens behind it. If they count that token too, as examples of upstream's data "
            "sets do, collate with pyreft.ReftDataCollator, or give the batch leading_pad, a "
            "(batch,) tensor of ones."
        )


def shift_locations(locations: Tensor, by: Tensor) -> Tensor:
    """Positions less a number for each row; those before the first token are none."""
    moved = torch.where(locations < 0, locations, locations - by)
    return moved.masked_fill((moved < 0) & (locations >= 0), NO_POSITION)
