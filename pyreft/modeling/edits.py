"""The one place where hidden states are changed.

hidden (B, T, D) --gather--> (G, P, D) --interventions--> (G, P, D) --scatter--> (B, T, D)

What can be stacked is edited by one call: the interventions of prefix and suffix on one layer, or
of many adapters in one batch. The G groups are rows of the batch, once for each intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyreft.interventions import StackedInterventions, stacks_with
from pyreft.modeling.slots import Slots, join_slots


@dataclass(frozen=True)
class Edit:
    """One intervention at work in one forward pass.

    Args:
        intervention: The module.
        slots: The tokens it edits.
        heads: The heads it edits, of a per-head component; all if None.
        num_heads: Number of heads of a per-head component.
        subspaces: The directions it edits, for each row of the batch.
        weight: How much of the edit is made.
    """

    intervention: nn.Module
    slots: Slots
    heads: tuple[int, ...] | None = None
    num_heads: int | None = None
    subspaces: Sequence | None = None
    weight: float = 1.0


class Call(NamedTuple):
    """A function of hidden states, (G, P, D) -> (G, P, D), and the tokens it is called on."""

    function: Callable[[Tensor], Tensor]
    slots: Slots


@dataclass(frozen=True)
class SiteEdits:
    """What is done to one hidden state.

    Args:
        calls: Each is given the hidden state as it was.
        summed: Whether edits of one token are added up, as those of several adapters are. If not,
            no token is edited twice.
    """

    calls: Sequence[Call]
    summed: bool = False


class Planner:
    """Turns the edits of each site into few calls; what sites have in common is made once.

    Args:
        summed: See `SiteEdits`.
        stacks: Where stacked interventions are kept from one plan to the next, while a text is
            generated. By default they are stacked anew, and only where there are several.
    """

    def __init__(self, summed: bool, stacks: dict[tuple, StackedInterventions] | None = None):
        self._summed, self._stacks = summed, stacks
        self._joined: dict[tuple[int, ...], Slots] = {}

    def plan(self, edits: Sequence[Edit]) -> SiteEdits:
        """The calls for the edits of one site."""
        alike: dict[tuple, list[Edit]] = {}
        calls = []
        for edit in edits:
            whole = edit.num_heads is None and edit.subspaces is None
            key = stacks_with(edit.intervention) if whole else None
            if key is None:
                calls.append(Call(_Alone(edit), edit.slots))
            else:
                alike.setdefault(key, []).append(edit)
        for group in alike.values():
            if len(group) == 1 and self._stacks is None:
                calls.append(Call(_Alone(group[0]), group[0].slots))
            else:
                calls.append(Call(_Together(group, self._stack(group)), self._join(group)))
        return SiteEdits(calls, self._summed)

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


def edit_input(
    edits: SiteEdits, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Edit what goes into a module: its first tensor.

    Args:
        edits: What to do to it.
        args, kwargs: What the module is called with.

    Returns:
        The same, edited.
    """
    if args:
        return (_edit_hidden(edits, args[0], in_place=False), *args[1:]), dict(kwargs)
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: _edit_hidden(edits, kwargs[name], in_place=False)}


def edit_output(edits: SiteEdits, module: nn.Module, inputs: Sequence[Any], output: Any) -> Any:
    """Edit what comes out of a module: its output, or the first of several.

    Args:
        edits: What to do to it.
        module: The module.
        inputs: What it was called with.
        output: What it put out.

    Returns:
        The same, edited.

    Raises:
        ValueError: If there is no hidden state in it, or one of another shape.
    """
    several = isinstance(output, (tuple, list))
    hidden = output[0] if several and output else output
    if not isinstance(hidden, Tensor):
        raise ValueError(
            f"{type(module).__name__} puts out {type(output).__name__}, and no hidden state to "
            "edit: name a module inside it."
        )
    hidden = _edit_hidden(edits, hidden, _may_overwrite(module, hidden, inputs))
    return type(output)((hidden, *output[1:])) if several else hidden


