"""All changes of hidden states are made here.

hidden (B, T, D) --gather--> (G, P, D) --interventions--> (G, P, D) --scatter--> (B, T, D)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyreft.annotations import Arguments, Inputs
from pyreft.base_model.layout import ROWS_FIRST, Layout, flat_rows
from pyreft.base_model.outputs import hidden_of, with_hidden
from pyreft.editing.slots import Slots
from pyreft.installed.modules import only_seen_here


class Call(NamedTuple):
    """A function of hidden states, (G, P, D) -> (G, P, D), and the tokens it is called on."""

    function: Callable[[Tensor], Tensor]
    slots: Slots


@dataclass(frozen=True)
class SiteEdits:
    """The edits of one hidden state.

    Args:
        calls: Each is given the original hidden state, unless `in_order`.
        summed: Whether edits of one token are summed, as those of several adapters are. If not,
            no token is edited twice.
        in_order: Whether each call is given the result of the calls before it.
    """

    calls: Sequence[Call]
    summed: bool = False
    in_order: bool = False

    def for_any_hidden(self, hidden: Tensor) -> SiteEdits:
        """A `FindEdits` that returns these edits for every hidden state.

        The tokens of a text are known before the hidden state; those of a tower are not.
        """
        return self


# The edits of a hidden state, (B, T, D) or (B, H, W, D); None if no token of it is edited.
FindEdits = Callable[[Tensor], SiteEdits | None]


def edit_input(
    edits: FindEdits, layout: Layout, args: tuple[object, ...], kwargs: Arguments
) -> tuple[tuple[object, ...], Inputs]:
    """Edit the input of a module: its first tensor.

    Args:
        edits: Finds the edits.
        layout: The axes of the hidden state.
        args, kwargs: The arguments of the module.

    Returns:
        The arguments, edited.
    """
    if args:
        assert isinstance(args[0], Tensor)
        return (_edit_hidden(edits, layout, args[0], in_place=False), *args[1:]), dict(kwargs)
    name, hidden = next((n, value) for n, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: _edit_hidden(edits, layout, hidden, in_place=False)}


def edit_output(
    edits: FindEdits, layout: Layout, module: nn.Module, inputs: Sequence[object], output: object
) -> object:
    """Edit the output of a module, or the first of several.

    Args:
        edits: Finds the edits.
        layout: The axes of the hidden state.
        module: The module.
        inputs: Its inputs.
        output: Its output.

    Returns:
        The output, edited.

    Raises:
        ValueError: If the output has no hidden state, or one of another shape.
    """
    hidden = hidden_of(output)
    if hidden is None:
        raise ValueError(
            f"{type(module).__name__} returns {type(output).__name__}, not a hidden state to "
            "edit: name a module inside it."
        )
    hidden = _edit_hidden(edits, layout, hidden, _may_overwrite(module, hidden, inputs))
    return with_hidden(output, hidden)


def _edit_hidden(find: FindEdits, layout: Layout, hidden: Tensor, in_place: bool) -> Tensor:
    """A hidden state with the edited tokens replaced, in its own layout."""
    if layout == ROWS_FIRST:
        edits = find(hidden)
        return hidden if edits is None else _edit_rows(edits, hidden, in_place)
    edited = hidden.clone()
    for view in layout.views(edited):
        if (edits := find(view)) is None:
            continue
        rows = flat_rows(view)
        if layout.offset is not None:
            count = edits.calls[0].slots.shape[1]
            view, rows = (one[:, layout.offset : layout.offset + count] for one in (view, rows))
        view.copy_(_edit_rows(edits, rows, in_place=False).view(view.shape))
    return edited


def _edit_rows(edits: SiteEdits, hidden: Tensor, in_place: bool) -> Tensor:
    """(B, T, D) -> (B, T, D) with the slots of each call replaced."""
    shape = edits.calls[0].slots.shape
    if hidden.dim() != 3 or (not torch.compiler.is_compiling() and hidden.shape[:2] != shape):
        raise ValueError(
            f"hidden states of the shape (batch, tokens, width) = ({shape[0]}, {shape[1]}, D) are "
            f"edited, this component has {tuple(hidden.shape)}. If its tokens are not those of the "
            "text, name another component: list_components(model) lists them."
        )
    if edits.calls[0].slots.mask is not None:
        return _edit_in_graph(edits, hidden)
    if not in_place:
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    flat = hidden.view(-1, hidden.shape[-1])
    gathered = (
        flat.index_select(0, slots.gather.flatten()).view(*slots.gather.shape, -1)
        for _, slots in edits.calls
    )
    # All tokens are gathered before any is changed.
    chosen = gathered if edits.in_order else list(gathered)
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


def _edit_in_graph(edits: SiteEdits, hidden: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, D): each call edits all tokens, and its mask says where that is kept."""
    edited = hidden
    for function, slots in edits.calls:
        assert slots.mask is not None
        here, after = slots.mask[..., None], function(hidden)
        if edits.summed:
            after = edited + (after - hidden)
        edited = torch.where(here, after, edited)
    return edited


@torch.no_grad()
def edit_tokens(edits: SiteEdits, hidden: Tensor, residual: Tensor | None = None) -> None:
    """Edit the tokens of several texts in place, one text after the other, without a batch.

    Args:
        edits: The edits, with slots of the shape (1, N).
        hidden: (N, D).
        residual: (N, D), if the hidden state is the sum of both. Where it is replaced, the residual
            becomes the sum and the other zero; summed edits are added to `hidden`.
    """
    # All tokens are gathered before any is changed.
    chosen = []
    for _, slots in edits.calls:
        rows = slots.gather.flatten()
        before = hidden.index_select(0, rows)
        chosen.append(before if residual is None else before + residual.index_select(0, rows))
    for (function, slots), before in zip(edits.calls, chosen, strict=True):
        after = function(before.view(*slots.gather.shape, -1)).flatten(0, 1)
        change = after - before if edits.summed else after
        if slots.kept is not None:
            change = change.index_select(0, slots.kept)
        if edits.summed:
            hidden.index_add_(0, slots.scatter, change)
        elif residual is None:
            hidden.index_copy_(0, slots.scatter, change)
        else:
            residual.index_copy_(0, slots.scatter, change)
            hidden.index_fill_(0, slots.scatter, 0)


def _may_overwrite(module: nn.Module, hidden: Tensor, inputs: Sequence[object]) -> bool:
    """Whether an output can be edited in place, which spares a copy of the whole hidden state.

    It can if no input shares its storage, autograd does not need it, and no other hook sees it.
    """
    if torch.compiler.is_compiling() or isinstance(hidden, nn.Parameter):
        return False
    if not hidden.is_contiguous() or not only_seen_here(module, hidden):
        return False
    storage = hidden.untyped_storage().data_ptr()
    return not any(
        isinstance(i, Tensor) and i.untyped_storage().data_ptr() == storage for i in inputs
    )
