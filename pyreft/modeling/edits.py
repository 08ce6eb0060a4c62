"""The one place where hidden states are changed.

hidden (B, T, D) --gather--> (B, P, D) --intervention--> (B, P, D) --scatter--> (B, T, D)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.modeling.placement import Slots


@dataclass(frozen=True)
class Edit:
    """One intervention at work in one forward pass."""

    intervention: nn.Module
    slots: Slots
    heads: tuple[int, ...] | None
    num_heads: int | None
    subspaces: Sequence | None


def edit_input(
    edits: Sequence[Edit], args: tuple, kwargs: Mapping[str, Any]
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


def edit_output(
    edits: Sequence[Edit], module: nn.Module, inputs: Sequence[Any], output: Any
) -> Any:
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


def _edit_hidden(edits: Sequence[Edit], hidden: Tensor, in_place: bool) -> Tensor:
    """(B, T, D) -> (B, T, D) with the slots of each edit replaced."""
    shape = edits[0].slots.shape
    if hidden.dim() != 3 or (not torch.compiler.is_compiling() and hidden.shape[:2] != shape):
        raise ValueError(
            f"hidden states of the shape (batch, tokens, width) = ({shape[0]}, {shape[1]}, D) are "
            f"edited, this component has {tuple(hidden.shape)}."
        )
    if not in_place:
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    flat = hidden.view(-1, hidden.shape[-1])
    for edit in edits:
        slots = edit.slots
        chosen = flat.index_select(0, slots.gather.flatten()).view(*slots.gather.shape, -1)
        edited = _run(edit, chosen).flatten(0, 1)
        if slots.kept is not None:
            edited = edited.index_select(0, slots.kept)
        flat.index_copy_(0, slots.scatter, edited)
    return hidden


def _run(edit: Edit, chosen: Tensor) -> Tensor:
    """Call the intervention: (B, P, D) -> (B, P, D)."""
    extra = {} if edit.subspaces is None else {"subspaces": edit.subspaces}
    if edit.num_heads is None:
        return _call(edit.intervention, chosen, extra)
    by_head = chosen.unflatten(-1, (edit.num_heads, -1))  # (B, P, H, D / H)
    if edit.heads is None:
        return _call(edit.intervention, by_head, extra).flatten(-2)
    heads = torch.tensor(edit.heads, device=chosen.device)
    edited = _call(edit.intervention, by_head.index_select(-2, heads), extra)
    return by_head.index_copy(-2, heads, edited).flatten(-2)


def _call(intervention: nn.Module, chosen: Tensor, extra: dict[str, Any]) -> Tensor:
    width = getattr(intervention, "embed_dim", None)
    if isinstance(width, int) and width != chosen.shape[-1]:
        raise ValueError(
            f"{type(intervention).__name__} edits hidden states of width {width}, this component "
            f"has width {chosen.shape[-1]}: say so with embed_dim among its arguments."
        )
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
