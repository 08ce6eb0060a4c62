"""Hooks on the base model: which of its forward passes are edited, and by what.

Hooks are put on once and do nothing until `editing` or `generating` says what to edit. Nothing
but their own handles is ever removed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyreft.modeling.components import Component, running_model
from pyreft.modeling.edits import Edit, edit_input, edit_output
from pyreft.modeling.generation import step_window
from pyreft.modeling.placement import Placement, Site

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

    def require(self) -> None:
        """Raise RuntimeError if they were removed."""
        if self.removed:
            raise RuntimeError(
                "the adapter was taken off its base model by unwrap(); wrap the base model again "
                "with get_reft_model or ReftModel.from_pretrained."
            )

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
        edits = self.hooks.at(self.site)
        return edit_input(edits, args, kwargs) if edits else None

    def after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        edits = self.hooks.at(self.site)
        return edit_output(edits, module, (*args, *kwargs.values()), output) if edits else None


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
