"""Calls and generations of the base model, edited."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyreft.adapters.active import (
    find_active,
    place_in_batch,
    place_in_call,
    refuse_unreached,
    require_gradient,
    say_nothing_is_edited,
)
from pyreft.adapters.adapter_set import AdapterSet
from pyreft.adapters.one_graph import place_in_graph
from pyreft.adapters.replicas import Replicas
from pyreft.adapters.shared_prefix import share_beginning
from pyreft.adapters.stand_in import StandIn
from pyreft.annotations import Inputs
from pyreft.base_model.stacks import has_two_stacks
from pyreft.editing.hooks import EditHooks
from pyreft.editing.pass_edits import edits_something
from pyreft.editing.pass_plan import Placed
from pyreft.installed.caches import cached_tokens, generate_cache_argument
from pyreft.placement.arguments import EditArguments, present
from pyreft.placement.prompt import read_prompt
from pyreft.positions.counted_pad import warn_of_pad_first

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel

# The arguments of `generate` for edits: its prompt has no completion.
_OF_GENERATE = ("intervention_locations", "subspaces", "adapter_names", "positions")


class EditedCalls:
    """Runs the base model of a `ReftModel` with its active adapters.

    Args:
        hooks: The hooks on the base model.
        adapters: The adapters.
    """

    def __init__(self, hooks: EditHooks, adapters: AdapterSet) -> None:
        self._hooks, self._adapters = hooks, adapters
        # Thread -> where its calls edit; overrides their arguments.
        self._placed: dict[int, list[Placed]] = {}
        self._replicas = Replicas()

    def run(
        self, model: EditedModel, call: Callable[..., object], inputs: Inputs, whole: bool = True
    ) -> Any:
        """Call the base model, or a function that calls it, edited.

        Args:
            model: The model.
            call: The function to call.
            inputs: Its arguments, and the arguments of `ReftModel.forward` that are only for edits.
            whole: Whether the function runs the whole model, so that something must be edited.
        """
        if torch.compiler.is_compiling() and not self._placed:
            in_graph = place_in_graph(model, inputs)
            if in_graph is not None:
                EditArguments.take(inputs)
                with self._hooks.editing(in_graph):
                    return call(**inputs)
        placed, expected = self._placed.get(threading.get_ident()), False
        if placed is None:
            given = _take(inputs)
            placed = self._place(model, inputs, given)
            expected = whole and not (self._adapters.disabled or given.choose_rows)
        sharded = self._replicas.before_forward(model)
        with self._hooks.editing(placed) as edits:
            edited = edits_something(edits) if expected else True
            if edited is False:
                say_nothing_is_edited(model.model, inputs)
            outputs = call(**inputs)
            if edited is None and not edits_something(edits):
                say_nothing_is_edited(model.model, inputs, without_text=True)
            if whole and edits is not None and edits.sites and not edits.reached:
                refuse_unreached(model.model, placed)
            if torch.is_grad_enabled():
                tensors = list(_tensors_in(outputs))
                if expected and model.training and edits is not None and edits.reached:
                    require_gradient(self._adapters.modules, tensors)
                self._hooks.keep_for_recomputation(tensors)
                if sharded:
                    self._replicas.average_after_backward(model, tensors)
        return outputs

    def edited_method(
        self, model: EditedModel, method: Callable[..., object]
    ) -> Callable[..., object]:
        """A method of the base model that runs a part of it (`get_image_features`), edited."""
        signature = inspect.signature(method)

        @functools.wraps(method)
        def edited(*args: object, **kwargs: object) -> object:
            first = signature.bind_partial(*args).arguments
            if twice := first.keys() & kwargs.keys():
                raise TypeError(f"{method.__name__} got {', '.join(sorted(twice))} twice.")
            return self.run(model, method, present(first | kwargs), whole=False)

        return edited

    def generate(self, model: StandIn, inputs: Inputs, in_order: bool = False) -> Any:
        """Generate with the base model and an edited prompt.

        Args:
            model: The model.
            inputs: The arguments of `ReftModel.generate`.
            in_order: See `EditArguments`.
        """
        given = EditArguments.take(inputs, _OF_GENERATE)
        given = replace(given, in_order=in_order)
        self._hooks.require()
        base: Any = model.model
        if self._adapters.disabled:
            return base.generate(**inputs)
        encoder, prompt = read_prompt(inputs, base.generation_config, has_two_stacks(base))
        active = find_active(self._adapters, given)
        if any(target.component.ids_rows > 1 for one in active for target in one.targets):
            raise ValueError(
                "generation with an adapter is not supported where a text has several rows of ids, "
                "those of a sound's codebooks; calls of the model are."
            )
        before, steps = (place_in_batch(active, batch, given) for batch in (encoder, prompt))
        with self._hooks.editing([]):
            shared = share_beginning(base, inputs, prompt, steps)
        if shared is not None:
            inputs[generate_cache_argument()] = shared
        with self._hooks.generating(steps, before, cached_tokens(inputs)):
            return base.generate(**inputs)

    def place(self, model: StandIn, inputs: Inputs) -> list[Placed]:
        """The edits of a call of a model; removes the arguments that are only for edits.

        Raises:
            ValueError: As for `ReftModel.forward`.
        """
        return self._place(model, inputs, _take(inputs))

    def _place(self, model: StandIn, inputs: Inputs, given: EditArguments) -> list[Placed]:
        if self._adapters.disabled:
            return []
        return place_in_call(find_active(self._adapters, given), model.model, inputs, given)

    @contextmanager
    def placed(self, placed: list[Placed]) -> Iterator[None]:
        """Use these edits, for a part of a batch, in this thread's calls inside the block."""
        thread = threading.get_ident()
        self._placed[thread] = placed
        try:
            yield
        finally:
            del self._placed[thread]


def _take(inputs: Inputs) -> EditArguments:
    """The arguments of a call for edits, removed from it."""
    if inputs.get("intervention_locations") is not None and inputs.get("leading_pad") is None:
        warn_of_pad_first(inputs)
    return EditArguments.take(inputs)


def _tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors that a model returned, however they are packed."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors_in(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from _tensors_in(value)
