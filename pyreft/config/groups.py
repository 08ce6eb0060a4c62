"""Interventions that differ in their layer alone are shown together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from pyreft.config.intervention import InterventionConfig, is_path
from pyreft.positions import PositionSpec
from pyreft.tables import Table, printable

# The index of the layer in a path: "model.layers[3].output", "model.layers.3.output".
_INDEX = re.compile(r"\[(\d{1,9})\]|\.(\d{1,9})(?=[.\[])")


@dataclass(frozen=True)
class Group:
    """Interventions that differ in their layer alone.

    Args:
        first: The first of them.
        members: The index of each in the list of all interventions.
        layers: Their layers; empty for paths without a layer.
    """

    first: InterventionConfig
    members: tuple[int, ...]
    layers: tuple[int, ...]

    @property
    def component(self) -> str:
        """The component, printable; [layer] stands for the layer in a path."""
        return place_of(self.first)[0]

    @property
    def named_layers(self) -> str:
        """The layers, "0-3, 7"."""
        return name_layers(self.layers)


def group_alike(interventions: Iterable[InterventionConfig]) -> list[Group]:
    """The groups, in the order of their first members."""
    alike: dict[str, list[tuple[int, InterventionConfig]]] = {}
    for index, one in enumerate(interventions):
        alike.setdefault(repr(without_layer(one)), []).append((index, one))
    groups = []
    for members in alike.values():
        layers = [place_of(one)[1] for _, one in members]
        indices = tuple(index for index, _ in members)
        groups.append(Group(members[0][1], indices, tuple(n for n in layers if _is_index(n))))
    return groups


def without_layer(one: InterventionConfig) -> InterventionConfig:
    """The same for all layers; [layer] stands for the layer in a path."""
    if is_path(one.component):
        return replace(one, component=_split_path(one.component)[0])
    # What is no index is refused later, with its value.
    return replace(one, layer=None) if _is_index(one.layer) else one


def place_of(one: InterventionConfig) -> tuple[str, int | None]:
    """The component with its heads, printable and without its layer, and the layer."""
    component, layer = one.component, one.layer
    if is_path(component):
        component, found = _split_path(component)
        layer = layer if found is None else found
    heads = "" if one.heads is None else f", heads {', '.join(map(str, one.heads))}"
    return printable(component) + heads, layer


def _split_path(path: str) -> tuple[str, int | None]:
    index = _INDEX.search(path)
    if index is None:
        return path, None
    return f"{path[: index.start()]}[layer]{path[index.end() :]}", int(index[1] or index[2])


def _is_index(layer: object) -> TypeGuard[int]:
    return isinstance(layer, int)


def name_layers(layers: Iterable[int]) -> str:
    """Indices of layers in order, runs of them by their ends: "0-3, 7"."""
    runs: list[list[int]] = []
    for index in sorted(set(layers)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def name_positions(positions: PositionSpec | None) -> str:
    """A position spec as it is written, "f2+l1"; printable."""
    if positions is None:
        return "of each batch"
    try:
        return printable(str(positions))
    except ValueError:  # a function without a name
        return printable(repr(positions))


def table_of(groups: Sequence[Group]) -> Table:
    """What each group of interventions edits, and how."""
    rows = [
        [
            printable(group.first.kind),
            group.component,
            group.named_layers,
            name_positions(group.first.positions),
            "" if (rank := group.first.low_rank_dimension) is None else str(rank),
        ]
        for group in groups
    ]
    return Table(["kind", "component", "layers", "positions", "rank"], rows, ["rank"])
