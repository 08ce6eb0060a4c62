"""Hooks on the base model: the one place where hidden states are changed.

    module(...) -> hidden (B, T, D) --gather--> (B, P, D) --intervention--> (B, P, D)
                     |                                                          |
                     +------------------------ scatter <------------------------+

Hooks are put on once and do nothing until `editing` or `generating` says what to edit. Nothing
but their own handles is ever removed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.modeling.components import Component, running_model
from pyreft.modeling.generation import step_window
from pyreft.modeling.placement import Placement, Site, Slots


@dataclass(frozen=True)
class Edit:
    """One intervention at work in one forward pass."""

    intervention: nn.Module
    slots: Slots
    heads: tuple[int, ...] | None
    num_heads: int | None
    subspaces: Sequence | None


# Number of a site -> its edits.
Edits = Mapping[int, Sequence[Edit]]


class EditHooks:
    """The hooks of one adapter on one base model.

    Args:
        base: The base model.
        components: Where each intervention acts.
        interventions: The modules, in the same order.
        heads: Heads that each edits, or None for all.
    """

    def __init__(
        self,
        base: nn.Module,
        components: Sequence[Component],
        interventions: Sequence[nn.Module],
        heads: Sequence[tuple[int, ...] | None],
    ) -> None:
        self.components = components
        self._interventions = interventions
        self._heads = heads
        places = [(id(c.module), c.side) for c in components]
        self.sites = [
            Site(places.index(place), component.stack)
            for place, component in zip(places, components, strict=True)
        ]
        # Thread -> site -> its edits in the forward pass that is running there, if any.
        self._edits: dict[int, Edits | None] = {}
        # Compiled code cannot ask for its thread, and reads the pass that began last.
        self._latest: Edits | None = None
        # The edits of the pass whose parts are being computed again in backward.
        self._recomputed: Edits | None = None
        # Thread -> the prompt that it is generating from.
        self._prompts: dict[int, Placement | None] = {}
        step = running_model(base).register_forward_pre_hook(self._before_step, with_kwargs=True)
        self._handles = [step]
        for site in sorted({site.number for site in self.sites}):
            hook, module = _SiteHook(self, site), components[site].module
            if components[site].side == "input":
                handle = module.register_forward_pre_hook(hook.before, with_kwargs=True)
            else:
                # First, so that hooks of others (transformers' output_hidden_states) see the edit.
                handle = module.register_forward_hook(hook.after, prepend=True, with_kwargs=True)
            self._handles.append(handle)

    def at(self, site: int) -> Sequence[Edit]:
        """The edits of a site in the forward pass that is running."""
        compiling = torch.compiler.is_compiling()
        edits = self._latest if compiling else self._edits.get(threading.get_ident())
        if edits is None and self._recomputed is not None:
            # Read in backward alone, so that one that failed leaves nothing behind.
            edits = self._recomputed if torch._C._current_graph_task_id() != -1 else None
        return () if edits is None else edits.get(site, ())

    @property
    def placed(self) -> bool:
        """Whether a forward pass is running in which it is settled what to edit, if anything."""
        return threading.get_ident() in self._edits

    def _set(self, edits: Edits | None) -> None:
        self._latest = self._edits[threading.get_ident()] = edits

    def remove(self) -> None:
        """Take the hooks off the base model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def removed(self) -> bool:
        """Whether `remove` was called."""
        return not self._handles

    @contextmanager
    def editing(self, placement: Placement | None) -> Iterator[None]:
        """Edit so in the forward passes inside the block."""
        outer, before = self.placed, self._edits.get(threading.get_ident())
        self._set(self._plan(placement))
        try:
            yield
        finally:
            self._set(before)
            if not outer:
                del self._edits[threading.get_ident()]

    @contextmanager
    def generating(
        self, prompt: Placement | None, before: Placement | None = None
    ) -> Iterator[None]:
        """Generate inside the block: each forward pass edits what it sees of the prompt.

        Args:
            prompt: Where to edit in the steps.
            before: Where to edit until the first of them, in an encoder.
        """
        thread = threading.get_ident()
        with self.editing(before):
            self._prompts[thread] = prompt
            try:
                yield
            finally:
                del self._prompts[thread]

    def keep_for_recomputation(self, outputs: Any) -> None:
        """Edit again when gradient checkpointing runs parts of this forward pass in backward.

        By then other passes may have run, so the pass's outputs carry its edits: their gradient
        is computed before that of anything inside.
        """
        edits = self._edits.get(threading.get_ident())

        def recompute(grad: Tensor) -> None:
            self._recomputed = edits

        for tensor in tensors_in(outputs):
            if tensor.requires_grad:
                tensor.register_hook(recompute)

    def _plan(self, placement: Placement | None) -> Edits | None:
        if placement is None:
            return None
        edits: dict[int, list[Edit]] = {}
        # In training an intervention that finds no token has the gradient zero, and not none: the
        # other processes, which may have a token for it, wait for its gradient.
        for index, slots in placement.slots(even_if_none=torch.is_grad_enabled()).items():
            edit = Edit(
                self._interventions[index],
                slots,
                self._heads[index],
                self.components[index].num_heads,
                placement.subspaces.get(index),
            )
            edits.setdefault(self.sites[index].number, []).append(edit)
        return edits or None

    def _before_step(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._prompts:
            self._edit_step(args, kwargs)

    @torch.compiler.disable
    def _edit_step(self, args: tuple, kwargs: dict[str, Any]) -> None:
        prompt = self._prompts.get(threading.get_ident())
        if prompt is not None:
            self._set(self._plan(step_window(prompt, args, kwargs)))


class _SiteHook:
    """The hook at one site. An object with methods, so that a copied model has its own."""

    def __init__(self, hooks: EditHooks, site: int) -> None:
        self.hooks, self.site = hooks, site

    def before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Edit what goes into the module: its first tensor."""
        edits = self.hooks.at(self.site)
        if not edits:
            return None
        if args:
            return (_edit_hidden(edits, args[0], in_place=False), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: _edit_hidden(edits, kwargs[name], in_place=False)}

    def after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Edit what comes out of the module: its output, or the first of several."""
        edits = self.hooks.at(self.site)
        if not edits:
            return None
        several = isinstance(output, (tuple, list))
        hidden = output[0] if several and output else output
        if not isinstance(hidden, Tensor):
            raise ValueError(
                f"{type(module).__name__} puts out {type(output).__name__}, and no hidden state to "
                "edit: name a module inside it."
            )
        in_place = _may_overwrite(module, hidden, (*args, *kwargs.values()))
        hidden = _edit_hidden(edits, hidden, in_place)
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


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors that a model put out, however they are packed."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from tensors_in(value)
