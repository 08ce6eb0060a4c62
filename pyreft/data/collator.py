"""Examples -> a padded batch."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from pyreft.annotations import Columns, Example, Inputs
from pyreft.data.leading_pad import BY_TOKEN, OF_LABELS, leave_out_pad, plain
from pyreft.positions import NO_POSITION, PositionSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Columns with the length of the labels, in a model with an encoder and a decoder.
_OF_DECODER = {**OF_LABELS, "decoder_input_ids": 0, "decoder_attention_mask": 0}

# Pads examples to a batch.
Pads: TypeAlias = Callable[[list[Example]], Mapping[str, Tensor]]


class Generating(Protocol):
    """What a collator reads of a model: whether it has a decoder beside an encoder."""

    @property
    def config(self) -> PreTrainedConfig: ...
    def can_generate(self) -> bool: ...


class ReftDataCollator:
    """Pad examples at the tokenizer's side, and keep every other column.

    Positions are not shifted: they count the tokens of a sequence, padding not counted. If the
    examples themselves begin with pad tokens, as upstream's do, positions count those too. The
    batch then has a column `leading_pad` (B,), the number of these tokens in each row.
    Examples with fewer positions than others are filled up with -100, which means no position.

    Args:
        data_collator: Pads token ids and labels, as in upstream's
            `ReftDataCollator(data_collator=DataCollatorForSeq2Seq(...))`; constructed from the
            tokenizer by default.
        tokenizer: The tokenizer; may also be passed first.
        positions: The specs behind the examples' intervention_locations, for each intervention
            or one for all; a trainer records them in the model.
        model: The model that is trained; needed only if it has an encoder and a decoder. Its
            labels are then padded at the right to their own length, and the decoder's input is
            computed from them, as in transformers' DataCollatorForSeq2Seq.

    Raises:
        ValueError: If neither collator nor tokenizer is given, or the tokenizer cannot pad.
    """

    def __init__(
        self,
        data_collator: Pads | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        positions: Sequence[PositionSpec] | None = None,
        model: Generating | None = None,
    ) -> None:
        if hasattr(data_collator, "pad_token_id"):
            tokenizer, data_collator = cast("PreTrainedTokenizerBase", data_collator), None
        if data_collator is None:
            if tokenizer is None:
                raise ValueError(
                    "a ReftDataCollator needs a tokenizer, or a data collator that pads."
                )
            data_collator = DataCollatorForSeq2Seq(tokenizer=tokenizer, label_pad_token_id=-100)
        self.tokenizer = tokenizer or getattr(data_collator, "tokenizer", None)
        model = model if model is not None else getattr(data_collator, "model", None)
        decodes = model is not None and model.config.is_encoder_decoder and model.can_generate()
        self.decoder = model if decodes else None
        if self.tokenizer is not None and self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no pad_token: set tokenizer.pad_token = tokenizer.eos_token. "
                "The attention mask marks padding, so the two may be the same."
            )
        self.data_collator = data_collator
        self.positions = positions

    def __call__(self, instances: Sequence[Example]) -> Inputs:
        """Collate B examples: (B, T) token columns, (B, I, P) positions, the rest unchanged.

        Args:
            instances: B examples of the same columns, `input_ids` among them.

        Returns:
            The columns as tensors: token columns (B, T), `intervention_locations` (B, I, P),
            `leading_pad` (B,), numbers (B,), `subspaces` (B, I, S) if all have one shape. Other
            columns are lists.

        Raises:
            ValueError: If examples differ in their columns, all labels of one are -100, or its ids
                or labels are not numbers.
        """
        columns = _read_columns(instances)
        leading = leave_out_pad(columns)
        names = list(columns)
        _require_ids(columns["input_ids"])
        _require_numbers(columns.get("labels", []))
        lengths = [len(ids) for ids in columns["input_ids"]]
        fills = BY_TOKEN if self.decoder is not None else BY_TOKEN | OF_LABELS
        by_token = {n: columns[n] for n in names if n in fills and _is_by_token(columns[n][0])}
        for name, values in by_token.items():
            _check_lengths(name, [len(value) for value in values], lengths)
        _refuse_unlabelled([row for row in columns.get("labels", []) if isinstance(row, list)])
        by_token.setdefault("attention_mask", [[1] * length for length in lengths])
        inner = ("input_ids", "attention_mask", "labels", "token_type_ids")
        padded = [n for n in inner if n in by_token]
        rows = [{n: by_token[n][i] for n in padded} for i in range(len(instances))]
        batch: Inputs = {n: v for n, v in self.data_collator(rows).items() if v is not None}
        if "intervention_locations" in columns:
            # A position on a pad token edits nothing, as -100 does.
            fill, located = 0 if any(leading) else NO_POSITION, columns["intervention_locations"]
            batch["intervention_locations"] = _stack_positions(located, fill)
            if any(leading) or not bool(batch["attention_mask"][:, 0].any()):
                batch["leading_pad"] = torch.tensor(leading)
            names.remove("intervention_locations")
        for name in names:
            if name in by_token and name not in padded:
                batch[name] = _pad_like(batch["attention_mask"], by_token[name], fills[name])
            elif name not in by_token and not (self.decoder is not None and name in _OF_DECODER):
                batch[name] = _collate(name, columns[name])
        return batch if self.decoder is None else batch | self._decoder_columns(columns)

    def _decoder_columns(self, columns: Columns) -> dict[str, Tensor]:
        """The labels and inputs of the decoder, (B, T); T is the longest of its labels."""
        given = {n: columns[n] for n in _OF_DECODER if n in columns}
        if "labels" not in given:
            return {}
        lengths = [len(row) for row in given["labels"]]
        if "decoder_input_ids" not in given and any(row[0] == -100 for row in given["labels"]):
            raise ValueError(
                "labels of an encoder-decoder model begin with -100, as in examples of a causal "
                "language model, whose input_ids hold the completion as well: make examples with "
                "pyreft.make_examples(..., encoder_decoder=True)."
            )
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        batch = {}
        for name, rows in given.items():
            _check_lengths(name, [len(row) for row in rows], lengths, beside="labels")
            # Nothing reads the fill of ids past the labels.
            batch[name] = _pad_like(mask, rows, _OF_DECODER[name])
        make = getattr(self.decoder, "prepare_decoder_input_ids_from_labels", None)
        if make is not None and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = make(labels=batch["labels"])
        return batch


def _read_columns(instances: Sequence[Example]) -> Columns:
    """The values of each column; labels under the name `labels`, which models read."""
    if not instances or any("input_ids" not in one for one in instances):
        given = list(instances[0]) if instances else "no example"
        raise ValueError(
            f"an example of a batch has no input_ids; the first has {given}. Make examples of "
            "prompts and completions with pyreft.make_examples."
        )
    names = list(instances[0])
    for index, one in enumerate(instances):
        if wrong := set(names) ^ set(one):
            raise ValueError(
                f"example {index} of the batch differs from the first in the columns "
                f"{', '.join(sorted(wrong))}."
            )
    columns = {name: [plain(one[name]) for one in instances] for name in names}
    if _are_classes([one.get("labels") for one in instances], columns["input_ids"]):
        columns["labels"] = [label for (label,) in columns["labels"]]
    for name in ("label", "label_ids"):
        if name in columns and "labels" not in columns:
            columns["labels"] = columns.pop(name)
    return columns


def _are_classes(labels: Sequence[object], ids: Sequence[object]) -> bool:
    """Whether labels are tensors of one class, as in subclasses of upstream's data sets."""
    single = all(isinstance(label, Tensor) and label.shape == (1,) for label in labels)
    return single and any(isinstance(one, list) and len(one) > 1 for one in ids)


