"""An adapter, how strongly it edits, and which of its layers do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pyreft.compat.model import ReftModel
from pyreft.sharing import Adapter


@dataclass(frozen=True)
class Choice:
    """What edits in a request.

    Args:
        adapter: The adapter.
        strength: The factor of its edits; 1 is as it was trained.
        off: The layers that are not edited.
    """

    adapter: Adapter
    strength: float = 1.0
    off: frozenset[int] = frozenset()


def layers_of(adapter: Adapter) -> list[int]:
    """The layers that an adapter edits by name, without components that are given as paths."""
    layers = {entry.layer for entry in adapter.config.representations}
    return sorted(layer for layer in layers if layer is not None)


@contextmanager
def edited(base: PreTrainedModel, choice: Choice) -> Iterator[ReftModel]:
    """A base model that is edited as chosen inside the block, and as it was afterwards.

    Raises:
        AdapterError: If the adapter does not fit the base model.
        ValueError, TypeError: If the strength is not a finite number.
    """
    model = ReftModel.from_pretrained(base, choice.adapter)
    try:
        model.set_adapter(model.active_adapters, [choice.strength])
        entries = model.reft_config.representations
        for key, entry in zip(list(model.interventions), entries, strict=True):
            if entry.layer in choice.off:
                model.interventions[key] = nn.Identity()
        yield model
    finally:
        model.unwrap()
