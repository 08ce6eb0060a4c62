"""ReftModel: a frozen transformers model, and the interventions that edit it while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.adapters.active import (
    find_acting,
    place_in_batch,
    place_in_call,
    say_nothing_is_edited,
)
from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.named import AdaptersMixin, require_name
from pyreft.adapters.pushing import PushingMixin
from pyreft.adapters.replicas import Replicas
from pyreft.adapters.shared_prefix import share_beginning
from pyreft.adapters.stand_in import BaseModelMixin
from pyreft.base_model.stacks import has_two_stacks
from pyreft.compat.calls import is_upstream_call, refuse_upstream_arguments
from pyreft.compat.columns import count_from_text, warn_of_pad_first
from pyreft.compat.methods import UpstreamMethodsMixin
from pyreft.compat.pyvene import is_config, read_config
from pyreft.config import ReftConfig
from pyreft.editing.hooks import EditHooks, tensors_in
from pyreft.editing.plan import Placed, edits_something
from pyreft.installed.caches import cached_tokens, generate_cache_argument
from pyreft.lora.peft_lora import without_lora
from pyreft.placement.prompt import read_prompt

# Arguments of a call that are not handed to the base model.
_FOR_EDITS = (
    "completion_mask",
    "intervention_locations",
    "subspaces",
    "adapter_names",
    "positions",
    "in_order",
)
# Held while an adapter is turned on or off.
_SWITCHING = threading.Lock()


class ReftModel(PushingMixin, AdaptersMixin, UpstreamMethodsMixin, BaseModelMixin, nn.Module):
    """A frozen base model with an adapter of interventions.

    It is called, generates and is trained as the base model is: what is not defined here is
    looked up on the base model. Where the prompt ends is found in the batch, see `forward`.

        model = get_reft_model(base, ReftConfig(layers=[15], positions="l1", rank=4))
        model(input_ids=..., attention_mask=..., labels=...).loss.backward()
        model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"))

    Args:
        config: What to learn and where; upstream's order of arguments.
        model: The base model, any transformers model; it gets hooks and nothing else.
        adapter_name: What to call the adapter, where there may be several.

    Attributes:
        model: The base model.
        adapters: All adapters by name.
        config: The base model's config, as transformers and its trainers expect.

    Raises:
        ValueError: If a layer or component is not there, or an intervention does not fit it.
        TypeError: If `config` is no `ReftConfig`, or `model` is no transformers model or has an
            adapter already.
    """

    def __init__(
        self, config: ReftConfig, model: PreTrainedModel, adapter_name: str = "default"
    ) -> None:
        super().__init__()
        if isinstance(model, ReftModel):
            raise TypeError(
                "the model has an adapter already: wrap the base model, model.unwrap()."
            )
        if is_config(config):
            config = read_config(config)
        if not isinstance(config, ReftConfig) or not hasattr(model, "config"):
            raise TypeError(
                "ReftModel takes a ReftConfig and a transformers model, got "
                f"{type(config).__name__} and {type(model).__name__}."
            )
        self.model = model
        self._hooks = EditHooks(model)
        attached = AttachedAdapter(config, model, self._hooks.add_sites)
        self.adapters: Any = nn.ModuleDict({require_name(adapter_name): attached})
        self._active = {adapter_name: 1.0}
        self._disabled, self._off = 0, ExitStack()
        self._replicas = Replicas()
        # Thread -> where its calls edit, whatever their arguments say.
        self._placed: dict[int, list[Placed]] = {}
        self.train(model.training)

    def __repr__(self) -> str:
        lines = [f"ReftModel({type(self.model).__name__}, {self.count_parameters():,} parameters"]
        for name, adapter in self.adapters.items():
            if len(self.adapters) > 1:
                weight = self._active.get(name)
                state = "inactive" if weight is None else f"active, weight {weight:g}"
                lines.append(f"  {name} ({state})")
            lines += adapter.describe()
        return "\n".join(lines) + "\n)"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, or what a trainer put in its place, edited. Arguments: see there.

        The edits are placed here since trainers replace `forward`: TRL by one that keeps the
        labels, runs the backbone alone, and scores it with an output head of its own.
        """
        if is_upstream_call(args, kwargs):
            return super().__call__(*args, **kwargs)
        refuse_upstream_arguments(kwargs)
        inputs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        if len(args) > 2:
            raise TypeError(f"a ReftModel takes two arguments without a name, got {len(args)}.")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if self.follows_upstream:
            return self._call_subclass(super().__call__, inputs)
        # Hooks that were put on this model see the arguments that are for edits as well.
        told = {name: inputs[name] for name in _FOR_EDITS if name in inputs}
        run = partial(super().__call__, **told) if self._forward_pre_hooks else super().__call__
        return self._run(run, inputs)

    def _run(self, run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Call the base model, or what calls it, edited.

        Args:
            run: What is called.
            inputs: Its arguments, and those of `forward` that are for edits alone.
        """
        self._hooks.require()
        # What a call says itself, it may say of no token.
        said = ("intervention_locations", "adapter_names")
        looks = not self._disabled and all(inputs.get(name) is None for name in said)
        if self._placed and threading.get_ident() in self._placed:
            placed, looks = self._placed[threading.get_ident()], False
        else:
            placed = self.place(inputs)
        self._replicas.before_forward(self)
        with self._hooks.editing(placed) as edits:
            if looks and not edits_something(edits):
                say_nothing_is_edited(self.model, inputs)
            outputs = run(**inputs)
            if torch.is_grad_enabled():
                self._hooks.keep_for_recomputation(outputs)
                self._replicas.after_forward(self, tensors_in(outputs))
        return outputs

    def place(self, inputs: dict[str, Any]) -> list[Placed]:
        """Where a call edits.

        Args:
            inputs: The arguments of the call; those that are for edits alone are taken out.

        Returns:
            The adapters that edit, each with the tokens that it edits; none if no token is edited.

        Raises:
            ValueError: As for `forward`.
        """
        told = {name: inputs.pop(name, None) for name in _FOR_EDITS}
        given, leading = told["intervention_locations"], inputs.pop("leading_pad", None)
        told["intervention_locations"] = count_from_text(given, leading)
        if given is not None and leading is None:
            warn_of_pad_first(inputs)
        if self._disabled:
            return []
        names, positions = told["adapter_names"], told.pop("positions")
        acting = find_acting(self.adapters, self._active, names, positions)
        return place_in_call(acting, self.model, inputs, **told)

    @contextmanager
    def placed(self, placed: list[Placed]) -> Iterator[None]:
        """Edit there, on a part of a batch, in calls of this thread inside the block.

        Args:
            placed: What `place` returned, for the rows and tokens of that part.
        """
        thread = threading.get_ident()
        self._placed[thread] = placed
        try:
            yield
        finally:
            del self._placed[thread]

    def forward(
        self,
        input_ids: Tensor | Mapping[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        *upstream: Any,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        completion_mask: Tensor | None = None,
        intervention_locations: Tensor | None = None,
        subspaces: Any = None,
        adapter_names: Sequence[str] | None = None,
        positions: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base model, edited.

        Where the prompt of each row ends is found: explicit `intervention_locations` win; else
        the first true entry of `completion_mask`, or the first label that is not -100, ends it;
        else all that the attention mask admits is the prompt. With a filled cache, the tokens are
        generated ones.

        Args:
            input_ids: (B, T). A dict calls upstream's convention, see `pyreft.compat`.
            attention_mask: (B, T), zero on padding at either side.
            *upstream: Further arguments of upstream's convention.
            labels, position_ids, inputs_embeds, token_type_ids: As for the base model.
            completion_mask: (B, T), nonzero on the completion; for an encoder-decoder model, on
                the labels that are learned. Not handed to the base model.
            intervention_locations: (B, I, P), positions for each of the I interventions in the
                order of `interventions`: the index of a token in its sequence, padding not
                counted; negative ones count from the end of the prompt; -100 is none.
            subspaces: Directions to edit: a list for each intervention (or None) of a list for
                each row, a (B, I, S) tensor, or one list for all.
            adapter_names: For each of the B rows the name of the adapter that edits it, or
                "__base__" for none; by default the active ones edit all rows.
            positions: A position spec for the interventions whose config leaves positions to the
                batch.
            **kwargs: For the base model.

        Returns:
            What the base model returns.

        Raises:
            ValueError: If the prompt of a row cannot be found, or a position is outside it.
            TypeError: If an argument is of upstream's convention, and the batch is not a dict.
            RuntimeError: If the adapter was taken off with `unwrap`.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "token_type_ids": token_type_ids,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None} | kwargs
        edits = (completion_mask, intervention_locations, subspaces, adapter_names, positions)
        told = {n: v for n, v in zip(_FOR_EDITS, edits, strict=False) if v is not None}
        if is_upstream_call([input_ids], kwargs):
            base = inputs.pop("base", inputs.pop("input_ids", None))
            sources = inputs.pop("sources", inputs.pop("attention_mask", None))
            more: dict[str, Any] = inputs | told
            return self._forward_upstream(base, sources, *upstream, **more)
        if self._hooks.placed:
            return self.model(**inputs)
        # Called by itself, and not by `__call__`.
        return self._run(self.model, inputs | told)

    def generate(
        self,
        inputs: Tensor | Mapping[str, Any] | None = None,
        *,
        intervention_locations: Tensor | None = None,
        subspaces: Any = None,
        adapter_names: Sequence[str] | None = None,
        positions: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with the base model, its prompt edited.

        The prompt is edited while it is prefilled; the decoding steps run the bare base model,
        but for positions "all" and "completion", which edit generated tokens as well. Caches,
        beams, sampling, several sequences for each prompt, assisted decoding and chunked
        prefill change nothing in this. What all prompts of a batch begin with, a system prompt,
        runs once if no adapter edits it.

        Args:
            inputs: (B, T) token ids; also as `input_ids`, or `inputs_embeds` (B, T, D). A dict
                calls upstream's convention, see `pyreft.compat`.
            intervention_locations: (B, I, P), as in `forward`.
            subspaces, adapter_names, positions: As in `forward`.
            **kwargs: For the base model's `generate`. Where `encoder_outputs` are among them, the
                encoder does not run and nothing is edited in it.

        Returns:
            What the base model's `generate` returns.

        Raises:
            ValueError: If a position is outside the prompt.
            TypeError: If an argument is of upstream's convention, and the batch is not a dict.
            RuntimeError: If the adapter was taken off with `unwrap`.
        """
        if is_upstream_call([inputs], kwargs):
            return self._generate_upstream(
                kwargs.pop("base", inputs),
                intervention_locations=intervention_locations,
                subspaces=subspaces,
                adapter_names=adapter_names,
                positions=positions,
                **kwargs,
            )
        edits = (intervention_locations, subspaces, adapter_names)
        return self._generate(
            kwargs if inputs is None else {"input_ids": inputs, **kwargs}, *edits, positions
        )

    def _generate(
        self,
        kwargs: dict[str, Any],
        intervention_locations: Tensor | None = None,
        subspaces: Any = None,
        adapter_names: Sequence[str] | None = None,
        positions: Any = None,
        in_order: bool = False,
    ) -> Any:
        """Generate with these arguments of the base model's `generate`."""
        refuse_upstream_arguments(kwargs)
        leading = kwargs.pop("leading_pad", None)
        intervention_locations = count_from_text(intervention_locations, leading)
        self._hooks.require()
        if self._disabled:
            return self.model.generate(**kwargs)
        encoder, prompt = read_prompt(kwargs, self.generation_config, has_two_stacks(self.model))
        acting = find_acting(self.adapters, self._active, adapter_names, positions)
        told = (intervention_locations, subspaces, adapter_names, in_order)
        before, steps = (place_in_batch(acting, batch, *told) for batch in (encoder, prompt))
        with self._hooks.editing([]):
            shared = share_beginning(self.model, kwargs, prompt, steps)
        if shared is not None:
            kwargs[generate_cache_argument()] = shared
        with self._hooks.generating(steps, before, cached_tokens(kwargs)):
            return self.model.generate(**kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run the bare base model inside the block, in every thread.

        Heads are what they were, and PEFT's LoRA that is trained with the adapter is off. Of
        blocks that overlap, in several threads, the last to end turns the adapter on again.
        """
        with _SWITCHING:
            self._disabled += 1
            if self._disabled == 1:
                for name in self._active:
                    self._off.enter_context(self.adapters[name].trained.original())
                self._off.enter_context(without_lora(self.model))
        try:
            yield
        finally:
            with _SWITCHING:
                self._disabled -= 1
                if not self._disabled:
                    self._off.close()

    def unwrap(self) -> PreTrainedModel:
        """Take the adapter off, and return the base model, as it was; it stays frozen."""
        if not self._hooks.removed:
            for name in self._active:
                self.adapters[name].trained.restore()
        self._hooks.remove()
        return self.model

    def place_interventions(self) -> None:
        """Move every intervention to where the part of the base model runs that it edits."""
        for adapter in self.adapters.values():
            adapter.place()