def _is_by_token(value: object) -> bool:
    """Whether it is a list with an integer for each token; floats are one for each class."""
    return isinstance(value, list) and not any(isinstance(one, float) for one in value)


def _require_ids(rows: Sequence[object]) -> None:
    for index, ids in enumerate(rows):
        if not isinstance(ids, list) or not ids or any(type(one) is not int for one in ids):
            raise ValueError(
                f"input_ids of example {index} of the batch are {reprlib.repr(ids)}; they must "
                "be a non-empty list of token ids."
            )


def _require_numbers(labels: Sequence[object]) -> None:
    for index, label in enumerate(labels):
        values = label if isinstance(label, list) else [label]
        wrong = any(not isinstance(one, (int, float, list)) for one in values)
        if wrong or isinstance(label, list) != isinstance(labels[0], list):
            raise ValueError(
                f"the label of example {index} of the batch is {reprlib.repr(label)}, of the first "
                f"{reprlib.repr(labels[0])}; a label is a number, or a list of them."
            )


def _check_lengths(
    name: str, found: list[int], expected: list[int], beside: str = "input_ids"
) -> None:
    for index, (has, length) in enumerate(zip(found, expected, strict=True)):
        if has != length:
            advice = (
                " Integer labels are one for each token; labels of several classes at once are "
                "floats. For a model with an encoder and a decoder, pass model=... to the collator."
            )
            raise ValueError(
                f"example {index} of the batch has {length} {beside}, but {has} {name}."
                + (advice if name == "labels" else "")
            )


def _refuse_unlabelled(labels: Sequence[list[int]]) -> None:
    for index, row in enumerate(labels):
        if all(label == -100 for label in row):
            raise ValueError(
                f"example {index} of the batch has no label but -100, so it teaches nothing: its "
                "completion is empty, or was cut off."
            )


def _pad_like(attention_mask: Tensor, rows: Sequence[list[int]], fill: int) -> Tensor:
    """Pad each row at the side at which the inner collator padded its tokens: (B, T)."""
    batch = attention_mask.new_full(attention_mask.shape, fill)
    left = bool((attention_mask[:, -1:] == 1).all()) and not bool(attention_mask[:, 0].all())
    for index, row in enumerate(rows):
        where = slice(-len(row), None) if left else slice(len(row))
        batch[index, where] = torch.tensor(row, dtype=batch.dtype)
    return batch


def _collate(name: str, values: list[object]) -> Tensor | list[object]:
    if isinstance(values[0], (int, float)):
        return torch.tensor(values)
    if name in ("labels", "subspaces") and len({str(_shape(value)) for value in values}) == 1:
        return torch.tensor(values)
    return values


def _shape(value: object) -> tuple[int, ...]:
    """The sizes of nested lists, read from the first item of each."""
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()


def _stack_positions(examples: list[list[list[int]]], fill: int) -> Tensor:
    """A list of positions for each example and each intervention -> (B, I, P), filled up."""
    for one in examples:
        rows: Sequence[object] = one if isinstance(one, list) and one else [None]
        if any(not isinstance(row, list) or any(type(i) is not int for i in row) for row in rows):
            raise ValueError(
                "intervention_locations of an example are a list of positions for each "
                f"intervention, got {one!r}."
            )
    if len({len(one) for one in examples}) > 1:
        raise ValueError("the examples have positions for different numbers of interventions.")
    longest = max(len(row) for one in examples for row in one)
    filled = [[row + [fill] * (longest - len(row)) for row in one] for one in examples]
    return torch.tensor(filled, dtype=torch.long).view(len(examples), -1, longest)
