"""Which adapters act in a call, and on which rows.

active adapters        all rows; several add up, each by its weight
adapter_names          one name for each row of the batch, "__base__" for none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyreft.config import InterventionConfig
from pyreft.modeling.attached import AttachedAdapter
from pyreft.modeling.hooks import Placed
from pyreft.modeling.placement import Placement

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


def configs_of(acting: Sequence[Acting]) -> list[InterventionConfig]:
    """The interventions of all that act."""
    return [config for one in acting for config in one.adapter.config.representations]


def require_rows(names: Sequence[str] | None, rows: int) -> None:
    """Raise ValueError unless there is a name for each row."""
    if names is not None and len(names) != rows:
        raise ValueError(
            f"adapter_names has {len(names)} names, the batch has {rows} rows: give one for each."
        )


def refuse_ambiguous(
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


def place_all(
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
