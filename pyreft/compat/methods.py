"""Upstream's methods of `ReftModel`, under upstream's names and with its arguments."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyreft.compat.locations import locations_tensor
from pyreft.sharing import HubFiles, download_adapter


class UpstreamMethods:
    """What scripts written for stanfordnlp/pyreft 0.1.0 call on a `ReftModel`.

    Called with a dict as first argument, the model follows upstream's convention:

        _, outputs = model(batch, unit_locations={"sources->base": (None, [[[7]]])}, labels=...)
        _, ids = model.generate(prompt, unit_locations=..., intervene_on_prompt=True, ...)

    and returns the pair (outputs of the bare base model or None, outputs edited). Deviation: a
    unit location is the index of a token in its sequence, padding not counted, and upstream's is
    a column of the padded batch; the two differ under left padding alone.
    """

    # What `ReftModel` defines.
    model: Any
    adapters: Any
    __call__: Any
    generate: Any
    disable_adapter: Any
    save_pretrained: Any
    push_to_hub: Any
    load_weights: Any
    from_pretrained: Any
    if TYPE_CHECKING:
        interventions = trained = property()

    def _forward_upstream(
        self,
        base: Mapping[str, Any],
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        subspaces: Any = None,
        labels: Tensor | None = None,
        output_original_output: bool = False,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        completion_mask: Tensor | None = None,
        intervention_locations: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        _refuse_sources(sources, source_representations)
        extra = {"labels": labels, "use_cache": use_cache, "return_dict": return_dict, **kwargs}
        inputs = dict(base) | {name: v for name, v in extra.items() if v is not None}
        locations = locations_tensor(unit_locations, len(self.interventions), _rows(base))
        inputs |= {
            "completion_mask": completion_mask,
            "intervention_locations": intervention_locations if locations is None else locations,
            "subspaces": subspaces,
        }
        original = None
        if output_original_output:
            with self.disable_adapter():
                original = self(**inputs)
        return original, self(**inputs)

    def _generate_upstream(
        self,
        base: Mapping[str, Any],
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        intervene_on_prompt: bool = False,
        subspaces: Any = None,
        output_original_output: bool = False,
        intervention_locations: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        _refuse_sources(sources, source_representations)
        if unit_locations is not None and not intervene_on_prompt:
            raise ValueError(
                "unit_locations are positions of the prompt: they need intervene_on_prompt=True. "
                'To edit every generated token, give the intervention the positions "completion".'
            )
        locations = locations_tensor(unit_locations, len(self.interventions), _rows(base))
        locations = intervention_locations if locations is None else locations
        inputs = dict(base) | kwargs
        original = None
        if output_original_output:
            with self.disable_adapter():
                original = self.generate(**inputs)
        edited = self.generate(**inputs, intervention_locations=locations, subspaces=subspaces)
        return original, edited

    # ---- devices and gradients ------------------------------------------------------------

    def set_device(self, device: torch.device | str, set_model: bool = True) -> None:
        """Move the adapters, and the base model unless `set_model` is false."""
        self.adapters.to(device)
        if set_model:
            self.model.to(device)

    def get_device(self) -> torch.device:
        """The device of the base model."""
        return self.model.device

    def disable_model_gradients(self) -> None:
        """Freeze the base model, but for what the adapter names in `modules_to_save`."""
        self.model.requires_grad_(False)
        self.trained.enable_gradients()

    def enable_model_gradients(self) -> None:
        """Let the base model learn as well."""
        self.model.requires_grad_(True)

    # ---- counting -------------------------------------------------------------------------

    def count_parameters(self, include_model: bool = False) -> int:
        """The number of trainable parameters of the adapter, or of adapter and base model."""
        counted = _trainable(self.adapters)
        return counted + _trainable(self.model) if include_model else counted

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, and how many the base model has."""
        adapter, base = self.count_parameters(), _trainable(self.model)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        print(
            f"trainable intervention params: {adapter:,d} || trainable model params: {base:,d}\n"
            f"model params: {total:,d} || trainable%: {100 * (adapter + base) / total}"
        )

    # ---- saving and loading ---------------------------------------------------------------

    def save(
        self,
        save_directory: str | os.PathLike,
        save_to_hf_hub: bool = False,
        hf_repo_name: str = "my-awesome-model",
        include_model: bool = False,
    ) -> None:
        """Save the adapter, see `save_pretrained`, and with `save_to_hf_hub` push it as well.

        Args:
            save_directory: Where to save it.
            save_to_hf_hub: Whether to push it, see `push_to_hub`.
            hf_repo_name: The repository, "owner/name", or "name" for one of one's own.
            include_model: For `save_intervention`.
        """
        self.save_intervention(save_directory, include_model=include_model)
        if save_to_hf_hub:
            self.push_to_hub(hf_repo_name)

    def save_intervention(
        self, save_directory: str | os.PathLike, include_model: bool = True
    ) -> None:
        """Save the adapter, and whatever of the base model is trained with it in any case."""
        self.save_pretrained(save_directory)

    def load_intervention(
        self, load_directory: str | os.PathLike, include_model: bool = True
    ) -> None:
        """Load the weights of a saved adapter into this one, which must have the same config.

        Raises:
            AdapterError: If the directory is no adapter, or another config's; nothing is changed.
        """
        self.load_weights(load_directory)

    @classmethod
    def load(
        cls,
        load_directory: str | os.PathLike,
        model: PreTrainedModel,
        local_directory: str | None = None,
        from_huggingface_hub: bool = False,
        include_model: bool = False,
    ) -> Any:
        """Put a saved adapter on a base model; upstream's order of arguments.

        Args:
            load_directory: As for `from_pretrained`, a directory or a repository of the Hub.
            model: The base model.
            local_directory: Where to copy what was downloaded.
            from_huggingface_hub: Whether it is a repository even where such a directory is there.
            include_model: What of the base model was trained is loaded in any case.

        Raises:
            AdapterError: If there is no adapter, or one for another model.
        """
        if from_huggingface_hub:
            load_directory = download_adapter(HubFiles(os.fspath(load_directory)))
            if local_directory is not None:
                load_directory = shutil.copytree(
                    load_directory, local_directory, dirs_exist_ok=True
                )
        elif local_directory is not None:
            raise ValueError("local_directory is for downloads, from_huggingface_hub=True.")
        return cls.from_pretrained(model, load_directory)


def refuse_upstream_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments of upstream's convention in a call of transformers'."""
    for name in ("unit_locations", "sources", "source_representations", "intervene_on_prompt"):
        if name in arguments:
            raise TypeError(
                f"{name} belongs to upstream's convention, model({{...}}, {name}=...), with the "
                "batch as a dict; here positions are intervention_locations."
            )


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _rows(base: Mapping[str, Any]) -> int:
    tensors = [value for value in base.values() if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(
            f"a batch is a dict of tensors, input_ids among them; got {dict(base)!r}. A tokenizer "
            'makes one with return_tensors="pt".'
        )
    return tensors[0].shape[0]


def _refuse_sources(sources: Any, source_representations: Any) -> None:
    if any(source is not None for source in (sources, source_representations)):
        raise ValueError("ReFT interventions have no sources; give None for them.")
