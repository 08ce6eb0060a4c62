"""Tokens + position specs -> which tokens every intervention edits, and how they are reached.

Placement    (B, T) masks, one for each intervention     once a batch, or once a prompt
Slots        indices of the edited tokens                once a forward pass
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyreft.config import InterventionConfig
from pyreft.modeling.boundary import as_tensor
from pyreft.positions import NO_POSITION, PositionSpec, Tokens


@dataclass(frozen=True)
class Slots:
    """The edited tokens of one intervention, as indices into the flattened (B * T) tokens.

    Args:
        shape: (B, T).
        gather: (B, P), the tokens of each row, rows with fewer than P filled up with their first.
        scatter: (N,), the N <= B * P tokens that are really edited.
        kept: (N,), where those lie in the flattened `gather`, or None if it is full.
    """

    shape: tuple[int, int]
    gather: Tensor
    scatter: Tensor
    kept: Tensor | None

    @classmethod
    def from_mask(cls, mask: Tensor, even_if_none: bool = False) -> Slots | None:
        """From a (B, T) mask.

        Args:
            mask: (B, T), the tokens to edit.
            even_if_none: For a mask that chooses nothing, slots that gather the first token of
                each row and edit none, in place of None.
        """
        rows, columns = mask.nonzero(as_tuple=True)
        batch, length = mask.shape
        if rows.numel() == 0:
            first = torch.arange(batch, device=mask.device)[:, None] * length
            return cls((batch, length), first, rows, rows) if even_if_none else None
        order = (mask.long().cumsum(1) - 1)[rows, columns]
        count = int(order.max()) + 1
        scatter = rows * length + columns
        if scatter.numel() == batch * count:
            return cls((batch, length), scatter.view(batch, count), scatter, None)
        first = torch.arange(batch, device=mask.device) * length + mask.int().argmax(1)
        gather = first[:, None].repeat(1, count)
        gather[rows, order] = scatter
        return cls((batch, length), gather, scatter, rows * count + order)


@dataclass(frozen=True)
class Placement:
    """Which tokens every intervention edits.

    Args:
        masks: (B, T) bool for each intervention, by index. Interventions of one spec share one.
        generated: Indices of the interventions that edit generated tokens as well.
        subspaces: For an intervention, the directions to edit for each row.
    """

    masks: dict[int, Tensor]
    generated: frozenset[int] = frozenset()
    subspaces: Mapping[int, Sequence] = field(default_factory=dict)

    def window(self, start: int, length: int, rows: int) -> Placement | None:
        """The part seen by one step of generation.

        Args:
            start: Number of tokens that are in the cache already.
            length: Number of tokens of this step.
            rows: Rows of this step: those of the prompt, each repeated for its beams.

        Returns:
            Masks of shape (rows, length), or None if the step edits nothing.
        """
        prompt_length = next(iter(self.masks.values())).shape[1]
        if start >= prompt_length and not self.generated:
            return None
        cut: dict[tuple[int, bool], Tensor] = {}
        masks = {}
        for index, mask in self.masks.items():
            key = (id(mask), index in self.generated)
            if key not in cut:
                cut[key] = _window(mask, start, length, rows, index in self.generated)
            masks[index] = cut[key]
        subspaces = {index: repeat(given, rows) for index, given in self.subspaces.items()}
        return Placement(masks, self.generated, subspaces)

    def slots(self, even_if_none: bool = False) -> dict[int, Slots]:
        """The slots of every intervention that edits anything, or of all that have a mask."""
        made: dict[int, Slots | None] = {}
        for mask in self.masks.values():
            if id(mask) not in made:
                made[id(mask)] = Slots.from_mask(mask, even_if_none)
        found = ((index, made[id(mask)]) for index, mask in self.masks.items())
        return {index: slots for index, slots in found if slots is not None}


def _window(mask: Tensor, start: int, length: int, rows: int, generated: bool) -> Tensor:
    seen = mask[:, start : start + length]
    if seen.shape[1] < length:
        rest = seen.new_full((mask.shape[0], length - seen.shape[1]), generated)
        seen = torch.cat([seen, rest], dim=1)
    return seen.repeat_interleave(rows // mask.shape[0], dim=0)


def repeat(given: Sequence, rows: int) -> list:
    """A list for each row of the prompt -> one for each row of the step."""
    return [one for one in given for _ in range(rows // len(given))]


def place(
    interventions: Sequence[InterventionConfig],
    sites: Sequence[int],
    tokens: Tokens,
    explicit: Tensor | None = None,
    subspaces: Mapping[int, Sequence] | None = None,
) -> Placement | None:
    """Choose the tokens of every intervention.

    Args:
        interventions: The I interventions.
        sites: For each of them a number; those that edit the same hidden state have the same.
        tokens: The batch.
        explicit: (B, I, P) or (B, 1, P) positions that win over those of the interventions.
            A position is the index of a token in its sequence, padding not counted; negative
            ones count from the end of the prompt, and -100 is none.
        subspaces: For an intervention, the directions to edit for each row.

    Returns:
        The placement, or None if no intervention has positions.

    Raises:
        ValueError: If a position is outside the prompt, the shape of `explicit` does not fit, or
            two interventions of one layer meet on a token.
    """
    if explicit is not None:
        masks = _explicit_masks(interventions, tokens, explicit)
    else:
        masks = _spec_masks(interventions, sites, tokens)
    if not masks:
        return None
    _refuse_collisions(interventions, sites, masks)
    completion = frozenset(
        index
        for index in masks
        if explicit is None and (spec := interventions[index].positions) and spec.edits_completion
    )
    return Placement(masks, completion, subspaces or {})


def _spec_masks(
    interventions: Sequence[InterventionConfig], sites: Sequence[int], tokens: Tokens
) -> dict[int, Tensor]:
    specs = {i: c.positions for i, c in enumerate(interventions) if c.positions is not None}
    chosen: dict[tuple[PositionSpec, tuple[int, int]], Tensor] = {}
    masks = {}
    for index, spec in specs.items():
        beside = [other for i, other in specs.items() if sites[i] == sites[index]]
        size = (max(other.first for other in beside), max(other.last for other in beside))
        if (spec, size) not in chosen:
            chosen[spec, size] = spec.select(tokens, site=size)
        masks[index] = chosen[spec, size]
    return masks


def _explicit_masks(
    interventions: Sequence[InterventionConfig], tokens: Tokens, explicit: Tensor
) -> dict[int, Tensor]:
    batch, length = tokens.prompt.shape
    if as_tensor("intervention_locations", explicit).dtype.is_floating_point:
        raise TypeError(f"intervention_locations are integers, got {explicit.dtype}.")
    if explicit.dim() != 3 or explicit.shape[0] != batch:
        raise ValueError(
            "intervention_locations must have the shape (batch, interventions, positions) with "
            f"batch = {batch}, got {tuple(explicit.shape)}."
        )
    if explicit.shape[1] not in (1, len(interventions)):
        raise ValueError(
            f"intervention_locations are for {explicit.shape[1]} interventions, the model has "
            f"{len(interventions)}. With f+l positions and weights that are not shared there are "
            "two interventions for each layer."
        )
    explicit = explicit.to(device=tokens.prompt.device, dtype=torch.long)
    n = tokens.prompt_length[:, None]  # (B, 1, 1)
    none = explicit == NO_POSITION
    outside = ~none & ((explicit >= n) | (explicit < -n))
    if bool(outside.any()):
        row, _, slot = (int(i) for i in outside.nonzero()[0])
        given = int(explicit[outside][0])
        raise ValueError(
            f"position {given} (row {row}, slot {slot}) is outside the prompt, which has "
            f"{int(n[row])} tokens. Positions count the tokens of the prompt, padding not "
            f"counted, also under left padding; {NO_POSITION} stands for no position."
        )
    wanted = torch.where(explicit < 0, explicit + n, explicit).masked_fill(none, length)
    hit = torch.zeros(*wanted.shape[:2], length + 1, dtype=torch.bool, device=wanted.device)
    hit.scatter_(2, wanted, True)
    index = tokens.index.clamp(min=0)[:, None, :].expand(-1, wanted.shape[1], -1)
    chosen = hit.gather(2, index) & tokens.prompt[:, None, :]  # (B, I, T)
    if explicit.shape[1] == 1:
        return dict.fromkeys(range(len(interventions)), chosen[:, 0])
    return {i: chosen[:, i] for i in range(len(interventions))}


def _refuse_collisions(
    interventions: Sequence[InterventionConfig], sites: Sequence[int], masks: dict[int, Tensor]
) -> None:
    """On one layer the positions of interventions are disjoint (Wu et al. 2024, section 3)."""
    for index, mask in masks.items():
        config = interventions[index]
        for other in range(index):
            if other not in masks or sites[other] != sites[index]:
                continue
            if _apart(config.heads, interventions[other].heads):
                continue
            if bool((both := mask & masks[other]).any()):
                row, column = (int(i) for i in both.nonzero()[0])
                raise ValueError(
                    f"interventions {other} and {index} both edit {config.place}, at column "
                    f"{column} of row {row}: positions of interventions on one layer must be "
                    "disjoint."
                )


def _apart(heads: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    return heads is not None and other is not None and not set(heads) & set(other)
