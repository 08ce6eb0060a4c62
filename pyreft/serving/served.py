"""A saved adapter, as an engine serves it: what it edits, and which tokens of a prompt.

The base model is there without its weights, so that an adapter is checked as on a base model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import torch
import transformers
from torch import nn

from pyreft.adapters.attached import AttachedAdapter
from pyreft.adapters.fitting import (
    explained,
    fit_tensors,
    load_tensors,
    require_base,
    require_sizes,
)
from pyreft.base_model.components import Component
from pyreft.base_model.layout import ROWS_FIRST
from pyreft.placement.placement import place
from pyreft.placement.targets import Target
from pyreft.positions import Tokens
from pyreft.serving.places import Place, place_of
from pyreft.serving.sources import Weighted
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.reading import fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build_base(config: PretrainedConfig) -> PreTrainedModel:
    """The model that a config describes, on the device "meta": its structure alone."""
    names = config.architectures or []
    found = next((cls for one in names if (cls := getattr(transformers, one, None))), None)
    with torch.device("meta"):
        make = transformers.AutoModelForCausalLM.from_config if found is None else found
        made = make(config)
    model: PreTrainedModel = made.eval()
    return model


@dataclass(frozen=True)
class Chosen:
    """Tokens of a text that several interventions edit.

    Args:
        positions: (P,) int64, increasing: those in the prompt.
        after: Whether all tokens after the prompt are edited as well.
        interventions: The indices of the interventions.
    """

    positions: torch.Tensor
    after: bool
    interventions: tuple[int, ...]


@dataclass(frozen=True)
class EditedPrompt:
    """The tokens that an adapter edits in one text.

    Args:
        length: The number of tokens of the prompt.
        chosen: What is edited; no two have the same interventions.
    """

    length: int
    chosen: Sequence[Chosen]

    @cached_property
    def last(self) -> int:
        """The last edited position of the prompt, -1 if there is none."""
        ends = [int(one.positions[-1]) for one in self.chosen if len(one.positions)]
        return max(ends, default=-1)

    @cached_property
    def after(self) -> bool:
        """Whether any token after the prompt is edited."""
        return any(one.after for one in self.chosen)

    def within(self, start: int, stop: int) -> list[tuple[torch.Tensor, Chosen]]:
        """The edited positions among the tokens from `start` to `stop`, where there are any."""
        if start > self.last and not self.after:
            return []
        found = []
        for one in self.chosen:
            first, end = torch.searchsorted(one.positions, torch.tensor([start, stop])).tolist()
            inside = one.positions[first:end]
            if one.after and stop > self.length:
                inside = torch.cat([inside, torch.arange(max(start, self.length), stop)])
            if len(inside):
                found.append((inside, one))
        return found


class ServedAdapter:
    """An adapter that can be served, or several with weights, whose edits are summed.

    Args:
        saved: The adapters, and the factor of the edits of each.
        base: The structure of the base model.

    Attributes:
        summed: Whether edits are summed, see `SiteEdits`.
        interventions: Its modules, in evaluation mode, on the CPU.
        targets: For each, what it edits in transformers' model.
        places: For each, the hidden state that it edits.
        weights: For each, the factor of its edits.
        fingerprint: Equal for adapters with the same configs, parameters and weights.

    Raises:
        AdapterError: If one does not fit the base model, or cannot be served, with the reason.
    """

    def __init__(self, saved: Sequence[Weighted], base: PreTrainedModel) -> None:
        self.summed = len(saved) > 1 or saved[0][1] != 1.0
        self.interventions: list[nn.Module] = []
        self.targets: list[Target] = []
        self.places: list[Place] = []
        self.weights: list[float] = []
        self._parts: list[list[Target]] = []
        found = []
        for adapter, weight in saved:
            attached = _attach(adapter, base)
            with explained(adapter):
                self.places += [_require_served(base, one) for one in attached.targets]
            self.interventions += attached.interventions.values()
            self.targets += attached.targets
            self.weights += [weight] * len(attached.targets)
            self._parts.append(attached.targets)
            config = json.dumps(attached.config.to_dict(), sort_keys=True)
            found.append((fingerprint(config, adapter.tensors), weight))
        specs = [target.positions for target in self.targets if target.positions is not None]
        self._reads_ids = any(not word.spans() for spec in specs for word in spec.words)
        # Processes of an engine that are one ask for the same prompt, one after the other.
        self._place_by_length = lru_cache(maxsize=8)(partial(_place, self._parts))
        self.fingerprint = hashlib.sha256(repr(found).encode()).hexdigest()

    def place(self, length: int, input_ids: Sequence[int] | None = None) -> EditedPrompt:
        """Find the tokens that are edited.

        Args:
            length: The number of tokens of the prompt.
            input_ids: Their ids, for registered functions that choose positions.

        Raises:
            ValueError: If the prompt has no such position.
        """
        if self._reads_ids and input_ids is not None:
            return _place(self._parts, length, torch.tensor([list(input_ids[:length])]))
        return self._place_by_length(length)


def _place(
    parts: Sequence[Sequence[Target]], length: int, ids: torch.Tensor | None = None
) -> EditedPrompt:
    prompt = torch.ones(1, length, dtype=torch.bool)
    tokens = Tokens(prompt, torch.zeros_like(prompt), ids)
    chosen, first = [], 0
    for targets in parts:
        placed = place(targets, {None: tokens})
        assert placed is not None
        masks: dict[tuple[int, bool], list[int]] = {}
        for index, mask in placed.masks.items():
            masks.setdefault((id(mask), index in placed.generated), []).append(index)
        chosen += [
            Chosen(
                placed.masks[group[0]][0].nonzero().flatten(),
                after,
                tuple(first + index for index in group),
            )
            for (_, after), group in masks.items()
        ]
        first += len(targets)
    return EditedPrompt(length, chosen)


def _attach(saved: Adapter, base: PreTrainedModel) -> AttachedAdapter:
    """The modules and targets of an adapter, with its parameters."""
    require_base(saved, base)
    _require_only_edits(saved)
    require_sizes(saved)
    with explained(saved):
        attached = AttachedAdapter(saved.config, base, _number_sites)
        load_tensors(fit_tensors(saved, attached, {}, {}))
    attached.eval().requires_grad_(False)
    return attached


def _number_sites(components: Sequence[Component]) -> list[int]:
    numbers: dict[tuple[nn.Module, str, int], int] = {}
    keys = ((one.module, one.side, one.run) for one in components)
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _require_only_edits(saved: Adapter) -> None:
    """Raise AdapterError for an adapter that is more than interventions with positions."""
    if saved.config.modules_to_save:
        trained = ", ".join(saved.config.modules_to_save)
        why = f"it has trained {trained} of the base model, which all requests share"
    elif saved.lora is not None:
        why = "it has PEFT's LoRA: merge it into the base model first"
    elif any(one.positions is None for one in saved.config.representations):
        why = (
            "its config leaves positions to the batch, and a request has none: save it with them, "
            "see ReftModel.record_positions"
        )
    else:
        return
    raise AdapterError(f"{saved.origin} cannot be served: {why}.")


def _require_served(base: PreTrainedModel, target: Target) -> Place:
    """The place of a target; ValueError, with the reason, if an engine does not have it."""
    component = target.component
    if component.stack is not None or component.in_head or component.runs > 1:
        raise ValueError(
            f"{target.config.place} cannot be served: it is not in a layer of a model with one "
            "stack of layers that each run once"
        )
    if component.layout != ROWS_FIRST:
        raise ValueError(
            f"{target.config.place} cannot be served: its hidden state is not (tokens, width)"
        )
    return place_of(base, target)
