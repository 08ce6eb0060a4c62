"""A frozen transformers model, and the adapters that edit its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.adapters import merge_methods, named, reading, saving, summary as summaries
from pyreft.adapters.adapter_set import AdapterSet, require_name
from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.calls import EditedCalls
from pyreft.adapters.stand_in import StandIn
from pyreft.annotations import ClassMethod, Inputs
from pyreft.base_model.rollback import unchanged_by_failure
from pyreft.base_model.towers import main_input
from pyreft.base_model.trained import TrainedModules
from pyreft.config import ReftConfig
from pyreft.editing.hooks import EditHooks
from pyreft.placement.arguments import NAMES, present
from pyreft.positions.spec import Positions
from pyreft.sharing import Formats, read_adapter
from pyreft.sharing.training_facts import TrainingFacts


class EditedModel(StandIn):
    """The core of `ReftModel`; see its docstring."""

    # The formats of adapters that it reads.
    adapter_formats = Formats(read_adapter)

    def __init__(
        self, config: ReftConfig, model: PreTrainedModel, adapter_name: str = "default"
    ) -> None:
        if isinstance(model, EditedModel):
            raise TypeError("the model has an adapter already: wrap the base, model.unwrap().")
        if not isinstance(config, ReftConfig) or not hasattr(model, "config"):
            raise TypeError(
                "ReftModel takes a ReftConfig and a transformers model, got "
                f"{type(config).__name__} and {type(model).__name__}."
            )
        super().__init__(model)
        with unchanged_by_failure(model):
            self._hooks = hooks = EditHooks(model)
            adapters = AdapterSet(hooks)
            adapters.add(
                require_name(adapter_name), AttachedAdapter(config, model, hooks.add_sites)
            )
        adapters.active = {adapter_name: 1.0}
        self.adapter_set, self.adapters = adapters, adapters.modules
        self.edited_calls = EditedCalls(self._hooks, adapters)
        self.train(model.training)

    # Methods for adapters by name, for files and for weights.
    add_adapter = named.add_adapter
    add_weighted_adapter = named.add_weighted_adapter
    set_adapter = named.set_adapter
    delete_adapter = named.delete_adapter
    record_positions = saving.record_positions
    save_pretrained = saving.save_pretrained
    write_card = saving.write_card
    push_to_hub = saving.push_to_hub
    from_pretrained = ClassMethod(reading.from_pretrained)
    load_adapter = reading.load_adapter
    load_weights = reading.load_weights
    merge_and_unload = merge_methods.merge_and_unload
    export_lora = merge_methods.export_lora
    summary, _repr_html_ = summaries.summarize, summaries.model_html

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that edit and are trained."""
        return list(self.adapter_set.active)

    @property
    def active_adapter(self) -> str:
        """The name of the active adapter, the first of several."""
        return self.adapter_set.active_name

    @property
    def interventions(self) -> nn.ModuleDict:
        """The modules of the active adapter, "layer_15_comp_block_output_unit_pos_nunit_1#0"."""
        return self.adapter_set.first.interventions

    @property
    def trained(self) -> TrainedModules:
        """The parts of the base model that the active adapter trains, `modules_to_save`."""
        return self.adapter_set.first.trained

    @property
    def reft_config(self) -> ReftConfig:
        """The config of the active adapter, with one entry for every intervention."""
        return self.adapter_set.first.config

    @reft_config.setter
    def reft_config(self, value: object) -> None:
        # Scripts store upstream's config here, and then set it to the base model's.
        if value is not self.model.config and value is not self.adapter_set.first.config:
            raise AttributeError("the config of an adapter cannot be replaced: add_adapter.")

    @property
    def training_facts(self) -> TrainingFacts | None:
        """What a trainer records of the training of the active adapter, for its card."""
        return self.adapter_set.first.training_facts

    @training_facts.setter
    def training_facts(self, facts: TrainingFacts | None) -> None:
        self.adapter_set.first.training_facts = facts

    # ---- calls --------------------------------------------------------------------------------

    def _of_base(self, name: str) -> object:
        found = super()._of_base(name)
        # Features of texts and images are computed by methods beside `forward`.
        if callable(found) and name.startswith("get_") and name.endswith("_features"):
            return self.edited_calls.edited_method(self, found)
        return found

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Run `forward`, or a trainer's replacement of it, edited. For arguments, see `forward`.

        The edits are placed here because trainers replace `forward`: TRL's replacement takes the
        labels, runs only the backbone, and applies its own output head.
        """
        inputs = present({"input_ids": input_ids, "attention_mask": attention_mask, **kwargs})
        # Hooks on this model also get the arguments that are only for edits.
        edits = {name: inputs[name] for name in NAMES if name in inputs}
        run = partial(super().__call__, **edits) if self._forward_pre_hooks else super().__call__
        return self.edited_calls.run(self, run, inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        completion_mask: Tensor | None = None,
        intervention_locations: Tensor | None = None,
        subspaces: object = None,
        adapter_names: Sequence[str] | None = None,
        positions: Positions | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base model, edited.

        The end of each row's prompt is inferred: explicit `intervention_locations` take precedence;
        else the first true entry of `completion_mask`, or the first label that is not -100, ends
        it; else all tokens in the attention mask are the prompt. With a filled cache, the tokens
        are generated ones.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), zero on padding at either side.
            labels, position_ids, inputs_embeds, token_type_ids: As for the base model.
            completion_mask: (B, T), nonzero on the completion; for an encoder-decoder model, on
                the labels that are trained on. Not passed to the base model.
            intervention_locations: (B, I, P), positions for each of the I interventions in the
                order of `interventions`: the index of a token in its sequence, padding not
                counted; negative ones count from the end of the prompt; -100 is none.
            subspaces: Directions to edit: for each intervention None or a list that has a list for
                each row; or a (B, I, S) tensor; or one list for all.
            adapter_names: For each of the B rows the name of the adapter that edits it, or
                "__base__" for none; by default the active ones edit all rows.
            positions: A position spec for the interventions whose config leaves positions to the
                batch.
            **kwargs: For the base model.

        Returns:
            What the base model returns.

        Raises:
            ValueError: If the prompt of a row cannot be found, or a position is outside it.
            RuntimeError: If the adapter was removed with `unwrap`.
        """
        texts: Inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        texts |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        inputs = present(texts | {"token_type_ids": token_type_ids}) | kwargs
        if self._hooks.placed:
            return self.model(**inputs)
        # `forward` was called directly, not by `__call__`.
        edits: Inputs = {"completion_mask": completion_mask, "subspaces": subspaces}
        edits |= {"intervention_locations": intervention_locations}
        given = present(edits | {"adapter_names": adapter_names, "positions": positions})
        return self.edited_calls.run(self, self.model, inputs | given)

    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        intervention_locations: Tensor | None = None,
        subspaces: object = None,
        adapter_names: Sequence[str] | None = None,
        positions: Positions | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with the base model from an edited prompt.

        The prompt is edited during prefill. The decoding steps run the bare base model, except
        that the positions "all" and "completion" edit generated tokens as well. This holds with
        caches, beams, sampling, several sequences for each prompt, assisted decoding and chunked
        prefill. What all prompts of a batch begin with runs once if no adapter edits it.

        Args:
            inputs: (B, T) token ids; also as `input_ids`, or `inputs_embeds` (B, T, D); or sound.
            intervention_locations: (B, I, P), as in `forward`.
            subspaces, adapter_names, positions: As in `forward`.
            **kwargs: For the base model's `generate`. With `encoder_outputs`, the encoder does not
                run and nothing is edited in it.

        Returns:
            What the base model's `generate` returns.

        Raises:
            ValueError: If a position is outside the prompt.
            RuntimeError: If the adapter was removed with `unwrap`.
        """
        given = kwargs if inputs is None else {main_input(self.model, inputs): inputs, **kwargs}
        given |= {"intervention_locations": intervention_locations, "subspaces": subspaces}
        given |= {"adapter_names": adapter_names, "positions": positions}
        return self.edited_calls.generate(self, given)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Run the bare base model inside the block, in every thread.

        The original heads are in the model, and PEFT's LoRA is off if it is trained with the
        adapter. If blocks of several threads overlap, the last to end turns the adapter on again.
        """
        return self.adapter_set.disable(self.model)

    def unwrap(self) -> PreTrainedModel:
        """Remove the adapter, and return the original base model; it stays frozen."""
        self.adapter_set.unwrap()
        return self.model

    def place_interventions(self) -> None:
        """Move every intervention to the device of the part of the base model that it edits."""
        for adapter in self.adapter_set.values():
            adapter.move_to_components()

    def disable_model_gradients(self) -> None:
        """Freeze the base model, except for the adapter's `modules_to_save`."""
        self.model.requires_grad_(False)
        for name in self.active_adapters:
            self.adapter_set[name].trained.enable_gradients()
