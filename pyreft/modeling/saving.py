"""What a `ReftModel` does with files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from pyreft.modeling.adapter import load_tensors, require_base, require_config, take_adapter
from pyreft.modeling.lora import has_lora, load_peft, peft_tensors, save_peft
from pyreft.modeling.named import NamedAdapters
from pyreft.modeling.replicas import require_whole
from pyreft.modeling.trained import trained_by_hand
from pyreft.positions import PositionSpec
from pyreft.sharing import AdapterError, read_adapter, save_adapter

if TYPE_CHECKING:
    from typing_extensions import Self


class SavedAdapter(NamedAdapters):
    """The part of `ReftModel` that saves and loads its adapter."""

    # What `ReftModel` defines.
    __init__: Any

    def record_positions(self, positions: list[PositionSpec]) -> None:
        """Give positions to the interventions, where the config left them to the batch.

        A data module knows where it put the interventions; with this the adapter knows as well,
        and acts there wherever it is loaded.

        Args:
            positions: One for all interventions, or one for each.

        Raises:
            ValueError: If the number of positions does not fit, or the config says others.
        """
        self._adapter.record_positions(positions)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        is_main_process: bool = True,
        allow_other_files: bool = False,
    ) -> None:
        """Save the adapter: `reft_config.json` and `reft_model.safetensors`.

        Parameters of the base model that are trained are saved with it: `modules_to_save`, and
        whatever else requires a gradient. A LoRA of PEFT's goes into PEFT's own files beside them.

        Args:
            save_directory: A new or empty directory, or one that holds an adapter, which is
                replaced, beside it whatever tokenizers and trainers write.
            is_main_process: Whether to save at all; false in the other processes of a run.
            allow_other_files: Save beside whatever the directory holds.

        Raises:
            AdapterError: If the directory holds something else.
            ValueError: If a kind or a position function has no name to be saved under, or this
                process has only shards of the interventions.
        """
        if is_main_process:
            require_whole(self.interventions)
            adapter = take_adapter(
                self.model, self.reft_config, self.interventions, self._trained_tensors()
            )
            save_adapter(save_directory, adapter, allow_other_files=allow_other_files)
            if peft_tensors(self.model):
                save_peft(self.model, save_directory)

    def _trained_tensors(self) -> dict[str, Tensor]:
        """Tensors of the base model that belong to the adapter, but for what PEFT saves."""
        named = self.trained.tensors()
        beside = [*named.values(), *peft_tensors(self.model).values()]
        return self.trained.learned() | trained_by_hand(self.model, beside)

    def load_weights(self, directory: str | os.PathLike) -> None:
        """Load the weights of a saved adapter of the same config into this one.

        Raises:
            AdapterError: If the directory is no adapter, or another config's; nothing is changed.
        """
        adapter = read_adapter(directory)
        require_base(adapter, self.model)
        require_config(adapter, self.reft_config, self._adapter.left_to_batch)
        with_lora = has_lora(adapter)
        if with_lora != bool(peft_tensors(self.model)):
            has, lacks = ("this model", directory)[:: -1 if with_lora else 1]
            raise AdapterError(f"{has} has a LoRA of PEFT's, {lacks} has none.")
        load_tensors(adapter, self.reft_config, self.interventions, self._trained_tensors())
        if with_lora:
            load_peft(self.model, directory)
        theirs = [config.positions for config in adapter.config.representations]
        if all(spec is not None for spec in theirs):
            self.record_positions([spec for spec in theirs if spec is not None])

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | os.PathLike) -> Self:
        """Put a saved adapter on a base model, in evaluation mode.

        Nothing in the directory is run: kinds are names of classes that are registered already.

        Args:
            model: The base model it was trained on.
            directory: Where `save_pretrained` wrote.

        Raises:
            AdapterError: If the directory is no adapter, or one for another model.
        """
        if isinstance(model, (str, os.PathLike)):
            raise TypeError("from_pretrained takes the base model first, then the directory.")
        adapter = read_adapter(directory)
        require_base(adapter, model)
        base: Any = load_peft(model, directory) if has_lora(adapter) else model
        try:
            reft_model: Any = cls(adapter.config, base)
            try:
                trained = reft_model.trained.tensors()
                load_tensors(adapter, reft_model.reft_config, reft_model.interventions, trained)
            except AdapterError:
                reft_model.unwrap()
                raise
        except (ValueError, TypeError) as error:
            if base is not model:
                base.unload()
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(f"the adapter {adapter.origin} does not fit: {error}") from error
        reft_model.place_interventions()
        reft_model.disable_model_gradients()
        if has_lora(adapter):
            # As heads do: what belongs to the adapter can be trained on, and is saved with it.
            base.set_adapter(base.active_adapter)
        return reft_model.eval()
