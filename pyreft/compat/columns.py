"""Unit locations as indices of tokens: columns of a padded batch, pad tokens counted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyreft.annotations import Arguments
from pyreft.positions import NO_POSITION, PositionSpec
from pyreft.positions.counted_pad import shift_locations


def read_locations(
    locations: Tensor,
    batch: Arguments,
    specs: Sequence[PositionSpec | None],
    labels: Tensor | None = None,
) -> Tensor:
    """Convert positions to indices of tokens, whichever way a script counts them.

    Upstream's are columns of the padded batch. Its data sets put a pad token before each text, so
    scripts count from it, add the padding of a batch, and remove the pad token again. A script's
    way of counting is inferred from the adapter's own positions, if known; or from a pad token
    before every row; or because one way gives padding or no token. Negative ones count from the
    end.

    Args:
        locations: (B, I, P), from `locations_tensor`.
        batch: The arguments of the model.
        specs: The positions of each intervention, or None.
        labels: (B, T), which end the prompts.

    Raises:
        ValueError: If both ways are possible, or neither is.
    """
    text = _text(batch, len(locations))
    if text is None:
        return locations
    before = text.int().argmax(1)[:, None, None]
    columns = shift_locations(locations, before)
    expected = _expected(specs, batch.get("input_ids"), text, labels)
    for reading in (locations, columns):
        if expected is not None and _sets(reading) == expected:
            return reading
    given = (locations >= 0) & (before > 0)
    if not bool(given.any()):
        return locations
    if int(before.min()) == 1:
        # A pad token before every row: upstream fills unused locations with its index.
        given &= (locations != 0) & (locations != before - 1)
        as_columns, as_tokens = True, False
    else:
        as_columns = not bool((given & (locations < before)).any())
        as_tokens = not bool((given & (locations >= text.sum(1)[:, None, None])).any())
    on_padding = given & (locations < before)
    if as_columns and as_tokens:
        raise ValueError(
            "rows of the batch are padded on the left, and unit_locations could count columns of "
            "the batch or tokens of a row: give intervention_locations, a (batch, "
            "interventions, positions) tensor, which counts tokens."
        )
    if as_columns and bool(on_padding.any()):
        raise ValueError(
            "every row of the batch begins with a pad token, so unit_locations are read as "
            f"columns, as in upstream's data, and {int(locations[on_padding][0])} is on the "
            "padding of its row. Give intervention_locations to count tokens."
        )
    return columns if as_columns else locations


def _text(batch: Arguments, rows: int) -> Tensor | None:
    """(B, T) bool on the CPU, true on tokens in the attention mask; None without tokens."""
    given = batch.get("input_ids")
    given = batch.get("inputs_embeds") if given is None else given
    if not isinstance(given, Tensor) or given.dim() < 2 or len(given) != rows:
        return None
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == given.shape[:2]:
        return (mask != 0).cpu()
    return torch.ones(given.shape[:2], dtype=torch.bool)


def _sets(locations: Tensor) -> list[list[set[int]]]:
    return [[set(one) - {NO_POSITION} for one in row] for row in locations.tolist()]


def _expected(
    specs: Sequence[PositionSpec | None], ids: Any, text: Tensor, labels: Tensor | None
) -> list[list[set[int]]] | None:
    """The adapter's own positions, None if they are unknown or not limited to prompts."""
    # Imported late, because `pyreft.data` takes longer to import than all the rest.
    from pyreft.data.locations import locate

    known = [spec for spec in specs if spec is not None]
    if len(known) < len(specs):
        return None
    ids = torch.zeros_like(text, dtype=torch.long) if ids is None else ids.cpu()
    ends = None if labels is None or labels.shape != text.shape else (labels.cpu() != -100) & text
    found = []
    for row in range(len(text)):
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
