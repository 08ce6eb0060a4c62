"""Upstream's ways of writing positions."""

from __future__ import annotations

import re
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


def parse_positions(positions: str) -> tuple[int, int]:
    """ "f7+l7" -> (7, 7): how many tokens at the start and at the end of the prompt.

    Args:
        positions: "f<n>", "l<n>" or "f<n>+l<n>".

    Raises:
        ValueError: If the spec says anything else than f<n> and l<n>.
    """
    match = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", positions)
    if not positions or match is None:
        raise ValueError(f'positions are "f<n>", "l<n>" or "f<n>+l<n>", got {positions!r}.')
    return int(match[1] or 0), int(match[2] or 0)


def get_intervention_locations(
    *,
    last_position: int,
    num_interventions: int,
    positions: str | None = None,
    first_n: int | None = None,
    last_n: int | None = None,
    share_weights: bool = False,
    pad_mode: str = "first",
    **unused: Any,
) -> list[list[int]]:
    """Upstream's integers for one example, short prompts and filling included.

    Our own data functions do not use it: on a prompt that is too short its filling is a position
    like any other, -1 or the first token of the answer, and it halves both sides alike where the
    paper gives the odd token to the suffix.

    Args:
        last_position: n, the number of tokens before the end of the prompt.
        num_interventions: How many lists to make. With f and l positions and weights that are
            not shared, the first half of them is at f, the second at l.
        positions: "f7+l7"; or `first_n` and `last_n` instead.
        share_weights: Whether all interventions edit all positions.
        pad_mode: "first" fills up with -1, "last" with n.

    Returns:
        `num_interventions` lists of positions.

    Raises:
        ValueError: If the positions are not given, or `num_interventions` is odd where two
            interventions make a pair (upstream drops one).
    """
    if positions is not None:
        first_n, last_n = parse_positions(positions)
    if first_n is None or last_n is None:
        raise ValueError('give positions="f1+l1", or both first_n and last_n.')
    half = last_position // 2
    first, last = min(half, first_n), min(half, last_n)
    fill = -1 if pad_mode == "first" else last_position
    prefix, suffix = list(range(first)), list(range(last_position - last, last_position))
    if share_weights or first == 0 or last == 0:
        missing = first_n + last_n - first - last
        return [prefix + suffix + [fill] * missing for _ in range(num_interventions)]
    if num_interventions % 2:
        raise ValueError(
            f"num_interventions is {num_interventions}: with positions at both ends and weights "
            "that are not shared there are two for each layer, so it is even."
        )
    width = max(first_n, last_n)
    pair = [side + [fill] * (width - len(side)) for side in (prefix, suffix)]
    return [list(side) for side in pair for _ in range(num_interventions // 2)]


def locations_tensor(
    unit_locations: Any, num_interventions: int, batch: int, copies: int = 1
) -> Tensor | None:
    """Upstream's `unit_locations` -> (B, I, P), with -100 where there is no position.

    Args:
        unit_locations: None, or a dict with the one key "sources->base" (its value a pair whose
            second is read) or "base". Positions are one index, a list of them for all rows, or
            nested lists: for each intervention, for each row or one for all rows.
        num_interventions: I.
        batch: B.
        copies: How often scripts repeat a row, for its beams; they may as well not.

    Raises:
        ValueError: If it is none of these, or its sizes do not fit.
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
            f"unit_locations of intervention {nested.index(None)} are None, for which upstream "
            "edits every token, also where a script means none: give a list of positions for each "
            "row, [] for no position."
        )
    nested = [_rows(one, batch, copies) for one in nested]
    _check_nesting(nested, num_interventions, batch)
    longest = max((len(row) for one in nested for row in one), default=0)
    filled = [[[*row, *[NO_POSITION] * (longest - len(row))] for row in one] for one in nested]
    tensor = torch.tensor(filled, dtype=torch.long)
    return tensor.view(num_interventions, batch, longest).transpose(0, 1)


def _plain(value: Any) -> Any:
    """Tensors and arrays, and such inside lists, as lists and integers."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rows(one: Any, batch: int, copies: int) -> Any:
    """The positions of one intervention for each row: one list is for all, copies are left out."""
    if not isinstance(one, list) or len(one) == batch:
        return one
    if len(one) == 1:
        return one * batch
    if copies > 1 and len(one) == batch * copies:
        firsts = one[::copies]
        return firsts if one == [row for row in firsts for _ in range(copies)] else one
    return one


def _check_nesting(nested: Sequence, num_interventions: int, batch: int) -> None:
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
