"""The pad token that upstream's data sets put before a text: added, counted, removed.

    ids          pad  a  b  c          a  b  c
    mask         0    1  1  1          1  1  1
    labels       -100 -100 b c         -100 b c
    positions    0 is none, 1 is a     0 is a

Scripts that generate with upstream's positions expect it. Training batches do not contain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

from pyreft.annotations import Columns, Example
from pyreft.data.tokenize import IGNORE
from pyreft.positions import NO_POSITION, counted_pad

logger = logging.get_logger(__name__)

# Token columns, and what fills them up.
BY_TOKEN = dict.fromkeys(counted_pad.BY_TOKEN, 0)
OF_LABELS = {"labels": IGNORE, "completion_mask": 0}


def put_pad_first(
    example: Example, locations: Sequence[Sequence[int]], pad: int, fields: Sequence[str]
) -> Example:
    """An example with a pad token before its text, and positions that count it.

    Args:
        example: `input_ids` and `attention_mask`, tensors or lists, and other columns.
        locations: (I, P) positions; -100 is no position.
        pad: The token.
        fields: The columns that get a token, of input_ids and labels.
    """
    length, labels = len(example["input_ids"]), plain(example.get("labels"))
    fills = {n: fill for n, fill in {"input_ids": pad, "labels": IGNORE}.items() if n in fields}
    fills |= {"attention_mask": 0, "token_type_ids": 0}
    if labels != plain(example["input_ids"]) and not _begins_ignored(labels, 1):
        fills.pop("labels", None)  # they are not labels of these tokens
    found = {**example, "leading_pad": 1}
    for name, fill in fills.items():
        values = example.get(name)
        if isinstance(values, torch.Tensor) and values.shape == (length,):
            found[name] = torch.cat([values.new_tensor([fill]), values])
        elif isinstance(values, list) and len(values) == length:
            found[name] = [fill, *values]
    found["intervention_locations"] = [[_counting_pad(index) for index in row] for row in locations]
    return found


def leave_out_pad(columns: Columns) -> list[int]:
    """The number of pad tokens before each text of a batch, which its positions count.

    They are removed if the examples have labels for their tokens, which are for training.

    Args:
        columns: The values of each column; changed.
    """
    masks, said = columns.get("attention_mask", []), columns.pop("leading_pad", None)
    rows = range(len(columns["input_ids"]))
    counts = [next((i for i, real in enumerate(mask) if real), 0) for mask in masks]
    if said is None and set(counts) != {1}:
        return [0] * len(rows)  # at most the padding of examples that were padded before
    if said is None and "intervention_locations" in columns:
        logger.warning_once(
            "Every example of a batch begins with one masked token. It is taken for the pad token "
            "of upstream's data sets, which positions count. If they do not count it, add the "
            "column leading_pad=0 to the examples."
        )
    leading = counts if said is None else said
    labels, ids = columns.get("labels", [None] * len(rows)), columns["input_ids"]
    by_token = [isinstance(labels[i], list) and len(labels[i]) == len(ids[i]) for i in rows]
    if not all(by_token[i] and _begins_ignored(labels[i], leading[i]) for i in rows):
        return leading
    for name in (*BY_TOKEN, *OF_LABELS):
        if name in columns:
            columns[name] = [value[leading[i] :] for i, value in enumerate(columns[name])]
    if "intervention_locations" in columns:
        columns["intervention_locations"] = [
            [[_counting_none(index, leading[i]) for index in row] for row in located]
            for i, located in enumerate(columns["intervention_locations"])
        ]
    return [0] * len(rows)


def plain(value: object) -> Any:
    """Tensors, arrays and tuples as lists and numbers; other values as they are."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def _begins_ignored(labels: object, count: int) -> bool:
    return isinstance(labels, list) and all(label == IGNORE for label in labels[:count])


def _counting_pad(index: int) -> int:
    """A position that counts one pad token before the text; negative ones count from the end."""
    return 0 if index == NO_POSITION else index + 1 if index >= 0 else index


def _counting_none(index: int, leading: int) -> int:
    """A position without the `leading` pad tokens that it counts."""
    if index < 0:
        return index
    return index - leading if index >= leading else NO_POSITION
