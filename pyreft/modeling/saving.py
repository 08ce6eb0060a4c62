"""What a `ReftModel` does with files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from pyreft.modeling.adapter import (
    fit_tensors,
    load_tensors,
    require_base,
    require_sizes,
    take_adapter,
)
from pyreft.modeling.lora import peft_files, peft_tensors, put_lora, require_same_lora
from pyreft.modeling.named import NamedAdapters
from pyreft.modeling.replicas import require_whole
from pyreft.modeling.rollback import unchanged_by_failure
from pyreft.modeling.trained import trained_by_hand
from pyreft.positions import PositionSpec
from pyreft.sharing import Adapter, AdapterError, read_adapter, save_adapter
from pyreft.sharing.card import write_card
from pyreft.sharing.training_facts import TrainingFacts

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
        """Save the adapter: `reft_config.json`, `reft_model.safetensors`, and its card.

        Parameters of the base model that are trained are saved with it: `modules_to_save`, and
        whatever else requires a gradient. So is a LoRA of PEFT's, once more in PEFT's own files.
        A save that is killed, or finds the disk full, leaves what was there before. A `README.md`
        that people wrote or edited stays as it is.

        Args:
            save_directory: A new or empty directory, or one that holds an adapter, which is
                replaced, beside it whatever tokenizers and trainers write.
            is_main_process: Whether to save at all; false in the other processes of a run.
            allow_other_files: Save beside whatever the directory holds.

        Raises:
            AdapterError: If the directory holds something else.
            ValueError: If a kind or a position function has no name to be saved under, this
                process has only shards of the interventions, or PEFT trains more than a LoRA.
        """
        if is_main_process:
            require_whole(self.interventions)
            adapter = self._take_adapter()
            beside = peft_files(self.model) if adapter.lora is not None else {}
            save_adapter(save_directory, adapter, allow_other_files, beside)
            write_card(save_directory, adapter, self.training_facts)

    def write_card(self, directory: str | os.PathLike) -> None:
        """Write the model card of the adapter as it is now, as `save_pretrained` does.

        Args:
            directory: Where the adapter was saved.
        """
        write_card(directory, self._take_adapter(), self.training_facts)

    @property
    def training_facts(self) -> TrainingFacts | None:
        """What a trainer knows of how the active adapter was made, for its card."""
        return self._adapter.training_facts

    @training_facts.setter
    def training_facts(self, facts: TrainingFacts | None) -> None:
        self._adapter.training_facts = facts

    def _take_adapter(self) -> Adapter:
        return take_adapter(
            self.model, self.reft_config, self.interventions, self._trained_tensors()
        )

    def _trained_tensors(self) -> dict[str, Tensor]:
        """Tensors of the base model that belong to the adapter, but for a LoRA's."""
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
        require_same_lora(adapter, self.model)
        lora = peft_tensors(self.model)
        self._adapter.load(adapter, self.model, self._trained_tensors(), lora)

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
        require_sizes(adapter)
        with unchanged_by_failure(model):
            try:
                base: Any = model if adapter.lora is None else put_lora(model, adapter)
                reft_model: Any = cls(adapter.config, base)
                trained, lora = reft_model.trained.tensors(), peft_tensors(base)
                modules = reft_model.interventions
                load_tensors(fit_tensors(adapter, reft_model.reft_config, modules, trained, lora))
            except AdapterError:
                raise
            # A kind of the user's own may fail in any way on arguments it does not expect.
            except Exception as error:
                raise AdapterError(f"the adapter {adapter.origin} does not fit: {error}") from error
        reft_model.place_interventions()
        reft_model.disable_model_gradients()
        if adapter.lora is not None:
            # As heads do: what belongs to the adapter can be trained on, and is saved with it.
            base.set_adapter(base.active_adapter)
        return reft_model.eval()
