"""Which adapters act in a call, and on which rows.

active adapters        all rows; several add up, each by its weight
adapter_names          one name for each row of the batch, "__base__" for none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pyreft.config import InterventionConfig
from pyreft.modeling.attached import AttachedAdapter
from pyreft.modeling.calls import read_batch, warn_without_positions
from pyreft.modeling.generation import place_prompt
from pyreft.modeling.placement import Placement
from pyreft.modeling.plan import Placed
from pyreft.modeling.stacks import has_two_stacks
from pyreft.positions import Tokens

# In `adapter_names`, for a row that is not edited; PEFT's word.
BASE = "__base__"


class Acting(NamedTuple):
    """An adapter in a call.

    Args:
        adapter: The adapter.
        rows: (b,), the rows it edits, or None for all.
        weight: How much of its edits is made.
    """

    adapter: AttachedAdapter
    rows: Tensor | None = None
    weight: float = 1.0


def by_row(
    adapters: Mapping[str, AttachedAdapter], active: Mapping[str, float], names: Any
) -> list[Acting]:
    """The adapters that `adapter_names` give to the rows of a batch.

    Args:
        adapters: All that there are, by name.
        active: Names and weights of those that are active.
        names: One name for each row.

    Raises:
        TypeError: If it is no list of names.
        ValueError: If there is no adapter of a name, or one needs other heads than there are.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"adapter_names is a list of one name for each row, got {names!r}.")
    wanted: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name != BASE and name not in adapters:
            raise ValueError(
                f"adapter_names[{row}] is {name!r}; there are {', '.join(adapters)}, and "
                f"{BASE} for no adapter."
            )
        wanted.setdefault(name, []).append(row)
    for name, adapter in adapters.items():
        # A forward pass has one head, that of the active adapter.
        alone = name in active and set(wanted) <= {name}
        if adapter.trained.names and (name in active or name in wanted) and not alone:
            raise ValueError(
                f"the adapter {name!r} has trained {', '.join(adapter.trained.names)} of the base "
                "model, which all rows of a batch share: activate it with set_adapter, and run its "
                "rows by themselves."
            )
    return [
        Acting(adapters[name], torch.tensor(rows)) for name, rows in wanted.items() if name != BASE
    ]


def place_in_batch(
    acting: Sequence[Acting],
    base: PreTrainedModel,
    inputs: Mapping[str, Any],
    completion_mask: Tensor | None,
    intervention_locations: Tensor | None,
    subspaces: Any,
    adapter_names: Sequence[str] | None,
) -> list[Placed]:
    """Place adapters for a call of the base model.

    Args:
        acting: The adapters.
        base: The base model.
        inputs: What it is called with.
        completion_mask, intervention_locations, subspaces, adapter_names: See
            `ReftModel.forward`.
    """
    _refuse_ambiguous(acting, intervention_locations, subspaces)
    told = intervention_locations is not None
    batch = read_batch(base, _configs(acting), has_two_stacks(base), inputs, completion_mask, told)
    if batch is None:
        return []
    _require_rows(adapter_names, batch.rows)

    def place(adapter: AttachedAdapter, rows: Tensor | None) -> Placement | None:
        seen = batch if rows is None else batch.of(rows)
        configs = adapter.config.representations
        return seen.place(configs, adapter.sites, intervention_locations, subspaces)

    return _place_all(acting, batch.rows, place)


class PromptPlacer:
    """Places adapters in the prompts of a call of `generate`.

    Args:
        acting: The adapters.
        rows: B, the number of prompts.
        intervention_locations, subspaces, adapter_names: See `ReftModel.generate`.
    """

    def __init__(
        self,
        acting: Sequence[Acting],
        rows: int,
        intervention_locations: Tensor | None,
        subspaces: Any,
        adapter_names: Sequence[str] | None,
    ) -> None:
        _refuse_ambiguous(acting, intervention_locations, subspaces)
        _require_rows(adapter_names, rows)
        warn_without_positions(_configs(acting), intervention_locations is not None)
        self._acting, self._rows = acting, rows
        self._locations, self._subspaces = intervention_locations, subspaces

    def place(self, prompt: Mapping[str | None, Tokens], encoder: bool) -> list[Placed]:
        """Place those that act in an encoder, before the first step; or those in the steps."""

        def place(adapter: AttachedAdapter, rows: Tensor | None) -> Placement | None:
            seen = prompt if rows is None else {stack: t.of(rows) for stack, t in prompt.items()}
            configs = adapter.config.representations
            return place_prompt(
                configs, adapter.sites, seen, encoder, self._locations, self._subspaces
            )

        return _place_all(self._acting, self._rows, place)


def _configs(acting: Sequence[Acting]) -> list[InterventionConfig]:
    """The interventions of all that act."""
    return [config for one in acting for config in one.adapter.config.representations]


def _require_rows(names: Sequence[str] | None, rows: int) -> None:
    """Raise ValueError unless there is a name for each row."""
    if names is not None and len(names) != rows:
        raise ValueError(
            f"adapter_names has {len(names)} names, the batch has {rows} rows: give one for each."
        )


def _refuse_ambiguous(
    acting: Sequence[Acting], intervention_locations: Tensor | None, subspaces: Any
) -> None:
    """Raise ValueError for positions or directions that do not say whose they are."""
    mixed = len(acting) > 1 or any(one.rows is not None for one in acting)
    if mixed and not (intervention_locations is None and subspaces is None):
        raise ValueError(
            "intervention_locations and subspaces are for the interventions of one adapter, and "
            "several act in this call: say positions in the configs, or activate one with "
            "set_adapter."
        )


def _place_all(
    acting: Sequence[Acting],
    batch: int,
    place: Callable[[AttachedAdapter, Tensor | None], Placement | None],
) -> list[Placed]:
    """Place every adapter.

    Args:
        acting: The adapters.
        batch: B, the number of rows.
        place: Places an adapter in some rows (b,), or in all.
    """
    by_rows = any(one.rows is not None for one in acting)
    shared = len(acting) > 1 and not by_rows
    placed = []
    for one in acting:
        placement = place(one.adapter, one.rows)
        if placement is not None and one.rows is not None:
            placement = placement.in_rows(one.rows, batch)
        if placement is not None:
            placed.append(Placed(one.adapter, placement, one.weight, shared))
    return placed
