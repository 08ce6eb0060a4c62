"""Tokens + position specs -> which tokens every intervention edits.

Site         where an intervention acts, and so whose tokens it sees
Placement    (B, T) masks, one for each intervention     once a batch, or once a prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyreft.config import InterventionConfig, require_disjoint, share_no_head
from pyreft.modeling.boundary import as_tensor
from pyreft.modeling.slots import Slots
from pyreft.positions import NO_POSITION, PositionSpec, Tokens

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Site(NamedTuple):
    """Where an intervention acts.

    Args:
        number: The same for all that edit the same hidden state.
        stack: "encoder" or "decoder", in a model with both.
        in_head: Whether it is in the output head.
    """

    number: int
    stack: str | None = None
    in_head: bool = False


@dataclass(frozen=True)
class Placement:
    """Which tokens every intervention edits.

    Args:
        masks: (B, T) bool for each intervention, by index. Interventions of one spec share one.
        generated: Indices of the interventions that edit generated tokens as well.
        subspaces: For an intervention, the directions to edit for each row.
        rows: (B,) bool, the rows that are edited at all, or None for all; others are another
            adapter's.
        in_order: Whether a token may have several interventions, each of which sees what those
            before it made, as in upstream's convention.
    """

    masks: dict[int, Tensor]
    generated: frozenset[int] = frozenset()
    subspaces: Mapping[int, Sequence | Mapping] = field(default_factory=dict)
    rows: Tensor | None = None
    in_order: bool = False

    @property
    def length(self) -> int:
        """T, the number of columns of the batch."""
        return next(iter(self.masks.values())).shape[1]

    def in_rows(self, rows: Tensor, batch: int) -> Placement:
        """The placement of some rows as one of the whole batch, whose other rows it leaves alone.

        Args:
            rows: (b,), the rows of the batch that these masks (b, T) are of.
            batch: B, the number of rows of the batch.
        """
        rows = rows.to(next(iter(self.masks.values())).device)
        here = torch.zeros(batch, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        spread: dict[int, Tensor] = {}
        for mask in self.masks.values():
            if id(mask) not in spread:
                whole = mask.new_zeros(batch, mask.shape[1])
                spread[id(mask)] = whole.index_copy(0, rows, mask)
        masks = {index: spread[id(mask)] for index, mask in self.masks.items()}
        return replace(self, masks=masks, rows=here)

    def keep_logits(self, sites: Sequence[Site], kept: Any) -> Placement:
        """The placement in a forward pass whose head runs on some columns alone.

        Args:
            sites: Where each intervention acts.
            kept: `logits_to_keep` of the pass: the number of last columns, 0 for all, or what
                indexes them; None if it is not given.
        """
        if kept is None:
            return self
        columns = slice(-kept, None) if isinstance(kept, int) else kept
        masks = {i: m[:, columns] if sites[i].in_head else m for i, m in self.masks.items()}
        return replace(self, masks=masks)

    def slots(self, even_if_none: bool = False) -> dict[int, Slots]:
        """The slots of every intervention that edits anything, or of all that have a mask."""
        made: dict[int, Slots | None] = {}
        for mask in self.masks.values():
            if id(mask) not in made:
                made[id(mask)] = Slots.from_mask(mask, even_if_none)
        found = ((index, made[id(mask)]) for index, mask in self.masks.items())
        return {index: slots for index, slots in found if slots is not None}


def require_places(interventions: Sequence[InterventionConfig], sites: Sequence[Site]) -> None:
    """Refuse positions that meet, or that no batch has.

    Raises:
        ValueError: If two specs at one site have a token in common in every long prompt, or one
            asks an encoder for a completion.
    """
    require_disjoint(interventions, sites)
    for config, site in zip(interventions, sites, strict=True):
        spec = config.positions
        if site.stack == "encoder" and spec and spec.edits_completion and not spec.edits_all:
            raise ValueError(
                f"{config.place} is in the encoder, which reads the prompt and no completion, so "
                f"{spec!r} has no place there: the completion is in the decoder, as in "
                '"decoder_block_output".'
            )


def place(
    interventions: Sequence[InterventionConfig],
    sites: Sequence[Site],
    tokens: Mapping[str | None, Tokens],
    explicit: Tensor | None = None,
    subspaces: Mapping[int, Sequence | Mapping] | None = None,
    in_order: bool = False,
) -> Placement | None:
    """Choose the tokens of every intervention.

    Args:
        interventions: The I interventions.
        sites: Where each acts.
        tokens: The batch, as each stack of the model sees it; interventions in a stack that is
            not among them are not placed.
        explicit: (B, I, P) or (B, 1, P) positions that win over those of the interventions.
            A position is the index of a token in its sequence, padding not counted; negative
            ones count from the end of the prompt, and -100 is none. A row that is all completion
            counts as one prompt.
        subspaces: For an intervention, the directions to edit for each row.
        in_order: Whether several may edit one token, one after the other.

    Returns:
        The placement, or None if no intervention has positions there.

    Raises:
        ValueError: If a position is outside the prompt, the shape of `explicit` does not fit, or
            two interventions of one layer meet on a token.
    """
    if explicit is not None:
        masks = _explicit_masks(sites, tokens, explicit)
    else:
        masks = _spec_masks(interventions, sites, tokens)
    if not masks:
        return None
    collision = _find_collision(interventions, sites, masks)
    if collision is not None and not in_order:
        other, index, row, column = collision
        raise ValueError(
            f"interventions {other} and {index} both edit {interventions[index].place}, at column "
            f"{column} of row {row}: positions of interventions on one layer must be disjoint (Wu "
            "et al. 2024, section 3)."
        )
    completion = frozenset(
        index
        for index in masks
        if explicit is None and (spec := interventions[index].positions) and spec.edits_completion
    )
    return Placement(masks, completion, subspaces or {}, in_order=collision is not None)


def place_generated(
    interventions: Sequence[InterventionConfig],
    sites: Sequence[Site],
    stack: str | None,
    text: Tensor,
    subspaces: Mapping[int, Sequence | Mapping],
) -> Placement | None:
    """Choose among generated tokens: only `all` and `completion` edit them.

    Args:
        interventions, sites, subspaces: As for `place`.
        stack: The stack that generates.
        text: (B, T) bool, true on the tokens that are not padding.
    """
    masks = {
        index: text
        for index, config in enumerate(interventions)
        if sites[index].stack == stack and (spec := config.positions) and spec.edits_completion
    }
    return Placement(masks, subspaces=subspaces) if masks else None


def _spec_masks(
    interventions: Sequence[InterventionConfig],
    sites: Sequence[Site],
    tokens: Mapping[str | None, Tokens],
) -> dict[int, Tensor]:
    specs = {
        index: config.positions
        for index, config in enumerate(interventions)
        if config.positions is not None and sites[index].stack in tokens
    }
    chosen: dict[tuple[PositionSpec, tuple[int, int], str | None], Tensor] = {}
    masks = {}
    for index, spec in specs.items():
        beside = [other for i, other in specs.items() if sites[i] == sites[index]]
        size = (max(other.first for other in beside), max(other.last for other in beside))
        key = (spec, size, sites[index].stack)
        if key not in chosen:
            chosen[key] = spec.select(tokens[sites[index].stack], site=size)
        masks[index] = chosen[key]
    return masks


def _explicit_masks(
    sites: Sequence[Site], tokens: Mapping[str | None, Tokens], explicit: Tensor
) -> dict[int, Tensor]:
    if as_tensor("intervention_locations", explicit).dtype not in _INTEGERS:
        raise TypeError(f"intervention_locations are integers, got {explicit.dtype}.")
    batch = len(next(iter(tokens.values())).prompt)
    if explicit.dim() != 3 or explicit.shape[0] != batch:
        raise ValueError(
            "intervention_locations must have the shape (batch, interventions, positions) with "
            f"batch = {batch}, got {tuple(explicit.shape)}."
        )
    if explicit.shape[1] not in (1, len(sites)):
        raise ValueError(
            f"intervention_locations are for {explicit.shape[1]} interventions, the model has "
            f"{len(sites)}. With f+l positions and weights that are not shared there are "
            "two interventions for each layer."
        )
    masks: dict[int, Tensor] = {}
    for stack, seen in tokens.items():
        here = [index for index, site in enumerate(sites) if site.stack == stack]
        if here and explicit.shape[1] == 1:
            masks |= dict.fromkeys(here, _select_explicit(explicit, seen, stack)[:, 0])
        elif here:
            chosen = _select_explicit(explicit[:, here], seen, stack)
            masks |= {index: chosen[:, i] for i, index in enumerate(here)}
    return masks


def _select_explicit(explicit: Tensor, tokens: Tokens, stack: str | None) -> Tensor:
    """(B, I, P) positions -> (B, I, T) bool."""
    explicit = explicit.to(device=tokens.prompt.device, dtype=torch.long)
    # Where labels begin with a row's first token, all of it is what positions count.
    prompt = torch.where(tokens.prompt_length > 0, tokens.prompt, tokens.text)
    n, length = prompt.sum(1)[:, None, None], prompt.shape[1]  # (B, 1, 1), T
    none = explicit == NO_POSITION
    outside = ~none & ((explicit >= n) | (explicit < -n))
    if bool(outside.any()):
        row, _, slot = (int(i) for i in outside.nonzero()[0])
        given = int(explicit[outside][0])
        where = "the prompt" if stack is None else f"the prompt of the {stack}"
        raise ValueError(
            f"position {given} (row {row}, slot {slot}) is outside {where}, which has "
            f"{int(n[row])} tokens. Positions count the tokens of the prompt, padding not "
            f"counted, also under left padding; {NO_POSITION} stands for no position."
        )
    wanted = torch.where(explicit < 0, explicit + n, explicit).masked_fill(none, length)
    hit = torch.zeros(*wanted.shape[:2], length + 1, dtype=torch.bool, device=wanted.device)
    hit.scatter_(2, wanted, True)
    index = tokens.index.clamp(min=0)[:, None, :].expand(-1, wanted.shape[1], -1)
    return hit.gather(2, index) & prompt[:, None, :]


def _find_collision(
    interventions: Sequence[InterventionConfig], sites: Sequence[Site], masks: dict[int, Tensor]
) -> tuple[int, int, int, int] | None:
    """The first token that two interventions edit: both of them, its row and its column."""
    for index, mask in masks.items():
        for other in range(index):
            if other not in masks or sites[other] != sites[index]:
                continue
            if share_no_head(interventions[index], interventions[other]):
                continue
            if bool((both := mask & masks[other]).any()):
                row, column = (int(i) for i in both.nonzero()[0])
                return other, index, row, column
    return None
