"""A batch -> where the prompt of each row ends. It is inferred; the caller does not specify it.

row        padding  prompt          completion     padding
labels     -100     -100 -100 -100  17  5  2       -100
Tokens     .        p    p    p     c   c  c       .

The decoder of an encoder-decoder model reads its labels shifted by one. Its prompt ends with the
token that predicts the first label:

labels     17       5    2          -100
decoder    start    17   5          2
Tokens     p        c    c          .
"""

from __future__ import annotations

import reprlib

import torch
from torch import Tensor

from pyreft.positions import Tokens


def find_tokens(
    shape: tuple[int, int],
    device: torch.device,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    completion_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    packed: bool = False,
    explicit: bool = False,
) -> Tokens:
    """Split the tokens of a batch into prompt, completion and padding.

    The first true entry of `completion_mask`, else the first label that is not -100, ends the
    prompt of its row; with neither, all tokens in the attention mask are the prompt. Labels that
    are not per token (classification) do not end a prompt.

    Args:
        shape: (B, T) of the batch.
        device: The device of the batch.
        input_ids: (B, T), if there are any; passed on to position functions.
        attention_mask: (B, T), zero on padding; no padding by default.
        labels: (B, T) labels, -100 where there is none; other shapes are ignored.
        completion_mask: (B, T), nonzero on the completion.
        position_ids: (B, T), if the caller gave any; they show if a row contains several texts.
        packed: Whether rows are known to contain several texts.
        explicit: Whether the end of the prompt does not matter, because the caller gives all
            positions or all are edited. Then a row of several texts is one prompt, and every row
            of a batch whose mask is not 2-D is one prompt.

    Raises:
        ValueError: If a row has no label at all, or a 2-D mask is not (B, T); or, unless positions
            are explicit, if the mask is not 2-D or a row holds several texts or answers.
        TypeError: If labels or a mask are not tensors.
    """
    text = torch.ones(shape, dtype=torch.bool, device=device)
    if isinstance(attention_mask, Tensor) and attention_mask.shape == shape:
        text = attention_mask.to(device=device, dtype=torch.bool)
    elif isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        raise ValueError(
            f"the attention mask must have the shape (batch, tokens) = {shape}, got "
            f"{tuple(attention_mask.shape)}."
        )
    elif attention_mask is not None and not explicit:
        raise ValueError(
            f"positions are found in an attention mask of shape (batch, tokens) = {shape}, got "
            f"{tuple(getattr(attention_mask, 'shape', ())) or type(attention_mask).__name__}. Give "
            "a 2-D mask, or explicit intervention_locations."
        )
    packed = packed or _is_packed(text, position_ids)
    if packed and not explicit:
        raise ValueError(
            "a row of the batch is packed (its position_ids start again, or cu_seq_lens or seq_idx "
            "came with it), so its prompts cannot be separated: give intervention_locations, or "
            "train on one text a row."
        )
    labels = None if labels is None else as_tensor("labels", labels)
    if completion_mask is not None and not packed:
        ends, source = as_tensor("completion_mask", completion_mask).bool(), "completion_mask"
        if ends.shape != shape:
            raise ValueError(
                f"completion_mask must have the shape (batch, tokens) = {shape}, got "
                f"{tuple(ends.shape)}."
            )
    elif labels is not None and labels.shape == shape and not packed:
        ends, source = labels != -100, "labels"
    else:
        return Tokens(prompt=text, completion=torch.zeros_like(text), input_ids=input_ids)
    ends = ends.to(device) & text
    _refuse_endless(ends, source)
    ended = ends.cumsum(1) > 0
    if source == "labels":
        _refuse_several(ends, text & ended)
    return Tokens(prompt=text & ~ended, completion=text & ended, input_ids=input_ids)


def find_decoder_tokens(
    shape: tuple[int, int],
    device: torch.device,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    predicts: Tensor | None = None,
    source: str = "labels",
    explicit: bool = False,
) -> Tokens:
    """Split the tokens of a decoder into prompt, completion and padding.

    Args:
        shape: (B, T) of the decoder's input.
        device: The device of the batch.
        input_ids, attention_mask: (B, T), of the decoder.
        predicts: (B, T), true where there is a label; None if all tokens are the prompt.
        source: The argument that `predicts` comes from, for errors.
        explicit: As for `find_tokens`.

    Raises:
        ValueError: If a row has no label, or a shape does not fit.
    """
    tokens = find_tokens(shape, device, input_ids, attention_mask, explicit=explicit)
    if predicts is None:
        return tokens
    if predicts.shape != shape:
        raise ValueError(
            f"{source} must have the shape of the decoder's input, (batch, tokens) = {shape}, got "
            f"{tuple(predicts.shape)}."
        )
    predicts = predicts.to(device)
    _refuse_endless(predicts, source)
    begun, left = predicts.cumsum(1) > 0, predicts.flip(1).cumsum(1).flip(1) > 0
    completion = torch.cat([torch.zeros_like(begun[:, :1]), begun[:, :-1]], dim=1)
    text = tokens.prompt & left
    return Tokens(prompt=text & ~completion, completion=text & completion, input_ids=input_ids)


def _refuse_several(labelled: Tensor, completion: Tensor) -> None:
    """Refuse labels that stop and begin again: they belong to several turns or texts."""
    again = ((completion & ~labelled).cumsum(1) > 0) & completion & labelled
    if bool(again.any()):
        row = int(again.any(1).int().argmax())
        raise ValueError(
            f"the labels of row {row} stop and begin again, as in a chat with several answers or "
            "in packed texts, and only the prompt of the first one would be edited. Make one "
            "example of each answer with pyreft.make_examples, or mark the end of the prompt with "
            "completion_mask."
        )


def as_tensor(name: str, value: object) -> Tensor:
    """The value, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {reprlib.repr(value)}.")
    return value


def require_mask(name: str, mask: object, shape: tuple[int, int], cached: int) -> Tensor:
    """The mask of a prompt (B, T), checked; it may include the tokens of a cache before it."""
    rows, count = shape
    found = tuple(as_tensor(name, mask).shape)
    if found not in (shape, (rows, cached + count)):
        wider = f"; with the {cached} tokens in the cache it may be {cached} wider"
        raise ValueError(
            f"{name} must have the shape of the prompt, (batch, tokens) = {shape}, got "
            f"{found}{wider if cached else ''}."
        )
    return as_tensor(name, mask)


def _refuse_endless(ends: Tensor, source: str) -> None:
    found = ends.any(1)
    if not bool(found.all()):
        raise ValueError(
            f"nothing ends the prompt of row {int(found.int().argmin())}: its {source} mark no "
            "token as completion. Drop the row, or check whether its completion was truncated."
        )


def _is_packed(text: Tensor, position_ids: Tensor | None) -> bool:
    """Whether position ids start again inside a row: then it contains several texts."""
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] != text.shape[1]:
        return False
    back = position_ids[:, 1:] <= position_ids[:, :-1]
    return bool((back.to(text.device) & text[:, 1:] & text[:, :-1]).any())


def shift_labels(labels: Tensor) -> Tensor:
    """(B, T), the label that each token of a decoder-only model predicts: the next token's."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=-100)
