"""Placed adapters -> the calls that edit each site in one forward pass.

Interventions that can be stacked are computed in one call: those of prefix and suffix on one layer,
or of many adapters in one batch. The G groups are rows of the batch, once for each intervention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from pyreft.base_model.towers import TOWER
from pyreft.editing.edits import Call, SiteEdits
from pyreft.editing.pass_edits import Edits
from pyreft.editing.slots import Slots, join_slots, slots_of
from pyreft.editing.tower_edits import Picture, TowerEdits
from pyreft.interventions import StackedInterventions, stacks_with
from pyreft.interventions.forms import has_form
from pyreft.placement.placement import Directions, Placement
from pyreft.placement.targets import Target


@dataclass(frozen=True)
class Placed:
    """The interventions of an adapter, and which tokens they edit.

    Args:
        interventions: The modules.
        targets: Where each edits.
        placement: The tokens; none in rows that another adapter edits.
        weight: The factor of its edits.
        shared: Whether other adapters may edit the same tokens, so that edits are summed.
    """

    interventions: Sequence[nn.Module]
    targets: Sequence[Target]
    placement: Placement
    weight: float = 1.0
    shared: bool = False

    def keep_logits(self, kept: int | slice | Tensor | None) -> Placed:
        """The same for a forward pass with these `logits_to_keep`."""
        return replace(self, placement=self.placement.keep_logits(self.targets, kept))


@dataclass(frozen=True)
class Edit:
    """The edit of one intervention in one forward pass.

    Args:
        intervention: The module.
        slots: The tokens it edits.
        heads: The heads it edits in a per-head component; all if None.
        num_heads: Number of heads of a per-head component.
        subspaces: The directions it edits, for each row of the batch.
        weight: The factor of the edit.
    """

    intervention: nn.Module
    slots: Slots
    heads: tuple[int, ...] | None = None
    num_heads: int | None = None
    subspaces: Directions | None = None
    weight: float = 1.0


def plan_pass(
    placed: Sequence[Placed], stacks: dict[tuple[object, ...], StackedInterventions] | None = None
) -> Edits | None:
    """Compute the edits of each site in one forward pass.

    Args:
        placed: The adapters that edit in it.
        stacks: Stores stacked interventions from one pass to the next, while a text is
            generated. By default they are stacked in each pass, and only if there are several.
    """
    edits: dict[int, list[Edit]] = {}
    for one in placed:
        placement = one.placement
        # In training an intervention without a token has the gradient zero, and not None: other
        # processes, which may have a token for it, wait for its gradient.
        for index, slots in slots_of(placement, torch.is_grad_enabled()).items():
            target = one.targets[index]
            edit = Edit(
                one.interventions[index],
                slots,
                target.config.heads,
                target.component.num_heads,
                placement.subspaces.get(index),
                one.weight,
            )
            edits.setdefault(target.site, []).append(edit)
    in_order = any(one.placement.in_order for one in placed)
    planner = _Planner(any(one.shared for one in placed), stacks, in_order)
    sites = {site: planner.plan(several) for site, several in edits.items()}
    towers = _plan_towers(placed)
    return Edits(sites, towers) if sites or towers is not None else None


def _plan_towers(placed: Sequence[Placed]) -> TowerEdits | None:
    """The edits of parts that read no text, None if no adapter edits one."""
    late = [(one, one.placement.hidden_tokens) for one in placed]
    waiting = [(one, tokens) for one, tokens in late if tokens is not None]
    if not waiting:
        return None

    def plan(site: int, text: Tensor, picture: Picture | None) -> SiteEdits | None:
        placements = [(one, tokens.place(site, text, picture)) for one, tokens in waiting]
        found = [replace(one, placement=where) for one, where in placements if where is not None]
        edits = plan_pass(found)
        return None if edits is None else edits.sites.get(site)

    targets = [target for one, _ in waiting for target in one.targets]
    sites = [target.site for target in targets if target.component.stack == TOWER]
    of_text = [target.site for target in targets if "text" in target.component.kinds.columns]
    return TowerEdits(plan, sites, of_text)


class _Planner:
    """Turns the edits of each site into few calls; sites share what they have in common.

    Args:
        summed: See `SiteEdits`.
        stacks: See `plan_pass`.
        in_order: See `SiteEdits`.
    """

    def __init__(
        self,
        summed: bool,
        stacks: dict[tuple[object, ...], StackedInterventions] | None = None,
        in_order: bool = False,
    ) -> None:
        self._summed, self._stacks, self._in_order = summed, stacks, in_order
        self._joined: dict[tuple[int, ...], Slots] = {}

    def plan(self, edits: Sequence[Edit]) -> SiteEdits:
        """The calls for the edits of one site."""
        # A lone edit has no other to be stacked with.
        stacks = self._stacks is not None or len(edits) > 1
        alike: dict[tuple[object, ...], list[Edit]] = {}
        calls = []
        for edit in edits:
            whole = edit.num_heads is None and edit.subspaces is None
            together = stacks and whole and not self._in_order and edit.slots.mask is None
            key = stacks_with(edit.intervention) if together else None
            if key is None:
                calls.append(Call(EditAlone(edit), edit.slots))
            else:
                alike.setdefault(key, []).append(edit)
        for group in alike.values():
            if len(group) == 1 and self._stacks is None:
                calls.append(Call(EditAlone(group[0]), group[0].slots))
            else:
                calls.append(Call(_Together(group, self._stack(group)), self._join(group)))
        return SiteEdits(calls, self._summed, self._in_order)

    def _stack(self, group: Sequence[Edit]) -> StackedInterventions:
        modules = tuple(edit.intervention for edit in group)
        if self._stacks is None:
            return StackedInterventions(modules)
        if modules not in self._stacks:
            self._stacks[modules] = StackedInterventions(modules, keep=True)
        return self._stacks[modules]

    def _join(self, group: Sequence[Edit]) -> Slots:
        key = tuple(id(edit.slots) for edit in group)
        if key not in self._joined:
            self._joined[key] = join_slots([edit.slots for edit in group])
        return self._joined[key]


class _Together:
    """Calls stacked interventions: (G, P, D) -> (G, P, D), groups ordered by edit."""

    def __init__(self, edits: Sequence[Edit], stack: StackedInterventions) -> None:
        self._stack, self._one = stack, edits[0].intervention
        counts = [len(edit.slots.rows) for edit in edits]
        rows = [
            stack.index(e.intervention)
            for e, n in zip(edits, counts, strict=True)
            for _ in range(n)
        ]
        device = edits[0].slots.rows.device
        self._index = torch.tensor(rows, device=device)
        self._weights = None
        if any(edit.weight != 1.0 for edit in edits):
            weights = [e.weight for e, n in zip(edits, counts, strict=True) for _ in range(n)]
            self._weights = torch.tensor(weights, device=device)[:, None, None]

    def __call__(self, chosen: Tensor) -> Tensor:
        _require_width(self._one, chosen)
        wide = torch.promote_types(chosen.dtype, self._stack.dtype)
        with torch.autocast(chosen.device.type, enabled=False):
            hidden = chosen.to(wide)
            edited = self._stack(hidden, self._index)
            if self._weights is not None:
                edited = hidden + self._weights.to(wide) * (edited - hidden)
        return edited.to(chosen.dtype)


class EditAlone:
    """Calls one intervention: (G, P, D) -> (G, P, D)."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def __call__(self, chosen: Tensor) -> Tensor:
        edited = self._by_token_count(chosen)
        if self._edit.weight == 1.0:
            return edited
        return chosen + self._edit.weight * (edited - chosen)

    def _by_token_count(self, chosen: Tensor) -> Tensor:
        edit, kept = self._edit, self._edit.slots.kept
        if (
            kept is None
            or not kept.numel()
            or has_form(edit.intervention)
            or isinstance(edit.subspaces, Mapping)
        ):
            return _edit_heads(edit, chosen, edit.slots.rows)
        # A user-defined module may mix the tokens of a row, so it gets the edited ones only: rows
        # with the same number of tokens are edited together.
        counts = torch.bincount(kept // chosen.shape[1], minlength=len(chosen))
        edited = chosen.clone()
        for count in counts.unique().tolist():
            groups = (counts == count).nonzero().flatten()
            part = _edit_heads(edit, chosen[groups, :count], edit.slots.rows[groups])
            edited[groups, :count] = part
        return edited


def _edit_heads(edit: Edit, chosen: Tensor, rows: Tensor) -> Tensor:
    """Edit groups of tokens (G, P, D), or heads of them, from these rows (G,) of the batch."""
    extra: dict[str, object] = {}
    if isinstance(edit.subspaces, Mapping):
        extra["subspaces"] = edit.subspaces
    elif edit.subspaces is not None:
        extra["subspaces"] = [edit.subspaces[row] for row in rows.tolist()]
    if edit.num_heads is None:
        return _run_module(edit.intervention, chosen, extra)
    by_head: Tensor = chosen.unflatten(-1, (edit.num_heads, -1))  # (G, P, H, D / H)
    if edit.heads is None:
        return _run_module(edit.intervention, by_head, extra).flatten(-2)
    heads = torch.tensor(edit.heads, device=chosen.device)
    edited = _run_module(edit.intervention, by_head.index_select(-2, heads), extra)
    return by_head.index_copy(-2, heads, edited).flatten(-2)


def _run_module(intervention: nn.Module, chosen: Tensor, extra: dict[str, object]) -> Tensor:
    _require_width(intervention, chosen)
    # A module may assume that hidden states have the widest type of its parameters, or the type of
    # some of them: upstream's kinds have R in float32 and a bfloat16 source.
    own = {p.dtype for p in intervention.parameters()}
    alike = chosen.dtype in own
    wide = chosen.dtype if alike else reduce(torch.promote_types, own, chosen.dtype)
    with torch.autocast(chosen.device.type, enabled=False):
        edited = intervention(chosen.to(wide), **extra)
    if not isinstance(edited, Tensor):
        edited = getattr(edited, "output", edited)  # of pyvene's InterventionOutput
    if not isinstance(edited, Tensor) or edited.shape != chosen.shape:
        found = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
        raise ValueError(
            f"{type(intervention).__name__} must return a hidden state of the shape it was given, "
            f"{tuple(chosen.shape)}, got {found}."
        )
    return edited.to(chosen.dtype)


def _require_width(intervention: nn.Module, chosen: Tensor) -> None:
    width = getattr(intervention, "embed_dim", None)
    if isinstance(width, int) and width != chosen.shape[-1]:
        raise ValueError(
            f"{type(intervention).__name__} edits hidden states of width {width}, this component "
            f"has width {chosen.shape[-1]}: pass that width as embed_dim in its arguments."
        )
