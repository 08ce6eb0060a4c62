"""Upstream's data set of texts with a label."""

from __future__ import annotations

import torch
from torch import Tensor

from pyreft.annotations import Arguments, Example
from pyreft.data.dataset import ReftDataset


class ReftClassificationDataset(ReftDataset):
    """A text, or a pair of texts, with a label. All of it is the prompt.

    The type of a label decides what it becomes:

        int             a class index
        float           a number to regress on
        list            one 0 or 1 for each class (multi-label), as floats
        text            token ids: the target of an encoder-decoder
        the input       the token ids of the input, if `label_field` is `input_field`

    Args:
        input_field: Column of the text, or a list of the two columns of a pair.
        label_field: Column of the label; None for texts without one.
        Others: As for `ReftDataset`.

    Returns:
        Examples with input_ids, attention_mask, labels, id, and, with a position,
        intervention_locations; for a pair what the tokenizer adds to tell its texts apart.

    Raises:
        ValueError: As for `ReftDataset`; or, with its row, if a label is of none of these types.
        TypeError: As for `ReftDataset`.
    """

    input_field: str | list[str]
    label_field: str | None
    _cut_part = "texts"

    def preprocess(self, kwargs: Arguments) -> None:
        self._take(kwargs, "input_field", "label_field")
        # Scripts that classify do not count positions from a pad token. A model with learned
        # position embeddings would count it.
        self.pad_mode = None

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        fields = [self.input_field] if isinstance(self.input_field, str) else self.input_field
        encoded = self._tokenize_text(*(data_item[field] for field in fields))
        ids = torch.tensor(encoded["input_ids"])
        example: Example = {"input_ids": ids}
        if len(fields) > 1 and "token_type_ids" in encoded:
            example["token_type_ids"] = torch.tensor(encoded["token_type_ids"])
        if self.label_field == self.input_field:
            example["labels"] = ids.clone()
        elif self.label_field is not None:
            example["labels"] = self._label(data_item[self.label_field])
        return example, len(ids)

    def _label(self, label: object) -> Tensor | float:
        if isinstance(label, str):
            return torch.tensor(self._tokenize_text(label)["input_ids"])
        if isinstance(label, list) and label and all(isinstance(x, (int, float)) for x in label):
            # The loss of several labels, binary cross-entropy, wants floats.
            return torch.tensor(label, dtype=torch.float)
        if isinstance(label, (int, float)):
            return label
        raise ValueError(
            f"the label is {label!r}; it must be a class index, a number, a list of one number "
            "for each class, or text"
        )

    def _prompt_length(self, example: Example) -> int:
        return len(example["input_ids"])
