"""Components and layers as a config names them -> those of a model that has so many layers.

"block_output"            of the encoder, in a model with an encoder and a decoder
"encoder_block_output"    the same, said in full
"decoder_block_output"    of its decoder
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class LayerCounts:
    """How many layers a model has.

    Args:
        layers: Its layers; those of the encoder, if it has an encoder and a decoder.
        decoder: Those of its decoder, or None if it has no two stacks of layers.
    """

    layers: int
    decoder: int | None = None

    def component(self, name: str) -> str:
        """The name under which a component is saved: without "encoder_".

        Raises:
            ValueError: If the name is of an encoder or decoder, and the model has one stack.
        """
        stack, plain = split_stack(name)
        if stack is not None and self.decoder is None:
            raise ValueError(
                f"the component {name!r} is for models with an encoder and a decoder, as T5 and "
                f"BART have; this model has one list of layers: use {plain!r}."
            )
        return plain if stack == "encoder" else name

    def layer(self, layer: object, component: str) -> int:
        """The index of a layer, from 0.

        Raises:
            TypeError: If it is not an index.
            ValueError: If it is out of range.
        """
        if not isinstance(layer, Integral) or isinstance(layer, bool):
            raise TypeError(f"a layer is an index, got {layer!r}.")
        index, count = int(layer), self._count(component)
        if not -count <= index < count:
            model = "model" if self.decoder is None else f"model's {stack_named(component)}"
            raise ValueError(
                f"layer {index} is out of range: the {model} has {count} layers, 0 to {count - 1}."
            )
        return index % count

    def read(self, layers: object, component: str) -> list[int]:
        """The indices that the short form of a config selects with "all", an index or a list.

        Raises:
            TypeError: If one is not an index.
            ValueError: If one is out of range or given twice, or there is none.
        """
        if isinstance(layers, str):
            if layers != "all":
                raise ValueError(f'layers must be "all" or indices, got {layers!r}.')
            return list(range(self._count(component)))
        given = layers if isinstance(layers, list) else [layers]
        indices = [self.layer(layer, component) for layer in given]
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"layers must be different, and at least one, got {layers!r}.")
        return indices

    def _count(self, component: str) -> int:
        of_decoder = stack_named(component) == "decoder"
        return self.decoder if of_decoder and self.decoder is not None else self.layers


def split_stack(component: str) -> tuple[str | None, str]:
    """The stack that the name of a component begins with, or None, and the rest of the name."""
    stack, _, plain = component.partition("_")
    return (stack, plain) if stack in STACKS else (None, component)


def stack_named(component: str) -> str:
    """The stack that a component belongs to, in a model that has two."""
    return split_stack(component)[0] or "encoder"
