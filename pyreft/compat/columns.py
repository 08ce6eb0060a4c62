"""Unit locations as indices of tokens: columns of a padded batch, pad tokens counted or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from pyreft.positions import NO_POSITION, PositionSpec

logger = logging.get_logger(__name__)


def read_locations(
    locations: Tensor,
    batch: Mapping[str, Any],
    specs: Sequence[PositionSpec | None],
    labels: Tensor | None = None,
    from_data: bool = False,
) -> Tensor:
    """Positions as indices of tokens, whichever way a script counts them.

    Upstream's are columns of the padded batch. Its data sets put a pad token before each text, so
    scripts count from that, add the padding of a batch, and take the pad token off again. Which of
    it a script does shows where the adapter knows its own positions; or in a pad token before
    every row; or where they would be no tokens, or padding.

    Args:
        locations: (B, I, P), from `locations_tensor`.
        batch: What the model is called with.
        specs: The positions of each intervention, as far as they are known.
        labels: (B, T), which end the prompts.
        from_data: Whether the adapter knows its positions from its data set, and from no config.

    Raises:
        ValueError: If they could be both, or are neither.
    """
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return locations
    text = mask != 0 if isinstance(mask, Tensor) and mask.shape == ids.shape else ids == ids
    text = text.cpu()
    before = text.int().argmax(1)[:, None, None]
    columns = _shift(locations, before)
    expected = _expected(specs, ids.cpu(), text, labels)
    readings = (locations, columns, _shift(locations, before - 1))
    found = [r for r in readings if expected is not None and _sets(r) == expected]
    if found and found[0] is readings[2]:
        logger.warning_once(
            "unit_locations are one less than the adapter's positions, as in scripts that take off "
            "the pad token that upstream puts before a text. "
            + ("The adapter's are edited." if from_data else "They are edited as they are.")
            + " intervention_locations say without doubt where to edit."
        )
    if found and (from_data or found[0] is not readings[2]):
        return found[0]
    given = (locations >= 0) & (before > 0)
    if not bool(given.any()):
        return locations
    if int(before.min()) == 1:
        # A pad token before every row: its own place is what upstream fills up with.
        given &= (locations != 0) & (locations != before - 1)
        as_columns, as_tokens = True, False
    else:
        as_columns = not bool((given & (locations < before)).any())
        as_tokens = not bool((given & (locations >= text.sum(1)[:, None, None])).any())
    on_padding = given & (locations < before)
    if as_columns and as_tokens:
        raise ValueError(
            "rows of the batch are padded at the left, and unit_locations could count columns of "
            "the batch as well as tokens of a row: give intervention_locations, a (batch, "
            "interventions, positions) tensor, which counts tokens."
        )
    if as_columns and bool(on_padding.any()):
        raise ValueError(
            "every row of the batch begins with a pad token, so unit_locations are taken for "
            f"columns, as upstream's data has them, and {int(locations[on_padding][0])} is on the "
            "padding of its row. Give intervention_locations to count tokens."
        )
    return columns if as_columns else locations


def count_from_text(locations: Tensor | None, leading: Tensor | None) -> Tensor | None:
    """Positions that count so many pad tokens before each text, as indices of its tokens.

    Args:
        locations: (B, I, P). Those on the pad tokens are no positions.
        leading: (B,), from the collator; None if texts begin with none.
    """
    if locations is None or leading is None:
        return locations
    return _shift(locations, leading.to(locations.device)[:, None, None])


def without_leading_pad(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch whose texts begin with pad tokens that its positions count, without those.

    Args:
        batch: Token columns (B, T); `leading_pad` (B,) from the collator, if they do.
    """
    inputs = dict(batch)
    leading = inputs.pop("leading_pad", None)
    if leading is None:
        return inputs
    locations = inputs["intervention_locations"] = count_from_text(
        inputs.get("intervention_locations"), leading
    )
    ids, cut = inputs["input_ids"], int(leading.min())
    return {
        name: value[:, cut:]
        if isinstance(value, Tensor) and value.shape == ids.shape and value is not locations
        else value
        for name, value in inputs.items()
    }


def _shift(locations: Tensor, by: Tensor) -> Tensor:
    """Positions less a number for each row; those before the first token are none."""
    moved = torch.where(locations == NO_POSITION, locations, locations - by)
    return moved.masked_fill((moved < 0) & ((locations >= 0) | (by < 0)), NO_POSITION)


def _sets(locations: Tensor) -> list[list[set[int]]]:
    return [[set(one) - {NO_POSITION} for one in row] for row in locations.tolist()]


def _expected(
    specs: Sequence[PositionSpec | None], ids: Tensor, text: Tensor, labels: Tensor | None
) -> list[list[set[int]]] | None:
    """Where the adapter itself would edit, None if it does not know or is not bound to prompts."""
    # Late, since the data side takes longer to import than all the rest.
    from pyreft.data.locations import locate

    known = [spec for spec in specs if spec is not None]
    if len(known) < len(specs):
        return None
    ends = None if labels is None or labels.shape != ids.shape else (labels.cpu() != -100) & text
    found = []
    for row in range(len(ids)):
        own = ids[row][text[row]].tolist()
        n = len(own)
        if ends is not None and bool(ends[row].any()):
            n = int((text[row].cumsum(0) - 1)[ends[row].int().argmax()])
        try:
            positions = locate(known, own, n)
        except ValueError:
            return None
        if positions is None:
            return None
        found.append([set(one) - {NO_POSITION} for one in positions])
    return found
