"""The edits of one step of an engine, whose batch is the tokens of several texts in one row.

request   tokens of the step     edited
a         0 1 2 3 4 5            0 . . . . 5        groups of at most GROUP tokens, filled up:
b         40 41                  . .                gather (G, P), slots (G,)
c         7 8 9                  . . 9
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyreft.editing.edits import Call, SiteEdits
from pyreft.editing.pass_plan import Edit, EditAlone
from pyreft.editing.slots import Slots
from pyreft.interventions.slotted import InterventionTable
from pyreft.serving.places import Place
from pyreft.serving.served import EditedPrompt

# Of the tokens that one intervention edits in one text. The weights are gathered once for each
# group, and a group of fewer tokens is filled up.
GROUP = 16


class Loaded(NamedTuple):
    """An intervention that is on the device.

    Args:
        place: The hidden state that it edits.
        module: The module.
        table: The table that has its weights, None if it runs by itself.
        slot: Its slot there.
        heads, num_heads, weight: See `Edit`.
    """

    place: Place
    module: nn.Module
    table: InterventionTable | None
    slot: int
    heads: tuple[int, ...] | None
    num_heads: int | None
    weight: float


class Row(NamedTuple):
    """A text in a step.

    Args:
        prompt: What its adapter edits in it.
        summed: See `SiteEdits`.
        interventions: The interventions of its adapter.
        offset: The index of its first token in the step.
        start, stop: Its tokens in the step.
    """

    prompt: EditedPrompt
    summed: bool
    interventions: Sequence[Loaded]
    offset: int
    start: int
    stop: int


def plan_step(
    rows: Sequence[Row], count: int, device: torch.device
) -> dict[Place, list[SiteEdits]]:
    """The edits at each place: those that are summed, and those that are not, of other texts.

    Args:
        rows: The texts of the step that have an adapter.
        count: N, the number of tokens of the step.
        device: Where the engine's model is.
    """
    edited: dict[tuple[Place, bool], dict[object, list[tuple[Tensor, Loaded]]]] = {}
    for row in rows:
        for positions, chosen in row.prompt.within(row.start, row.stop):
            indices = positions + (row.offset - row.start)
            for index in chosen.interventions:
                one = row.interventions[index]
                function = one.module if one.table is None else one.table
                at = edited.setdefault((one.place, row.summed), {}).setdefault(function, [])
                at.append((indices, one))
    # Places that edit the same tokens share the indices.
    grouped: dict[tuple[int, ...], _Groups] = {}
    sites: dict[Place, list[SiteEdits]] = {}
    for (place, summed), functions in edited.items():
        calls = []
        for several in functions.values():
            key = tuple(id(indices) for indices, _ in several)
            if key not in grouped:
                grouped[key] = _Groups([indices for indices, _ in several], count, device)
            calls.append(_call([one for _, one in several], grouped[key]))
        sites.setdefault(place, []).append(SiteEdits(calls, summed))
    return sites


class _Groups:
    """Groups of tokens, each of one text.

    Args:
        texts: The indices of the tokens of each text.
        count: The number of tokens of the step.
        device: Where the indices go.

    Attributes:
        slots: The tokens.
        text: (G,), the text of each group.
    """

    def __init__(self, texts: Sequence[Tensor], count: int, device: torch.device) -> None:
        sizes = torch.tensor([len(indices) for indices in texts])
        size = min(int(sizes.max()), GROUP)
        groups = (sizes + size - 1) // size  # of each text
        self.text = torch.repeat_interleave(groups).to(device)
        flat = torch.cat(list(texts))
        before = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        first = torch.repeat_interleave((groups.cumsum(0) - groups) * size, sizes)
        kept = first + torch.arange(len(flat)) - before
        # Filled up with a token of the same text, whose edit is dropped.
        starts = flat[sizes.cumsum(0) - sizes]
        gather = starts[torch.repeat_interleave(groups)][:, None].repeat(1, size)
        gather.view(-1)[kept] = flat
        full = len(flat) == gather.numel()
        self.slots = Slots(
            (1, count),
            torch.zeros_like(self.text),
            gather.to(device),
            flat.to(device),
            None if full else kept.to(device),
        )


def _call(interventions: Sequence[Loaded], groups: _Groups) -> Call:
    """One call for interventions in one table, or for one that runs by itself."""
    first = interventions[0]
    table = first.table
    if table is None:
        edit = Edit(first.module, groups.slots, first.heads, first.num_heads, weight=first.weight)
        return Call(EditAlone(edit), groups.slots)
    device = groups.text.device
    slots = torch.tensor([one.slot for one in interventions]).to(device)[groups.text]
    weights = None
    if any(one.weight != 1.0 for one in interventions):
        weights = torch.tensor([one.weight for one in interventions]).to(device)[groups.text]

    def together(hidden: Tensor) -> Tensor:
        return table(hidden, slots, weights)

    return Call(together, groups.slots)
