"""Hooks on the base model, which apply the edits in its forward passes.

Hooks are registered once and do nothing until `editing` or `generating` specifies the edits. Only
their own handles are ever removed.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyreft.annotations import Inputs
from pyreft.base_model.components import Component
from pyreft.base_model.running import running_model
from pyreft.editing.edits import FindEdits, edit_input, edit_output
from pyreft.editing.generation import GeneratedFrom, modules_that_generate
from pyreft.editing.pass_edits import Edits
from pyreft.editing.pass_plan import Placed, plan_pass
from pyreft.editing.tower_edits import MaskWatch, TowerEdits
from pyreft.installed.modules import backward_has_an_id, current_backward


class EditHooks:
    """The hooks on one base model, at the sites of all its adapters.

    Args:
        base: The base model.
    """

    def __init__(self, base: nn.Module) -> None:
        self._now, self._base = _Running(), running_model(base)
        # The edits of the pass whose parts are being recomputed in backward.
        self._recomputed: Edits | None = None
        # Probed here, because it cannot be probed inside a backward pass.
        self._can_recompute = backward_has_an_id.holds
        self._before_model = [
            module.register_forward_pre_hook(self._before_step, with_kwargs=True)
            for module in modules_that_generate(self._base)
        ]
        # Whether `remove` was called: a handle, or None, cannot be read in a graph.
        self.removed = False
        # (module, side, run) -> the number of the site there, and its hook.
        self._numbers: dict[tuple[nn.Module, str, int], int] = {}
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._made = 0

    def add_sites(self, components: Sequence[Component]) -> list[int]:
        """Return the site number of each component; hook those that have no hook yet."""
        sites = []
        for component in components:
            key = (component.module, component.side, component.run)
            if key not in self._numbers:
                self._numbers[key] = number = self._made
                self._handles[number] = self._hook(component, number)
                self._made += 1
            sites.append(self._numbers[key])
        return sites

    def keep_sites(self, sites: Iterable[int]) -> None:
        """Remove the hooks of all other sites."""
        kept = set(sites)
        for key, number in list(self._numbers.items()):
            if number not in kept:
                del self._numbers[key]
                for handle in self._handles.pop(number):
                    handle.remove()

    def _hook(self, component: Component, number: int) -> list[RemovableHandle]:
        # Before the edit, because the edited module may be given the mask itself.
        handles = [self._watch_masks(module) for module in component.around]
        hook, module = _SiteHook(self, number, component), component.module
        if component.side == "input":
            handles.append(module.register_forward_pre_hook(hook.before, with_kwargs=True))
        else:
            # First, so that hooks of others (transformers' output_hidden_states) see the edit.
            after = module.register_forward_hook(hook.after, prepend=True, with_kwargs=True)
            handles.append(after)
        return handles

    def _watch_masks(self, module: nn.Module) -> RemovableHandle:
        watch = MaskWatch(self._towers, list(inspect.signature(module.forward).parameters))
        return module.register_forward_pre_hook(watch, with_kwargs=True)

    def _towers(self) -> TowerEdits | None:
        edits = self._running()
        return None if edits is None else edits.towers

    def at(self, site: int, run: int = 0, runs: int = 1) -> FindEdits | None:
        """The edits of a site in the running forward pass, None if there are none.

        Args:
            site: The site.
            run, runs: Which time its module is edited, of how many times that it runs.
        """
        edits = self._running()
        if edits is None:
            return None
        if runs > 1 and edits is self._recomputed:
            raise ValueError(
                "gradient checkpointing of a layer that runs several times in one forward pass is "
                "not supported where it is edited: which of the times is computed again is not "
                "known. Turn it off."
            )
        return edits.at(site, run, runs)

    def _running(self) -> Edits | None:
        """The edits of the running forward pass, None if there are none."""
        edits = self._now.edits
        if edits is None and self._recomputed is not None:
            if not self._can_recompute:
                backward_has_an_id.require("gradient checkpointing of an edited model")
            # Read only in backward, so that a failed pass leaves no edits behind.
            edits = self._recomputed if current_backward() != -1 else None
        return edits

    @property
    def placed(self) -> bool:
        """Whether a forward pass is running whose edits are decided, even if it has none."""
        return self._now.placed

    def remove(self) -> None:
        """Remove the hooks from the base model."""
        for handle in self._before_model:
            handle.remove()
        self.removed = True
        self.keep_sites([])

    def require(self) -> None:
        """Raise RuntimeError if they were removed."""
        if self.removed:
            raise RuntimeError(
                "the adapter was taken off its base model by unwrap(); wrap the base model again "
                "with get_reft_model or ReftModel.from_pretrained."
            )

    @contextmanager
    def editing(self, placed: Sequence[Placed]) -> Iterator[Edits | None]:
        """Apply these edits in the forward passes inside the block; yields the edits.

        Raises:
            RuntimeError: If the hooks were removed.
        """
        self.require()
        now = self._now
        outer, before = now.placed, now.edits
        edits = plan_pass(placed) if placed else None
        now.edits, now.placed = edits, True
        try:
            yield edits
        finally:
            now.edits, now.placed = before, outer
            if before is not None:
                # What is edited inside was decided inside.
                before.reached = True

    @contextmanager
    def generating(
        self, prompt: Sequence[Placed], before: Sequence[Placed] = (), cached: int = 0
    ) -> Iterator[None]:
        """Generate inside the block: each forward pass edits what it sees of the prompt.

        Args:
            prompt: Where to edit in the steps.
            before: Where to edit before the first step, in an encoder.
            cached: The number of tokens of the prompt in a cache before the first step.

        Raises:
            UnsupportedReleaseError: If the steps do not follow each other.
        """
        placed = GeneratedFrom(self._base, prompt, cached) if prompt else None
        with self.editing(before):
            self._now.prompt = placed
            try:
                yield
            finally:
                self._now.prompt = None
        if placed is not None and placed.steps is not None:
            placed.steps.require_all()

    def keep_for_recomputation(self, outputs: Iterable[Tensor]) -> None:
        """Edit again when gradient checkpointing recomputes parts of this forward pass in backward.

        Other passes may have run by then, so hooks on the outputs of the pass restore its edits:
        the gradients of the outputs are computed before all others of the pass.
        """
        edits = self._now.edits

        def recompute(grad: Tensor) -> None:
            self._recomputed = edits

        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(recompute)

    def _before_step(self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs) -> None:
        if self._now.prompt is not None:
            self._edit_step(self._now.prompt, module, args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _edit_step(
        self, prompt: GeneratedFrom, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> None:
        if prompt.steps_in(module):
            self._now.edits = prompt.plan_step(args, kwargs)


class _Running(threading.local):
    """What runs in a thread.

    A graph guards what `__init__` sets in each thread, and would not guard defaults of the class.

    Attributes:
        edits: The edits of the forward pass that is running, if any.
        placed: See `EditHooks.placed`.
        prompt: The prompt of the generation that is running, if it is edited.
    """

    def __init__(self) -> None:
        self.edits: Edits | None = None
        self.placed = False
        self.prompt: GeneratedFrom | None = None

    def __reduce__(self) -> tuple[type[_Running], tuple[()]]:
        # In a copied model nothing runs.
        return type(self), ()


class _SiteHook:
    """The hook at one site. It is an object, so that a copied model has its own hooks."""

    def __init__(self, hooks: EditHooks, site: int, component: Component) -> None:
        # Not the component itself, whose module a copied model would copy with its hooks.
        self.hooks, self.site, self.layout = hooks, site, component.layout
        self.run, self.runs = component.run, component.runs

    def before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> tuple[tuple[object, ...], Inputs] | None:
        edits = self.hooks.at(self.site, self.run, self.runs)
        return None if edits is None else edit_input(edits, self.layout, args, kwargs)

    def after(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs, output: object
    ) -> object:
        edits = self.hooks.at(self.site, self.run, self.runs)
        if edits is None:
            return None
        return edit_output(edits, self.layout, module, (*args, *kwargs.values()), output)
