"""The tokens of an edit, as indices.

mask (B, T)   . x . x      gather   the tokens of each row that has any, shorter rows filled up
              . . . .      scatter  the tokens that are actually edited
              . x . .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyreft.placement.placement import Placement


@dataclass(frozen=True)
class Slots:
    """The edited tokens, as indices into the flattened (B * T) tokens.

    Args:
        shape: (B, T).
        rows: (G,), the row of each group of tokens: the rows that have a token to edit.
        gather: (G, P), the tokens of each group, filled up with its first.
        scatter: (N,), the N <= G * P tokens that are actually edited.
        kept: (N,), their indices in the flattened `gather`, or None if nothing was filled up.
        mask: (B, T), in one graph: all tokens are gathered, and those outside of it are kept.
    """

    shape: tuple[int, int]
    rows: Tensor
    gather: Tensor
    scatter: Tensor
    kept: Tensor | None
    mask: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor, even_if_none: bool = False) -> Slots | None:
        """From a (B, T) mask.

        Args:
            mask: (B, T), the tokens to edit.
            even_if_none: Whether a mask that selects nothing gives slots, which gather the first
                token of each row and edit none, instead of None.
        """
        batch, length = mask.shape
        rows, columns = mask.nonzero(as_tuple=True)
        if rows.numel() == 0:
            every = torch.arange(batch, device=mask.device)
            first = every[:, None] * length
            return cls((batch, length), every, first, rows, rows) if even_if_none else None
        some = mask.any(1)
        here = some.nonzero().flatten()
        order = (mask.long().cumsum(1) - 1)[rows, columns]
        groups, count = len(here), int(order.max()) + 1
        scatter = rows * length + columns
        if scatter.numel() == groups * count:
            return cls((batch, length), here, scatter.view(groups, count), scatter, None)
        group = (some.long().cumsum(0) - 1)[rows]
        first = here * length + mask[here].int().argmax(1)
        gather = first[:, None].repeat(1, count)
        gather[group, order] = scatter
        return cls((batch, length), here, gather, scatter, group * count + order)

    @classmethod
    def in_graph(cls, mask: Tensor) -> Slots:
        """All tokens, of which an edit is kept where the (B, T) mask is true."""
        batch, length = mask.shape
        every = torch.arange(batch * length, device=mask.device)
        rows = torch.arange(batch, device=mask.device)
        return cls((batch, length), rows, every.view(batch, length), every, None, mask)


def slots_of(placement: Placement, even_if_none: bool = False) -> dict[int, Slots]:
    """The slots of every mask that selects a token, or of all; one mask object has one `Slots`.

    Args:
        placement: The masks by the index of the intervention.
        even_if_none: See `Slots.from_mask`.
    """
    masks = placement.masks
    if placement.in_graph:
        return {index: Slots.in_graph(mask) for index, mask in masks.items()}
    made: dict[int, Slots | None] = {}
    for mask in masks.values():
        if id(mask) not in made:
            made[id(mask)] = Slots.from_mask(mask, even_if_none)
    found = ((index, made[id(mask)]) for index, mask in masks.items())
    return {index: slots for index, slots in found if slots is not None}


def join_slots(several: Sequence[Slots]) -> Slots:
    """Concatenate the groups of all, filled up to the largest number of positions."""
    if len(several) == 1:
        return several[0]
    longest = max(slots.gather.shape[1] for slots in several)
    gathers, kept, before = [], [], 0
    for slots in several:
        groups, count = slots.gather.shape
        fill = slots.gather[:, :1].expand(-1, longest - count)
        gathers.append(torch.cat([slots.gather, fill], dim=1))
        inside = slots.kept
        if inside is None:
            inside = torch.arange(groups * count, device=slots.gather.device)
        kept.append((before + inside // count) * longest + inside % count)
        before += groups
    rows, scatter = torch.cat([s.rows for s in several]), torch.cat([s.scatter for s in several])
    gather, indices = torch.cat(gathers), torch.cat(kept)
    full = indices.numel() == gather.numel()
    return Slots(several[0].shape, rows, gather, scatter, None if full else indices)
