"""A prompt becomes what a model is called with, and the texts of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pyreft.adapters.model import EditedModel
from pyreft.annotations import Inputs
from pyreft.base_model.running import execution_device
from pyreft.base_model.stacks import has_two_stacks
from pyreft.pictures.tokens import token_texts

# Arguments with an entry for each token, (B, T) or (B, T, D).
_BY_TOKEN = (
    *("input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds"),
    *("labels", "completion_mask"),
)


@dataclass(frozen=True)
class Prompt:
    """A row of tokens, without padding.

    Args:
        inputs: The arguments of the model, of this row alone.
        tokens: The text of each token.
    """

    inputs: Inputs
    tokens: tuple[str, ...]

    def index(self, position: int) -> int:
        """The index of a token.

        Args:
            position: Its index; negative ones count from the end.

        Raises:
            ValueError: If there is no such token.
        """
        count = len(self.tokens)
        if isinstance(position, bool) or not isinstance(position, int):
            raise TypeError(f"a position is the index of a token, got {position!r}.")
        if not -count <= position < count:
            raise ValueError(f"position {position} is outside the prompt of {count} tokens.")
        return position % count


def read_prompt(
    model: EditedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Mapping[str, object],
    row: int = 0,
) -> Prompt:
    """Read a prompt.

    Args:
        model: The model that it is for.
        tokenizer: Its tokenizer.
        prompt: A text, or what the tokenizer returns for one text or several, with "input_ids" of
            the shape (B, T). It may have arguments of `ReftModel.forward` that are for edits.
        row: The row of the batch.

    Raises:
        TypeError: If the prompt is neither.
        ValueError: If it has no tokens, or no such row, or the model has an encoder and a decoder.
    """
    if not isinstance(model, EditedModel):
        raise TypeError(f"pictures are of a ReftModel, got {type(model).__name__}.")
    if has_two_stacks(model.model):
        raise ValueError(
            f"{type(model.model).__name__} has an encoder and a decoder, which read different "
            "tokens; this picture is for models with one stack of layers."
        )
    inputs = _read(tokenizer, prompt)
    ids = inputs["input_ids"]
    if not -len(ids) <= row < len(ids):
        raise ValueError(f"there is no row {row}: the batch has {len(ids)} rows.")
    device = execution_device(model.model.get_input_embeddings(), model.model.device)
    one: Inputs = {n: _take_row(value, row, len(ids), device) for n, value in inputs.items()}
    ids, mask = one["input_ids"][0], one.get("attention_mask")
    if mask is not None and mask.shape != one["input_ids"].shape:
        raise ValueError(
            f"the attention_mask has the shape of input_ids, (1, {len(ids)}), got "
            f"{tuple(mask.shape)}."
        )
    columns = torch.ones_like(ids) if mask is None else mask[0]
    columns = columns.nonzero().flatten()
    if not len(columns):
        raise ValueError("the prompt has no tokens: give a text, or input_ids outside of padding.")
    # Without its padding, a row has the same numbers in any architecture.
    one |= {name: one[name][:, columns] for name in _BY_TOKEN if name in one}
    return Prompt(one, tuple(token_texts(tokenizer, ids[columns].tolist())))


def _read(tokenizer: PreTrainedTokenizerBase, prompt: str | Mapping[str, object]) -> Inputs:
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        if not ids:
            raise ValueError(f"the prompt {prompt!r} has no tokens: give a text.")
        return dict(tokenizer(prompt, return_tensors="pt"))
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("input_ids"), Tensor):
        raise TypeError(
            "a prompt is a text, or what a tokenizer returns for one with return_tensors='pt'; "
            f"got {type(prompt).__name__}."
        )
    ids = prompt["input_ids"]
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else None
        raise ValueError(f"input_ids have the shape (rows, tokens) with a token, got {shape}.")
    return dict(prompt)


def _take_row(value: object, row: int, rows: int, device: torch.device) -> object:
    """The row of a tensor or a list that has one for each row of the batch."""
    if isinstance(value, Tensor):
        value = value.to(device)
        return value[row : row + 1 or None] if value.dim() and len(value) == rows else value
    if isinstance(value, list) and len(value) == rows:
        return [value[row]]
    return value