def _edit_hidden(edits: SiteEdits, hidden: Tensor, in_place: bool) -> Tensor:
    """(B, T, D) -> (B, T, D) with the slots of each call replaced."""
    shape = edits.calls[0].slots.shape
    if hidden.dim() != 3 or (not torch.compiler.is_compiling() and hidden.shape[:2] != shape):
        raise ValueError(
            f"hidden states of the shape (batch, tokens, width) = ({shape[0]}, {shape[1]}, D) are "
            f"edited, this component has {tuple(hidden.shape)}."
        )
    if not in_place:
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    flat = hidden.view(-1, hidden.shape[-1])
    # All are gathered before any is changed.
    chosen = [
        flat.index_select(0, slots.gather.flatten()).view(*slots.gather.shape, -1)
        for _, slots in edits.calls
    ]
    for (function, slots), before in zip(edits.calls, chosen, strict=True):
        after = function(before)
        change = (after - before if edits.summed else after).flatten(0, 1)
        if slots.kept is not None:
            change = change.index_select(0, slots.kept)
        if edits.summed:
            flat.index_add_(0, slots.scatter, change)
        else:
            flat.index_copy_(0, slots.scatter, change)
    return hidden


class _Together:
    """Calls stacked interventions: (G, P, D) -> (G, P, D), the groups of each edit in turn."""

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


class _Alone:
    """Calls one intervention: (G, P, D) -> (G, P, D)."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def __call__(self, chosen: Tensor) -> Tensor:
        edited = _edit_alone(self._edit, chosen)
        if self._edit.weight == 1.0:
            return edited
        return chosen + self._edit.weight * (edited - chosen)


def _edit_alone(edit: Edit, chosen: Tensor) -> Tensor:
    extra: dict[str, Any] = {}
    if edit.subspaces is not None:
        extra["subspaces"] = [edit.subspaces[row] for row in edit.slots.rows.tolist()]
    if edit.num_heads is None:
        return _call(edit.intervention, chosen, extra)
    by_head = chosen.unflatten(-1, (edit.num_heads, -1))  # (G, P, H, D / H)
    if edit.heads is None:
        return _call(edit.intervention, by_head, extra).flatten(-2)
    heads = torch.tensor(edit.heads, device=chosen.device)
    edited = _call(edit.intervention, by_head.index_select(-2, heads), extra)
    return by_head.index_copy(-2, heads, edited).flatten(-2)


def _call(intervention: nn.Module, chosen: Tensor, extra: dict[str, Any]) -> Tensor:
    _require_width(intervention, chosen)
    # Any module may assume that hidden states are as wide a type as its parameters.
    own = next((p.dtype for p in intervention.parameters()), chosen.dtype)
    with torch.autocast(chosen.device.type, enabled=False):
        edited = intervention(chosen.to(torch.promote_types(chosen.dtype, own)), **extra)
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
            f"has width {chosen.shape[-1]}: say so with embed_dim among its arguments."
        )


def _may_overwrite(module: nn.Module, hidden: Tensor, inputs: Sequence[Any]) -> bool:
    """Whether an output can be edited in place, which spares a copy of the whole hidden state.

    It can if it is nobody's input, of no use to autograd, and seen by no hook of others.
    """
    if torch.compiler.is_compiling() or isinstance(hidden, nn.Parameter):
        return False
    if hidden._is_view() or not hidden.is_contiguous():
        return False
    if len(module._forward_hooks) > 1 or any(m._forward_hooks for m in _below(module)):
        return False
    if hidden.requires_grad and hidden.grad_fn is None:
        return False
    storage = hidden.untyped_storage().data_ptr()
    if any(isinstance(i, Tensor) and i.untyped_storage().data_ptr() == storage for i in inputs):
        return False
    node = hidden.grad_fn
    # Functions written in Python may keep anything; built-in ones say what they keep.
    in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    return not (in_python or hasattr(node, "_saved_result") or hasattr(node, "_saved_output"))


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if m is not module)
