"""Upstream's ways of writing positions."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyreft.positions import NO_POSITION


class ReftType(str, Enum):
    """Upstream's names of adapter types."""

    LOREFT = "LOREFT"
    NLOREFT = "NOREFT"


class TaskType(str, Enum):
    """Upstream's names of tasks."""

    SEQ_CLS = "SEQ_CLS"
    CAUSAL_LM = "CAUSAL_LM"


def locations_tensor(
    unit_locations: Any, num_interventions: int, batch: int, copies: int = 1
) -> Tensor | None:
    """Upstream's `unit_locations` -> (B, I, P), with -100 where there is no position.

    Args:
        unit_locations: None, or a dict with one key, "sources->base" (its value is a pair whose
            second element is read) or "base". Positions are one index, a list of them for all
            rows, or nested lists: for each intervention, for each row or one for all rows.
        num_interventions: I.
        batch: B.
        copies: How often a script may repeat each row, for its beams; repeating is optional.

    Raises:
        ValueError: If it has another form, or its sizes do not fit.
        TypeError: If positions are not integers.
    """
    if unit_locations is None:
        return None
    if not isinstance(unit_locations, dict) or len(unit_locations) != 1:
        raise ValueError(
            'unit_locations is a dict with one key, {"sources->base": (None, positions)} or '
            f'{{"base": positions}}; got {unit_locations!r}.'
        )
    ((key, given),) = unit_locations.items()
    if key == "sources->base" and isinstance(given, (tuple, list)) and len(given) == 2:
        given = given[1]
    elif key not in ("sources->base", "base"):
        raise ValueError(f'unknown key {key!r} of unit_locations: "sources->base" or "base".')
    if given is None:
        return None
    nested = _plain(given)
    if _is_index(nested):
        nested = [nested]
    if not isinstance(nested, (list, tuple)):
        raise TypeError(f"unit_locations are lists of indices, got {given!r}.")
    if all(_is_index(index) for index in nested):
        nested = [[list(nested)] * batch] * num_interventions
    if any(one is None for one in nested):
        raise ValueError(
            f"unit_locations of intervention {nested.index(None)} are None. Upstream then "
            "edits every token, even if a script means none: give a list of positions for each "
            "row, [] for no position."
        )
    nested = [_rows(one, batch, copies) for one in nested]
    _check_nesting(nested, num_interventions, batch)
    longest = max((len(row) for one in nested for row in one), default=0)
    filled = [[[*row, *[NO_POSITION] * (longest - len(row))] for row in one] for one in nested]
    tensor = torch.tensor(filled, dtype=torch.long)
    return tensor.view(num_interventions, batch, longest).transpose(0, 1)


def _plain(value: Any) -> Any:
    """Convert tensors and arrays, also inside lists, to lists and integers."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rows(one: Any, batch: int, copies: int) -> Any:
    """The positions of one intervention for each row: one list is for all, copies are removed."""
    if not isinstance(one, list) or len(one) == batch:
        return one
    if len(one) == 1:
        return one * batch
    if copies > 1 and len(one) == batch * copies:
        firsts = one[::copies]
        return firsts if one == [row for row in firsts for _ in range(copies)] else one
    return one


def _check_nesting(nested: Sequence[object], num_interventions: int, batch: int) -> None:
    if len(nested) != num_interventions:
        raise ValueError(
            f"unit_locations are for {len(nested)} interventions, the model has "
            f"{num_interventions}. With f+l positions and weights that are not shared there are "
            "two interventions for each layer."
        )
    for index, one in enumerate(nested):
        rows = one if isinstance(one, (list, tuple)) and len(one) == batch else [None]
        for row in rows:
            if not isinstance(row, (list, tuple)) or not all(_is_index(i) for i in row):
                raise ValueError(
                    f"unit_locations of intervention {index} must be a list of positions for each "
                    f"of the {batch} rows, got {one!r}."
                )
