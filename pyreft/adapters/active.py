"""Which adapters act in a call, and on which rows.

active adapters        all rows; several add up, each by its weight
adapter_names          one name for each row of the batch, "__base__" for none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.adapters.attached import AttachedAdapter
from pyreft.base_model.stacks import has_two_stacks
from pyreft.editing.plan import Placed
from pyreft.installed.caches import UncountedStateError, cached_tokens
from pyreft.placement.batch import Batch, read_batch
from pyreft.placement.target import Target
from pyreft.positions import PositionSpec

logger = logging.get_logger(__name__)

# In `adapter_names`, for a row that is not edited; PEFT's word.
BASE = "__base__"


class Acting(NamedTuple):
    """An adapter in a call.

    Args:
        adapter: The adapter.
        rows: (b,), the rows it edits, or None for all.
        weight: How much of its edits is made.
        positions: Where the interventions edit that the config leaves to the batch.
    """

    adapter: AttachedAdapter
    rows: Tensor | None = None
    weight: float = 1.0
    positions: PositionSpec | None = None

    @property
    def targets(self) -> list[Target]:
        """Where its interventions edit, with the positions of the call."""
        targets = self.adapter.targets
        if self.positions is None:
            return targets
        return [t if t.positions else t.at(self.positions) for t in targets]


def find_acting(
    adapters: Mapping[str, AttachedAdapter],
    active: Mapping[str, float],
    names: Any,
    positions: Any = None,
) -> list[Acting]:
    """The adapters that act in a call: the active ones, or those of `adapter_names`.

    Args:
        adapters: All that there are, by name.
        active: Names and weights of those that are active.
        names: One name for each row, or None for the active ones on all rows.
        positions: A position spec, see `ReftModel.forward`.

    Raises:
        TypeError: If it is no list of names.
        ValueError: If there is no adapter of a name, or one needs other heads than there are.
    """
    spec = None if positions is None else PositionSpec.parse(positions)
    if names is None:
        return [Acting(adapters[name], None, weight, spec) for name, weight in active.items()]
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
        Acting(adapters[name], torch.tensor(rows), 1.0, spec)
        for name, rows in wanted.items()
        if name != BASE
    ]


def place_in_call(
    acting: Sequence[Acting],
    base: PreTrainedModel,
    inputs: Mapping[str, Any],
    completion_mask: Tensor | None,
    intervention_locations: Tensor | None,
    subspaces: Any,
    adapter_names: Sequence[str] | None,
    in_order: bool | None = None,
) -> list[Placed]:
    """Place adapters for a call of the base model.

    Args:
        acting: The adapters.
        base: The base model.
        inputs: What it is called with.
        completion_mask, intervention_locations, subspaces, adapter_names: See
            `ReftModel.forward`.
        in_order: See `Placement`.
    """
    told = intervention_locations is not None
    batch = read_batch(base, _targets(acting), has_two_stacks(base), inputs, completion_mask, told)
    edits = (intervention_locations, subspaces, adapter_names, bool(in_order))
    placed = place_in_batch(acting, batch, *edits)
    return [one.keep_logits(inputs.get("logits_to_keep")) for one in placed]


def place_in_batch(
    acting: Sequence[Acting],
    batch: Batch | None,
    intervention_locations: Tensor | None,
    subspaces: Any,
    adapter_names: Sequence[str] | None,
    in_order: bool = False,
) -> list[Placed]:
    """Place adapters in what the base model reads.

    Args:
        acting: The adapters.
        batch: What it reads in a call, or of a prompt; None if that is no token.
        intervention_locations, subspaces, adapter_names: See `ReftModel.forward`.
        in_order: See `Placement`.
    """
    _refuse_ambiguous(acting, intervention_locations, subspaces)
    _warn_without_positions(acting, intervention_locations)
    if batch is None:
        return []
    _require_rows(adapter_names, batch.rows)
    shared = len(acting) > 1 and all(one.rows is None for one in acting)
    placed = []
    for one in acting:
        adapter, rows = one.adapter, one.rows
        seen = batch if rows is None else batch.of(rows)
        given = (intervention_locations, subspaces, in_order)
        targets = one.targets
        placement = seen.place(targets, *given)
        if placement is not None and rows is not None:
            placement = placement.in_rows(rows, batch.rows)
        if placement is not None:
            modules = list(adapter.interventions.values())
            placed.append(Placed(modules, targets, placement, one.weight, shared))
    return placed


def _targets(acting: Sequence[Acting]) -> list[Target]:
    """Where the interventions of all of them edit."""
    return [target for one in acting for target in one.targets]


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


def _warn_without_positions(
    acting: Sequence[Acting], intervention_locations: Tensor | None
) -> None:
    """Say so if neither a config nor the call has positions, and anything is to be edited."""
    targets = _targets(acting)
    if targets and intervention_locations is None and all(t.positions is None for t in targets):
        logger.warning_once(
            "No intervention has positions, so this call runs the bare base model. Say positions "
            'in the config ("f7+l7"), or give intervention_locations with the batch.'
        )


def say_nothing_is_edited(base: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Say that no token of a call is edited: an error where the adapter is trained.

    Args:
        base: The base model.
        inputs: What it is called with.

    Raises:
        ValueError: If the model is trained.
    """
    with suppress(UncountedStateError):
        if not cached_tokens(inputs):
            _say(base, list(inputs))


def _say(base: PreTrainedModel, names: Sequence[str]) -> None:
    texts = [name for name in names if name.endswith(("input_ids", "inputs_embeds"))]
    if texts:
        why = f"no position of the adapter is among the tokens of {', '.join(texts)}"
    else:
        why = f"the call has no text tokens, but {', '.join(names) or 'nothing'}"
    said = f"Nothing is edited in this call: {why}."
    if base.training and torch.is_grad_enabled():
        raise ValueError(f"{said} So nothing would be learned from it.")
    logger.warning_once(f"{said} It runs the bare base model.")
