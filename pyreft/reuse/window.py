"""A batch -> the tokens that must be computed, and what they need from the others.

row        padding  p  p  p  p  c  c  padding        p: prompt, c: completion, e: first edited
                          e
prefix                 p  p                          keys and values are known
window                       p  p  c                 computed, at their original positions
targets                      -  c  c                 what they predict; the last predicts nothing

Prefixes are padded on the left, windows on the right, so that a row has no gap: distances between
tokens are those of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyreft.annotations import Arguments
from pyreft.editing.pass_plan import Placed
from pyreft.placement.boundary import shift_labels
from pyreft.reuse.plan import NotReusableError

# Supported columns of a batch. Those of `ReftModel` are already in the placement.
_KNOWN = frozenset({"input_ids", "attention_mask", "labels", "position_ids"})


@dataclass(frozen=True)
class Window:
    """The part of a batch that is computed.

    Args:
        inputs: The arguments of the base model: columns (B, W); an attention_mask (B, P + W).
        placed: The edits in the window.
        rows: The token ids of each row, without padding, from its first to the last of the window.
        starts: The index in its row of the first token of each window.
        length: P, the length of the longest prefix.
        size: (B, T) of the batch.
    """

    inputs: dict[str, Tensor]
    placed: list[Placed]
    rows: list[Tensor]
    starts: list[int]
    length: int
    size: tuple[int, int]


def text_columns(ids: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T) bool, false on padding."""
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise NotReusableError(f"the batch has an attention mask of shape {tuple(mask.shape)}")
    return mask.bool()


def cut(
    inputs: Arguments,
    placed: Sequence[Placed],
    tokens: bool,
    pad: int | None,
    shifted: bool,
) -> Window:
    """Cut a batch down to the tokens that are computed.

    Args:
        inputs: The batch, without arguments that are only for edits.
        placed: The edits.
        tokens: Whether tokens before the first edited one are left out.
        pad: The token that a classifier treats as padding.
        shifted: Whether to shift labels in the window to the tokens that predict them. The last
            labelled token, which predicts nothing, is then left out.

    Raises:
        NotReusableError: If the batch has unsupported columns, masks, positions or labels.
    """
    if unknown := sorted(inputs.keys() - _KNOWN):
        raise NotReusableError(f"the batch has {', '.join(unknown)}")
    if "input_ids" not in inputs:
        raise NotReusableError("the batch has no input_ids")
    ids = inputs["input_ids"]
    text = text_columns(ids, inputs.get("attention_mask"))
    left, n = text.int().argmax(1), text.sum(1)  # (B,)
    column = torch.arange(ids.shape[1], device=ids.device)
    index = column - left[:, None]  # (B, T), of a token in its row
    if not torch.equal((index >= 0) & (index < n[:, None]), text):
        raise NotReusableError("the attention mask of a row has gaps")
    given = inputs.get("position_ids")
    if given is not None and not torch.equal(given.expand_as(ids)[text], index[text]):
        raise NotReusableError("the batch has position_ids that do not count its tokens")
    labels = inputs.get("labels")
    first, end, by_token = n, n, None
    if labels is not None and labels.shape == ids.shape and not labels.is_floating_point():
        by_token = labels
        first, end = _labelled(labels, text, left, n)
        if shifted:
            by_token = shift_labels(labels)
            end = (end - 1).clamp(min=1)
    elif shifted and labels is not None:
        raise NotReusableError(f"the batch has labels of shape {tuple(labels.shape)}")
    elif pad is not None and bool((ids[text] == pad).any()):
        raise NotReusableError("a text of the batch has the padding token inside")
    start = torch.zeros_like(n)
    if tokens:
        start = torch.minimum(_first_edit(placed, left, n), first - 1).clamp(min=0)
        start = torch.minimum(start, end - 1)
    return _window(inputs, placed, by_token, (left, start, end), 0 if pad is None else pad)


def _labelled(labels: Tensor, text: Tensor, left: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) index of the first label of each row, and the index after its last one."""
    labelled = labels != -100
    if bool((labelled & ~text).any()):
        raise NotReusableError("the batch has labels on padding")
    some, width = labelled.any(1), labels.shape[1]
    first = labelled.int().argmax(1) - left
    if bool((some & (first == 0) & (left > 0)).any()):
        # The base model predicts this label from the padding before the token.
        raise NotReusableError("the first token of a row padded on the left has a label")
    end = width - labelled.flip(1).int().argmax(1) - left
    return torch.where(some, first, n), torch.where(some, end, n)


def _first_edit(placed: Sequence[Placed], left: Tensor, n: Tensor) -> Tensor:
    """(B,) index of the first edited token of each row; its length if there is none."""
    first = n
    masks = [mask for one in placed for mask in one.placement.masks.values()]
    for mask in {id(m): m for m in masks}.values():
        mask = mask.to(n.device)
        found = torch.where(mask.any(1), mask.int().argmax(1) - left, n)
        first = torch.minimum(first, found)
    return first


def _window(
    inputs: Arguments,
    placed: Sequence[Placed],
    by_token: Tensor | None,
    where: tuple[Tensor, Tensor, Tensor],
    pad: int,
) -> Window:
    ids, (left, start, end) = inputs["input_ids"], where
    lengths, starts, lefts = (x.tolist() for x in ((end - start), start, left))
    width, prefix = max(lengths), max(starts)
    step = torch.arange(width, device=ids.device)
    inside = step < (end - start)[:, None]  # (B, W)
    columns = ((left + start)[:, None] + step).clamp(max=ids.shape[1] - 1)
    before = torch.arange(prefix, device=ids.device) >= prefix - start[:, None]  # (B, P)
    made = {
        "input_ids": ids.gather(1, columns).masked_fill(~inside, pad),
        "attention_mask": torch.cat([before, inside], dim=1).long(),
        # Clamped after the end, because a table of positions may end there.
        "position_ids": torch.minimum(start[:, None] + step, end[:, None] - 1),
    }
    if by_token is not None:
        made["labels"] = by_token.gather(1, columns).masked_fill(~inside, -100)
    elif "labels" in inputs:
        made["labels"] = inputs["labels"]
    moved = [_moved(one, columns, inside) for one in placed]
    rows = [row[a : a + e] for row, a, e in zip(ids, lefts, end.tolist(), strict=True)]
    return Window(made, moved, rows, starts, prefix, (ids.shape[0], ids.shape[1]))


def _moved(one: Placed, columns: Tensor, inside: Tensor) -> Placed:
    """The edits of an adapter in a window (B, W); `columns` are its columns in the batch."""
    masks = one.placement.masks
    # Interventions that share a mask still share one.
    cut = {id(m): m.to(columns.device).gather(1, columns) & inside for m in masks.values()}
    moved = {index: cut[id(mask)] for index, mask in masks.items()}
    return replace(one, placement=replace(one.placement, masks=moved))
