"""What a `ReftModel` does with files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.build import Kinds
from pyreft.adapters.fitting import (
    fit_tensors,
    load_tensors,
    require_base,
    require_sizes,
    take_adapter,
    with_kinds,
)
from pyreft.adapters.named import AdaptersMixin
from pyreft.adapters.replicas import require_whole
from pyreft.base_model.loading import load_named_base
from pyreft.base_model.rollback import unchanged_by_failure
from pyreft.base_model.trained import trained_by_hand
from pyreft.compat.formats import FILE_PATTERNS, read_any
from pyreft.lora.merging import export_lora, merge_and_unload
from pyreft.lora.peft_lora import peft_files, peft_tensors, put_lora, require_same_lora
from pyreft.positions import PositionSpec
from pyreft.sharing import Adapter, AdapterError, find_adapter, save_adapter
from pyreft.sharing.card import write_card
from pyreft.sharing.training_facts import TrainingFacts

if TYPE_CHECKING:
    from typing_extensions import Self


class SavingMixin(AdaptersMixin):
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
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
        allow_other_files: bool = False,
    ) -> None:
        """Save the adapter: `reft_config.json`, `reft_model.safetensors`, and its card.

        Of several adapters, as with PEFT, "default" goes into the directory, and each other one
        into a folder of its name in it.

        Parameters of the base model that are trained are saved with it: `modules_to_save`, and
        whatever else requires a gradient. So is PEFT's LoRA, once more in PEFT's own files.
        A save that is killed, or finds the disk full, leaves what was there before. A `README.md`
        that people wrote or edited stays as it is.

        Args:
            save_directory: A new or empty directory, or one that holds an adapter, which is
                replaced, beside it whatever tokenizers and trainers write.
            selected_adapters: Names of the adapters to save; all by default.
            is_main_process: Whether to save at all; false in the other processes of a run.
            allow_other_files: Save beside whatever the directory holds.

        Raises:
            AdapterError: If the directory holds something else.
            ValueError: If a kind or a position function has no name to be saved under, this
                process has only shards of the interventions, or PEFT trains more than a LoRA.
        """
        names = list(self.adapters) if selected_adapters is None else list(selected_adapters)
        self._require_known(names)
        for name in names if is_main_process else ():
            require_whole(self.adapters[name])
            adapter, folder = self._take_adapter(name), self._folder(save_directory, name)
            beside = peft_files(self.model) if adapter.lora is not None else {}
            save_adapter(folder, adapter, allow_other_files, beside)
            write_card(folder, adapter, self.adapters[name].training_facts)

    def _folder(self, directory: str | os.PathLike, name: str) -> Path:
        """Where in a directory an adapter is saved."""
        alone = name == "default" or len(self.adapters) == 1
        return Path(directory) if alone else Path(directory) / name

    def write_card(self, directory: str | os.PathLike) -> None:
        """Write the model card of each adapter as it is now, as `save_pretrained` does.

        Args:
            directory: Where the model was saved.
        """
        for name, adapter in self.adapters.items():
            folder = self._folder(directory, name)
            write_card(folder, self._take_adapter(name), adapter.training_facts)

    @property
    def training_facts(self) -> TrainingFacts | None:
        """What a trainer knows of how the active adapter was made, for its card."""
        return self._adapter.training_facts

    @training_facts.setter
    def training_facts(self, facts: TrainingFacts | None) -> None:
        self._adapter.training_facts = facts

    def _take_adapter(self, name: str) -> Adapter:
        adapter: AttachedAdapter = self.adapters[name]
        trained, lora = self._trained_beside(name)
        return take_adapter(self.model, adapter.config, adapter.interventions, trained, lora)

    def _trained_beside(self, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors of the base model, and of a LoRA, that belong to an adapter.

        What learns without being named anywhere goes with the active one.
        """
        trained = self.adapters[name].trained
        if name != self.active_adapter:
            return trained.learned(), {}
        lora = peft_tensors(self.model)
        others = [a.trained.tensors() for a in self.adapters.values()]
        beside = [t for tensors in (*others, lora) for t in tensors.values()]
        return trained.learned() | trained_by_hand(self.model, beside), lora

    def load_weights(self, directory: str | os.PathLike) -> None:
        """Load the weights of saved adapters of the same configs into the active ones.

        Args:
            directory: Where `save_pretrained` wrote, or a trainer its checkpoint.

        Raises:
            AdapterError: If the directory is no adapter, or another config's; nothing is changed.
        """
        for name in self.active_adapters:
            adapter = read_any(self._folder(directory, name))
            require_base(adapter, self.model)
            trained, lora = self._trained_beside(name)
            if name == self.active_adapter:
                require_same_lora(adapter, self.model)
            self.adapters[name].load(adapter, self.model, trained, lora)

    def merge_and_unload(self, add_bias: bool = False) -> PreTrainedModel:
        """Put the active adapters into the weights of the base model, and return that.

        See `pyreft.lora.merging.merge_and_unload`.

        Args:
            add_bias: Give a linear map without a bias one, where the edit has a constant part.

        Raises:
            ValueError: If an intervention cannot be merged; nothing is changed.
        """
        model: Any = self
        return merge_and_unload(model, add_bias)

    def export_lora(self, directory: str | os.PathLike) -> None:
        """Write the active adapters as PEFT's LoRA.

        See `pyreft.lora.merging.export_lora`.

        Args:
            directory: A new or empty directory.

        Raises:
            ValueError: If an intervention cannot be a LoRA.
            ImportError: If PEFT is not installed.
        """
        model: Any = self
        export_lora(model, directory)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel | str | os.PathLike,
        directory: str | os.PathLike | Adapter | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        kinds: Kinds = (),
    ) -> Self:
        """Put a saved adapter on its base model, in evaluation mode.

            ReftModel.from_pretrained(base, "directory")
            ReftModel.from_pretrained(base, "user/repo", revision="v1")
            ReftModel.from_pretrained("user/repo", model_kwargs={"dtype": torch.bfloat16})

        Nothing in the directory is run: kinds are names of classes that are registered already, or
        that `kinds` gives.

        Args:
            model: The base model it was trained on. Without one, the base model that the adapter
                names is loaded, at the revision it was trained on.
            directory: Where `save_pretrained` wrote, or another library, see
                docs/interoperability.md; where there is no such directory, a repository on the
                Hub, "owner/name". Or an adapter that was read already.
            revision: A branch, a tag or a commit of the repository.
            token: Of a user who may read it; that of the log-in by default.
            subfolder: Where in the directory or repository.
            cache_dir: Where downloads are kept; the cache of `huggingface_hub` by default.
            local_files_only: Use what is in the cache, as with HF_HUB_OFFLINE=1.
            model_kwargs: For the base model that is loaded: arguments of transformers'
                `from_pretrained`, such as `dtype` and `device_map`.
            kinds: The classes of interventions of your own, `[MyIntervention]`; or by the name of
                the kind a class, or a function that makes the module, `{"MyIntervention": make}`.

        Returns:
            The model in evaluation mode, the base model frozen.

        Raises:
            AdapterError: If there is no adapter, or one for another model, or its base model
                cannot be loaded.
            TypeError: If the base model and the directory are given in another order, or
                `model_kwargs` with a base model.
        """
        alone = directory is None
        if alone is not isinstance(model, (str, os.PathLike)):
            raise TypeError(
                "from_pretrained takes the base model first, then the directory; or the directory "
                "alone."
            )
        if model_kwargs is not None and not alone:
            raise TypeError("model_kwargs are for a base model that from_pretrained loads itself.")
        cache: Any = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        place: Any = model if alone else directory
        if not isinstance(place, Adapter):
            where: Any = {"revision": revision, "subfolder": subfolder, "others": FILE_PATTERNS}
            place = find_adapter(place, **where, **cache)
        adapter = read_any(place)
        if kinds:
            adapter = with_kinds(adapter, kinds)
        if alone:
            model = load_named_base(adapter, model_kwargs=model_kwargs, **cache)
        return cls._of_adapter(adapter, model)

    @classmethod
    def _of_adapter(cls, adapter: Adapter, model: Any) -> Self:
        """A base model with an adapter that was read; without, if it does not fit."""
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
