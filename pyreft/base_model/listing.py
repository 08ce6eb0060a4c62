"""Every place in a model that can be edited by name, and the layers of its towers by path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel

from pyreft.base_model.components import (
    CROSS_NAMES,
    NAMES,
    PROJECTIONS,
    Component,
    find_component,
)
from pyreft.base_model.stacks import find_layers, has_two_stacks
from pyreft.base_model.structure import Structure
from pyreft.base_model.towers import TOWER, modalities_of, reads_no_text
from pyreft.config import STACKS
from pyreft.config.groups import name_layers


@dataclass(frozen=True)
class ListedComponent:
    """A component of some layers, as `ReftConfig` takes it.

    Args:
        component: Its name, or a path.
        layers: The layers that have it, from 0; none for a path, which contains its layer.
        width: D, the width of its hidden state there; None if only a forward pass shows it.
        tokens: What its tokens are: "text", or of a part that reads no text, what that reads, such
            as "image" or "audio".
        shape: The axes of its hidden state, such as "(B, T, D)".
        num_heads: The number of heads that the width is split into, for a per-head component.
        kinds: The words of position specs for its tokens, such as "text" and "image", or "class"
            and "patch".
    """

    component: str
    layers: tuple[int, ...]
    width: int | None
    tokens: str
    shape: str
    num_heads: int | None = None
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"layers {name_layers(self.layers)}" if self.layers else "one module"
        heads = f", {self.num_heads} heads" if self.num_heads else ""
        return (
            f"{self.component}: {where}, width {self.width or 'unknown'}{heads}, "
            f"{' and '.join(self.kinds or (self.tokens,))} tokens, {self.shape}"
        )


def list_components(model: PreTrainedModel) -> list[ListedComponent]:
    """List what can be edited in a model, before anything is trained.

    One tiny forward pass shows the shapes, unless a model of the class and config had one before.

    Args:
        model: The base model.

    Returns:
        The components by name, layers of one width together, in the order of the names; then the
        outputs of the layers of each tower for pictures or sound inside a model of text, by path.

    Raises:
        ValueError: If the model has no list of layers, so that only paths name its components.
    """
    structure = Structure(model)
    found = [one for name, count in _names(model) for one in _by_width(structure, name, count)]
    return found + list(_of_towers(structure))


def _names(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """The names that a model may have, and how many layers the stack of each has."""
    if not has_two_stacks(model):
        count = len(find_layers(model))
        yield from ((name, count) for name in NAMES + PROJECTIONS)
        return
    for stack in STACKS:
        count, prefix = len(find_layers(model, stack)), "" if stack == "encoder" else "decoder_"
        for name in NAMES + PROJECTIONS + (CROSS_NAMES if stack == "decoder" else ()):
            yield f"{prefix}{name}", count


def _by_width(structure: Structure, name: str, count: int) -> Iterator[ListedComponent]:
    alike: dict[tuple[object, ...], tuple[Component, list[int]]] = {}
    for layer in range(count):
        try:
            found = find_component(structure, layer, name)
        except ValueError:
            # This layer has none.
            continue
        key = (found.width, found.layout, found.num_heads)
        alike.setdefault(key, (found, []))[1].append(layer)
    for found, layers in alike.values():
        yield _listed(structure, name, found, tuple(layers))


def _of_towers(structure: Structure) -> Iterator[ListedComponent]:
    base = structure.running
    if reads_no_text(base):
        return
    for name, part in base.named_modules():
        # Those that only other towers contain are not by themselves.
        if not reads_no_text(part) or (tower := structure.tower_of(part)) is not part:
            continue
        if has_two_stacks(base) and part is base.get_encoder():
            continue
        yield from _layers_of(structure, name, tower)


def _layers_of(
    structure: Structure, name: str, tower: PreTrainedModel
) -> Iterator[ListedComponent]:
    try:
        layers = find_layers(tower)
    except ValueError:
        return
    names = {id(module): path for path, module in tower.named_modules()}
    for layer in layers:
        path = f"{name}.{names[id(layer)]}.output"
        try:
            found = find_component(structure, None, path)
        except ValueError:
            continue
        yield _listed(structure, path, found, ())


def _listed(
    structure: Structure, name: str, found: Component, layers: tuple[int, ...]
) -> ListedComponent:
    tokens = "text"
    if found.stack == TOWER:
        tower = structure.tower_of(found.module)
        tokens = found.kinds.names[0] if tower is None else modalities_of(tower)
    shape, kinds = found.layout.describe(), found.kinds.names
    return ListedComponent(name, layers, found.width, tokens, shape, found.num_heads, kinds)
