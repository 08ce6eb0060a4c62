"""Put saved adapters on a base model: methods of `ReftModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.adapters.adapter_set import require_name
from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.build import Kinds
from pyreft.adapters.fitting import (
    explained,
    fit_tensors,
    load_tensors,
    require_base,
    require_config,
    require_sizes,
    with_kinds,
)
from pyreft.annotations import Arguments
from pyreft.base_model.loading import load_named_base
from pyreft.base_model.rollback import unchanged_by_failure
from pyreft.lora.peft_lora import let_lora_train, peft_tensors, put_lora, require_same_lora
from pyreft.sharing import Adapter, AdapterError, Formats, HubSource, find_adapter
from pyreft.sharing.checkpoint import CONFIG_NAME

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel

logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound="EditedModel")


def from_pretrained(
    cls: type[Model],
    model: PreTrainedModel | str | os.PathLike[str],
    directory: str | os.PathLike[str] | Adapter | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    model_kwargs: Arguments | None = None,
    kinds: Kinds = (),
) -> Model:
    """Put a saved adapter on its base model, in evaluation mode.

        ReftModel.from_pretrained(base, "directory")
        ReftModel.from_pretrained(base, "user/repo", revision="v1")
        ReftModel.from_pretrained("user/repo", model_kwargs={"dtype": torch.bfloat16})

    No code in the directory is run: kinds are names of classes that are already registered, or
    are given in `kinds`.

    Args:
        model: The base model it was trained on. If it is left out, the base model that the
            adapter names is loaded, at the revision it was trained on.
        directory: Where `save_pretrained` or another library wrote, see
            docs/interoperability.md; if there is no such directory, a repository on the
            Hub, "owner/name". Or an adapter that was read already.
        revision: A branch, a tag or a commit of the repository.
        token: Of a user who may read it; that of the log-in by default.
        subfolder: The folder of the adapter in the directory or repository.
        cache_dir: Where downloads are stored; the cache of `huggingface_hub` by default.
        local_files_only: Use only the cache, as with HF_HUB_OFFLINE=1.
        model_kwargs: For the base model that is loaded: arguments of transformers'
            `from_pretrained`, such as `dtype` and `device_map`.
        kinds: Your own classes of interventions, `[MyIntervention]`; or a dict from the name of
            a kind to a class or a function that makes it, `{"MyIntervention": make}`.

    Returns:
        The model in evaluation mode, with a frozen base model.

    Raises:
        AdapterError: If there is no adapter, or it is for another model, or its base model
            cannot be loaded.
        TypeError: If the base model and the directory are in the wrong order, or
            `model_kwargs` is given with a base model.
    """
    if (directory is None) is not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            "from_pretrained takes the base model first, then the directory; or the directory "
            "alone."
        )
    if model_kwargs is not None and directory is not None:
        raise TypeError("model_kwargs are for a base model that from_pretrained loads itself.")
    source = HubSource(revision, token, subfolder, cache_dir, local_files_only)
    if isinstance(model, (str, os.PathLike)):
        adapter = _read(cls.adapter_formats, model, source, kinds)
        model = load_named_base(adapter, source, model_kwargs)
    else:
        assert directory is not None
        adapter = _read(cls.adapter_formats, directory, source, kinds)
        if subfolder is None and not isinstance(directory, Adapter):
            _warn_of_others(Path(directory))
    return _put_on(cls, adapter, model)


def load_adapter(
    model: EditedModel,
    source: str | os.PathLike[str],
    adapter_name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    kinds: Kinds = (),
) -> None:
    """Load a saved adapter in addition to the existing ones; it is not active yet.

    If an adapter has this name, its weights are replaced in place: nothing is hooked or compiled
    again. Both must then have the same config.

    Args:
        source: Where `save_pretrained` or another library wrote; or a repository on the Hub.
        adapter_name: Its name: letters, digits, "_" and "-".
        revision, token, subfolder, cache_dir, local_files_only, kinds: As for
            `from_pretrained`.

    Raises:
        AdapterError: If there is no adapter, or it does not fit; nothing is changed.
        ValueError: If `adapter_name` is invalid.
        RuntimeError: Inside `disable_adapter`, or after `unwrap`.
    """
    require_name(adapter_name)
    origin = HubSource(revision, token, subfolder, cache_dir, local_files_only)
    saved = _read(model.adapter_formats, source, origin, kinds)
    require_base(saved, model.model)
    if saved.lora is not None:
        raise AdapterError(
            f"{saved.origin} has PEFT's LoRA, which belongs to a single adapter: load it with "
            "ReftModel.from_pretrained, on a separate base model."
        )
    if adapter_name in model.adapter_set:
        existing = model.adapter_set[adapter_name]
        _load(saved, existing, existing.trained.trained_values(), {})
        return
    require_sizes(saved)
    with explained(saved), model.adapter_set.making(saved.config, model.model) as adapter:
        load_tensors(fit_tensors(saved, adapter, adapter.trained.tensors(), {}))
    model.adapter_set.add(adapter_name, adapter)


def load_weights(model: EditedModel, directory: str | os.PathLike[str]) -> None:
    """Load the weights of saved adapters of the same configs into the active ones.

    Args:
        directory: Where `save_pretrained` wrote, or a trainer's checkpoint.

    Raises:
        AdapterError: If it is not an adapter, or its config differs; nothing is changed.
    """
    adapters = model.adapter_set
    for name in adapters.active:
        saved = model.adapter_formats.read(adapters.folder(directory, name))
        require_base(saved, model.model)
        trained, lora = adapters.trained_with(name, model.model)
        if name == adapters.active_name:
            require_same_lora(saved, model.model)
        _load(saved, adapters[name], trained, lora)


def _read(
    formats: Formats, origin: str | os.PathLike[str] | Adapter, source: HubSource, kinds: Kinds
) -> Adapter:
    if not isinstance(origin, Adapter):
        origin = formats.read(find_adapter(origin, source, formats.others))
    return with_kinds(origin, kinds) if kinds else origin


def _warn_of_others(directory: Path) -> None:
    """Warn if several adapters were saved in a directory, of which one was loaded."""
    names = sorted(file.parent.name for file in directory.glob(f"*/{CONFIG_NAME}"))
    # A trainer's checkpoints lie beside what it saved last.
    others = [name for name in names if not name.startswith("checkpoint-")]
    if others:
        logger.warning(
            f"{directory} has further adapters, which are not loaded: {', '.join(others)}. Load "
            f"one with load_adapter(directory, {others[0]!r}, subfolder={others[0]!r}), or alone "
            f"with from_pretrained(base, directory, subfolder={others[0]!r})."
        )


def _put_on(cls: type[Model], adapter: Adapter, base: PreTrainedModel) -> Model:
    """Put an adapter on a base model, which is left unchanged if the adapter does not fit."""
    require_base(adapter, base)
    require_sizes(adapter)
    with unchanged_by_failure(base), explained(adapter):
        if adapter.lora is not None:
            base = put_lora(base, adapter)
        model = cls(adapter.config, base)
        put = model.adapter_set.first
        load_tensors(fit_tensors(adapter, put, put.trained.tensors(), peft_tensors(base)))
    model.place_interventions()
    model.disable_model_gradients()
    if adapter.lora is not None:
        # Like heads, the LoRA belongs to the adapter: it is trainable and saved with it.
        let_lora_train(base)
    return model.eval()


def _load(
    saved: Adapter,
    attached: AttachedAdapter,
    trained: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
) -> None:
    """Load the weights of a saved adapter into one of the same config.

    Args:
        saved: The saved adapter.
        attached: The adapter on the base model.
        trained: Its trained tensors, by name.
        lora: The tensors of its LoRA, by PEFT's names.

    Raises:
        AdapterError: If its config differs, or its tensors do not fit; nothing is changed.
    """
    require_config(saved, attached.config, attached.left_to_batch)
    pairs = fit_tensors(saved, attached, trained, lora)
    theirs = [c.positions for c in saved.config.representations if c.positions is not None]
    if len(theirs) == len(saved.config.representations):
        with explained(saved):
            attached.record_positions(theirs)
    load_tensors(pairs)
    attached.training_facts = None
