"""The hidden states that a forward pass edits, and which tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pyreft.adapters.model import EditedModel
from pyreft.base_model.components import Component
from pyreft.base_model.layout import ROWS_FIRST
from pyreft.config.groups import place_of
from pyreft.editing.pass_plan import Placed
from pyreft.pictures.prompt import Prompt
from pyreft.placement.arguments import NAMES


@dataclass(frozen=True)
class Site:
    """A hidden state that is edited.

    Args:
        component: The module and side.
        name: The name of the component.
        layer: The index of the layer; None if a path has none.
        edited: (T,) bool, the columns that are edited.
    """

    component: Component
    name: str
    layer: int | None
    edited: Tensor


def label_sites(places: Sequence[tuple[str, int | None]]) -> tuple[str, ...]:
    """The label of each hidden state: its layer, and its component if there are several.

    Args:
        places: For each the name of the component, and the layer; None if a path has none.
    """
    several = len({name for name, _ in places}) > 1
    return tuple(
        name if layer is None else f"{layer} {name}" if several else str(layer)
        for name, layer in places
    )


def place_edits(model: EditedModel, prompt: Prompt, adapter: str | None = None) -> list[Placed]:
    """Where a call with this prompt edits.

    Args:
        model: The model.
        prompt: The prompt.
        adapter: The name of an adapter, which edits alone, with a weight of 1; by default the
            active ones do.

    Raises:
        ValueError: If there is no such adapter, no token is edited, or a hidden state is one that
            pictures do not show.
    """
    inputs = dict(prompt.inputs)
    if adapter is not None:
        model.adapter_set.require_known([adapter])
        if model.adapter_set.active != {adapter: 1.0}:
            inputs["adapter_names"] = [adapter]
    placed = model.edited_calls.place(model, inputs)
    if not any(bool(mask.any()) for one in placed for mask in one.placement.masks.values()):
        disabled = " disable_adapter() is on." if model.adapter_set.disabled else ""
        raise ValueError(
            f"no token of this prompt is edited.{disabled} If the config leaves positions to the "
            "batch, give intervention_locations or positions with it."
        )
    for target in (one.targets[index] for one in placed for index in one.placement.masks):
        component = target.component
        if component.layout != ROWS_FIRST or component.runs > 1:
            raise ValueError(
                f"pictures show hidden states (B, T, D) of modules that run once, and "
                f"{target.config.place} has {component.layout.describe()} and runs "
                f"{component.runs} times."
            )
    return placed


def for_base(prompt: Prompt) -> dict[str, object]:
    """The arguments of the base model, without those that are for edits or for the loss."""
    left_out = (*NAMES, "labels", "leading_pad")
    return {name: value for name, value in prompt.inputs.items() if name not in left_out}


def edited_sites(placed: Sequence[Placed]) -> list[Site]:
    """The hidden states that are edited, by layer, and in a layer in the order of the configs."""
    found: dict[int, Site] = {}
    for one in placed:
        for index, mask in one.placement.masks.items():
            target = one.targets[index]
            name, layer = place_of(replace(target.config, heads=None))
            edited = mask[0].cpu()
            if (before := found.get(target.site)) is not None:
                edited = edited | before.edited
            found[target.site] = Site(target.component, name, layer, edited)
    there = [site for site in found.values() if bool(site.edited.any())]
    return sorted(there, key=lambda site: -1 if site.layer is None else site.layer)
