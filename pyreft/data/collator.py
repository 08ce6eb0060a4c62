"""Examples -> a padded batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyreft.positions import NO_POSITION, PositionSpec

_PADDED = ("input_ids", "attention_mask", "labels", "token_type_ids", "position_ids")


class ReftDataCollator:
    """Pad examples at the tokenizer's side, and keep every other column.

    Positions are not shifted: they count the tokens of a sequence, padding not counted.
    Examples with fewer positions than others are filled up with -100, which is none.

    Args:
        data_collator: What pads token ids and labels, as upstream's
            `ReftDataCollator(data_collator=DataCollatorForSeq2Seq(...))`; made from the
            tokenizer by default.
        tokenizer: The tokenizer.
        positions: The specs behind the examples' intervention_locations, for each intervention
            or one for all; a trainer gives them to the model.

    Raises:
        ValueError: If neither collator nor tokenizer is given, or the tokenizer cannot pad.
    """

    def __init__(
        self,
        data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None = None,
        tokenizer: Any = None,
        positions: Sequence[PositionSpec] | None = None,
    ) -> None:
        if data_collator is None and tokenizer is None:
            raise ValueError("a ReftDataCollator needs a tokenizer, or a data collator that pads.")
        self.tokenizer = tokenizer or getattr(data_collator, "tokenizer", None)
        if data_collator is None:
            from transformers import DataCollatorForSeq2Seq

            data_collator = DataCollatorForSeq2Seq(tokenizer=tokenizer, label_pad_token_id=-100)
        if self.tokenizer is not None and self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no pad_token: set tokenizer.pad_token = tokenizer.eos_token. "
                "The attention mask says what is padding, so the two may be the same."
            )
        self.data_collator = data_collator
        self.positions = positions

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate B examples: (B, T) token columns, (B, I, P) positions, the rest as it is.

        Raises:
            ValueError: If an example has no label but -100.
        """
        examples = [{k: v for k, v in one.items() if k in _PADDED} for one in instances]
        for index, example in enumerate(examples):
            example["input_ids"] = torch.as_tensor(example["input_ids"]).tolist()
            example.setdefault("attention_mask", [1] * len(example["input_ids"]))
            _refuse_unlabelled(example, index)
        batch = dict(self.data_collator(examples))
        for name in instances[0]:
            if name not in _PADDED:
                batch[name] = _collate(name, [one[name] for one in instances])
        return batch


def _refuse_unlabelled(example: dict[str, Any], index: int) -> None:
    labels = example.get("labels")
    if labels is None or not isinstance(labels, (list, Tensor)):
        return
    labels = torch.as_tensor(labels)
    example["labels"] = labels.tolist()
    if labels.dim() == 1 and bool((labels == -100).all()):
        raise ValueError(
            f"example {index} of the batch has no label but -100, so it teaches nothing: its "
            "completion is empty, or was cut off."
        )


def _collate(name: str, values: list[Any]) -> Any:
    if name in ("intervention_locations", "subspaces"):
        rows = [torch.as_tensor(value, dtype=torch.long) for value in values]
        if name == "subspaces" and len({row.shape for row in rows}) > 1:
            return values
        return _stack_positions(rows)
    if isinstance(values[0], (Tensor, int, float)):
        return torch.stack([torch.as_tensor(value) for value in values])
    return values


def _stack_positions(rows: list[Tensor]) -> Tensor:
    """(I, P) of each example, P differing -> (B, I, max P)."""
    if {row.dim() for row in rows} != {2} or len({row.shape[0] for row in rows}) > 1:
        raise ValueError(
            "intervention_locations of an example are a list of positions for each intervention; "
            f"the batch has the shapes {sorted({tuple(row.shape) for row in rows})}."
        )
    longest = max(row.shape[1] for row in rows)
    batch = torch.full((len(rows), rows[0].shape[0], longest), NO_POSITION, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, :, : row.shape[1]] = row
    return batch
