"""Tokens + position specs -> which tokens every intervention edits.

Placement    (B, T) masks, one for each intervention     once per batch, or once per prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyreft.base_model.towers import TOWER
from pyreft.config import share_no_head
from pyreft.placement.boundary import as_tensor
from pyreft.placement.targets import Target
from pyreft.positions import NO_POSITION, PositionSpec, Tokens
from pyreft.positions.spans import Ends, widest

if TYPE_CHECKING:
    from pyreft.placement.hidden_tokens import HiddenTokens

# For one intervention, the directions to edit in each row; or a dict that is passed unchanged to
# a user-defined module.
Directions = Sequence[Sequence[int]] | Mapping[str, object]
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Placement:
    """Which tokens every intervention edits.

    Args:
        masks: (B, T) bool for each intervention, by index. Interventions of one spec share one.
        generated: Indices of the interventions that edit generated tokens as well.
        subspaces: For an intervention, the directions to edit for each row.
        rows: (B,) bool, the rows that this adapter edits, or None for all.
        in_order: Whether several interventions may edit one token, each given the result of the
            one before it, as in upstream's convention.
        hidden_tokens: The interventions that have no mask, because only the hidden state shows
            their tokens.
        in_graph: Whether the masks are values in a graph, on which no shape may depend.
    """

    masks: dict[int, Tensor]
    generated: frozenset[int] = frozenset()
    subspaces: Mapping[int, Directions] = field(default_factory=dict)
    rows: Tensor | None = None
    in_order: bool = False
    hidden_tokens: HiddenTokens | None = None
    in_graph: bool = False

    @cached_property
    def length(self) -> int:
        """T, the number of columns of the batch."""
        return next(iter(self.masks.values())).shape[1]

    def in_rows(self, rows: Tensor, batch: int) -> Placement:
        """Expand the placement of some rows to the whole batch; the other rows are not edited.

        Args:
            rows: (b,), the rows of the batch that these masks (b, T) belong to.
            batch: B, the number of rows of the batch.
        """
        device = next((mask.device for mask in self.masks.values()), rows.device)
        rows = rows.to(device)
        here = torch.zeros(batch, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        spread: dict[int, Tensor] = {}
        for mask in self.masks.values():
            if id(mask) not in spread:
                whole = mask.new_zeros(batch, mask.shape[1])
                spread[id(mask)] = whole.index_copy(0, rows, mask)
        masks = {index: spread[id(mask)] for index, mask in self.masks.items()}
        later = self.hidden_tokens and replace(self.hidden_tokens, rows=rows, batch=batch)
        return replace(self, masks=masks, rows=here, hidden_tokens=later)

    def keep_logits(
        self, targets: Sequence[Target], kept: int | slice | Tensor | None
    ) -> Placement:
        """The placement in a forward pass whose head runs on some columns only.

        Args:
            targets: The targets of the interventions.
            kept: `logits_to_keep` of the pass: the number of last columns, 0 for all, or an index
                of columns; None if it is not given.
        """
        if kept is None:
            return self
        columns = slice(-kept, None) if isinstance(kept, int) else kept
        heads = [target.component.in_head for target in targets]
        masks = {i: m[:, columns] if heads[i] else m for i, m in self.masks.items()}
        return replace(self, masks=masks)


def place(
    targets: Sequence[Target],
    tokens: Mapping[str | None, Tokens],
    explicit: Tensor | None = None,
    subspaces: Mapping[int, Directions] | None = None,
    in_order: bool = False,
    site: int | None = None,
) -> Placement | None:
    """Select the tokens that every intervention edits.

    Args:
        targets: The targets of the I interventions.
        tokens: The batch, as each stack of the model sees it; interventions in other stacks are
            not placed.
        explicit: (B, I, P) or (B, 1, P) positions that override those of the interventions.
            A position is the index of a token in its sequence, padding not counted; negative
            ones count from the end of the prompt, and -100 is none. A row that is all completion
            counts as one prompt.
        subspaces: For an intervention, the directions to edit for each row.
        in_order: Whether several interventions may edit one token, one after the other.
        site: Place only the interventions there; all by default.

    Returns:
        The placement, or None if no intervention has positions in these stacks.

    Raises:
        ValueError: If a position is outside the prompt, the shape of `explicit` does not fit, or
            two interventions of one layer edit the same token.
    """
    if explicit is not None:
        masks = _explicit_masks(targets, tokens, explicit, site)
    else:
        masks = _spec_masks(targets, tokens, site)
    if not masks:
        return None
    collision = _find_collision(targets, masks)
    if collision is not None and not in_order:
        other, index, row, column = collision
        raise ValueError(
            f"interventions {other} and {index} both edit {targets[index].config.place}, at column "
            f"{column} of row {row}: positions of interventions on one layer must be disjoint (Wu "
            "et al. 2024, section 3)."
        )
    completion = frozenset(
        index
        for index in masks
        if explicit is None and (spec := targets[index].positions) and spec.edits_completion
    )
    return Placement(masks, completion, subspaces or {}, in_order=collision is not None)


def place_generated(
    targets: Sequence[Target],
    stack: str | None,
    text: Tensor,
    subspaces: Mapping[int, Directions],
) -> Placement | None:
    """Select generated tokens: only `all` and `completion` edit them.

    Args:
        targets, subspaces: As for `place`.
        stack: The stack that generates.
        text: (B, T) bool, true on the tokens that are not padding.
    """
    masks = {
        index: text
        for index, target in enumerate(targets)
        if target.component.stack == stack and (spec := target.positions) and spec.edits_completion
    }
    return Placement(masks, subspaces=subspaces) if masks else None


def _spec_masks(
    targets: Sequence[Target],
    tokens: Mapping[str | None, Tokens],
    site: int | None,
) -> dict[int, Tensor]:
    specs = {
        index: target.positions
        for index, target in enumerate(targets)
        if target.positions is not None
        and target.component.stack in tokens
        and site in (None, target.site)
    }
    at_site: dict[int, list[Ends]] = {}
    for index, spec in specs.items():
        at_site.setdefault(targets[index].site, []).append(spec.ends)
    sizes = {number: widest(several) for number, several in at_site.items()}
    # Specs of one stack share what is counted in its tokens.
    seen: dict[str | None, Tokens] = {}
    chosen: dict[tuple[PositionSpec, Ends, str | None], Tensor] = {}
    masks = {}
    for index, spec in specs.items():
        size, component = sizes[targets[index].site], targets[index].component
        stack = component.stack
        if stack not in seen:
            seen[stack] = replace(tokens[stack], kinds=component.kinds)
        key = (spec, size, stack)
        if key not in chosen:
            chosen[key] = spec.select(seen[stack], site=size)
        masks[index] = chosen[key]
    return masks


def _explicit_masks(
    targets: Sequence[Target],
    tokens: Mapping[str | None, Tokens],
    explicit: Tensor,
    site: int | None,
) -> dict[int, Tensor]:
    if as_tensor("intervention_locations", explicit).dtype not in _INTEGERS:
        raise TypeError(f"intervention_locations are integers, got {explicit.dtype}.")
    batch = len(next(iter(tokens.values())).prompt)
    if explicit.dim() != 3 or explicit.shape[0] != batch:
        raise ValueError(
            "intervention_locations must have the shape (batch, interventions, positions) with "
            f"batch = {batch}, got {tuple(explicit.shape)}."
        )
    if explicit.shape[1] not in (1, len(targets)):
        raise ValueError(
            f"intervention_locations are for {explicit.shape[1]} interventions, the model has "
            f"{len(targets)}. With f+l positions and weights that are not shared there are "
            "two interventions for each layer."
        )
    masks: dict[int, Tensor] = {}
    for stack, seen in tokens.items():
        here = [
            index
            for index, target in enumerate(targets)
            if target.component.stack == stack and site in (None, target.site)
        ]
        if here and explicit.shape[1] == 1:
            masks |= dict.fromkeys(here, _select_explicit(explicit, seen, stack)[:, 0])
        elif here:
            chosen = _select_explicit(explicit[:, here], seen, stack)
            masks |= {index: chosen[:, i] for i, index in enumerate(here)}
    return masks


def _select_explicit(explicit: Tensor, tokens: Tokens, stack: str | None) -> Tensor:
    """(B, I, P) positions -> (B, I, T) bool."""
    explicit = explicit.to(device=tokens.prompt.device, dtype=torch.long)
    # If the labels begin with a row's first token, positions count all tokens of the row.
    prompt = torch.where(tokens.prompt_length > 0, tokens.prompt, tokens.text)
    n, length = prompt.sum(1)[:, None, None], prompt.shape[1]  # (B, 1, 1), T
    none = explicit == NO_POSITION
    outside = ~none & ((explicit >= n) | (explicit < -n))
    if bool(outside.any()):
        row, _, slot = (int(i) for i in outside.nonzero()[0])
        given = int(explicit[outside][0])
        where = "the prompt" if stack is None else f"the prompt of the {stack}"
        where = "what this part of the model reads" if stack == TOWER else where
        raise ValueError(
            f"position {given} (row {row}, slot {slot}) is outside {where}, which has "
            f"{int(n[row])} tokens. Positions count the tokens of the prompt without padding, also "
            f"with left padding; {NO_POSITION} stands for no position."
        )
    wanted = torch.where(explicit < 0, explicit + n, explicit).masked_fill(none, length)
    hit = torch.zeros(*wanted.shape[:2], length + 1, dtype=torch.bool, device=wanted.device)
    hit.scatter_(2, wanted, True)
    index = tokens.index.clamp(min=0)[:, None, :].expand(-1, wanted.shape[1], -1)
    return hit.gather(2, index) & prompt[:, None, :]


def _find_collision(
    targets: Sequence[Target], masks: dict[int, Tensor]
) -> tuple[int, int, int, int] | None:
    """The first token that two interventions edit: both of them, its row and its column."""
    for index, mask in masks.items():
        for other in range(index):
            if other not in masks or targets[other].site != targets[index].site:
                continue
            if share_no_head(targets[index].config, targets[other].config):
                continue
            if bool((both := mask & masks[other]).any()):
                row, column = (int(i) for i in both.nonzero()[0])
                return other, index, row, column
    return None
