"""Which adapter a user chose, of those that the command named and those of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import gradio as gr

from pyreft.demo.choice import Choice, layers_of
from pyreft.sharing import Adapter

NONE = "(no adapter)"
Adapters: TypeAlias = dict[str, Adapter]


@dataclass(frozen=True)
class Chooser:
    """The components to choose with.

    Args:
        shared: The adapters that all users may choose, by name.
        adapter: One of their names.
        layers: The layers that are edited.
        own: The adapters of one user, by name.
    """

    shared: Mapping[str, Adapter]
    adapter: gr.Dropdown
    layers: gr.CheckboxGroup
    own: gr.State

    @classmethod
    def add(cls, shared: Mapping[str, Adapter], own: gr.State) -> Chooser:
        """Add the components to the page, with the first adapter chosen."""
        first = next(iter(shared), NONE)
        adapter = gr.Dropdown([*shared, NONE], value=first, label="Adapter")
        edited = _show_layers(shared.get(first))
        chooser = cls(shared, adapter, edited, own)
        adapter.input(chooser.show_layers, [adapter, own], edited, api_visibility="private")
        return chooser

    @property
    def outputs(self) -> list[gr.Dropdown | gr.CheckboxGroup | gr.State]:
        """The components that `add_own` changes, in its order."""
        return [self.own, self.adapter, self.layers]

    def add_own(self, own: Adapters, name: str, adapter: Adapter) -> list[object]:
        """Give a user an adapter, and choose it."""
        own = {**own, name: adapter}
        names = [*self.shared, *own, NONE]
        return [own, gr.Dropdown(choices=names, value=name), self.show_layers(name, own)]

    def show_layers(self, name: str, own: Adapters) -> gr.CheckboxGroup:
        """The layers of an adapter, all of them edited."""
        return _show_layers({**self.shared, **own}.get(name))

    def choice(
        self, name: str, strength: float, edited: Sequence[str], own: Adapters
    ) -> Choice | None:
        """What edits, as a user chose.

        Raises:
            ValueError: If there is no such adapter.
        """
        if name == NONE:
            return None
        there = {**self.shared, **own}
        if name not in there:
            raise ValueError(f"there is no adapter {name!r}; there are {', '.join(there) or NONE}.")
        layers = layers_of(there[name])
        off = frozenset(layer for layer in layers if str(layer) not in edited)
        return Choice(there[name], strength, off)


def _show_layers(adapter: Adapter | None) -> gr.CheckboxGroup:
    layers = [] if adapter is None else [str(layer) for layer in layers_of(adapter)]
    # Without a choice, gradio sends None and refuses it.
    shown = layers or [NONE]
    return gr.CheckboxGroup(shown, value=shown, label="Edited layers", visible=bool(layers))
