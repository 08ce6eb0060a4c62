"""What is read off a model for all of its components, each part once."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import find_layers, find_stack, has_two_stacks
from pyreft.base_model.towers import towers_of
from pyreft.base_model.trace import Trace, trace_of
from pyreft.config import STACKS


class Traced(NamedTuple):
    """A model or tower, its trace, and the name of each of its modules."""

    model: PreTrainedModel
    trace: Trace
    names: dict[nn.Module, str]


class Structure:
    """Layers, towers and traces of a model, which does not change while this is used.

    Args:
        model: The base model, PEFT's around it included.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.running = running_model(model)
        self._layers: dict[str | None, list[nn.Module]] = {}
        self._traced: dict[nn.Module, Traced] = {}

    def layers(self, stack: str | None) -> list[nn.Module]:
        """The layers of a stack, see `find_layers`."""
        if stack not in self._layers:
            self._layers[stack] = find_layers(self.model, stack)
        return self._layers[stack]

    @cached_property
    def has_two_stacks(self) -> bool:
        """Whether the model has an encoder and a decoder, see `stacks.has_two_stacks`."""
        return has_two_stacks(self.model)

    def count_layers(self) -> list[int]:
        """The number of layers of each stack."""
        stacks = STACKS if self.has_two_stacks else (None,)
        return [len(self.layers(stack)) for stack in stacks]

    def output_of(self, stack: str | None, index: int) -> nn.Module:
        """The module whose output is that of a layer: the layer, if it runs as a module.

        SqueezeBERT calls `forward` of its layers. Then it is the part whose output the next layer
        reads.
        """
        layers, traced = self.layers(stack), self.traced(self.running)
        layer = layers[index]
        if traced.trace.problem is not None or traced.trace.ran(traced.names.get(layer, "")):
            return layer
        for one in layers:
            path = traced.names.get(one, "")
            for part, _ in one.named_children():
                readers = traced.trace.read_by.get(f"{path}.{part}", ())
                if type(one) is type(layer) and any(not r.startswith(f"{path}.") for r in readers):
                    return layer.get_submodule(part)
        return layer

    def traced(self, root: PreTrainedModel) -> Traced:
        """The trace of the model that runs, or of a tower in it."""
        if root not in self._traced:
            names: dict[nn.Module, str] = {}
            for name, module in root.named_modules():
                names.setdefault(module, str(name))
            self._traced[root] = Traced(root, trace_of(root), names)
        return self._traced[root]

    def tower_of(self, module: nn.Module) -> PreTrainedModel | None:
        """The outermost part that contains a module and reads no text, None if none does."""
        return next((tower for tower, inside in self._towers if module in inside), None)

    @cached_property
    def _towers(self) -> list[tuple[PreTrainedModel, set[nn.Module]]]:
        towers = [(tower, set(tower.modules())) for tower in towers_of(self.running)]
        takes = inspect.signature(self.running.forward).parameters
        if not self.has_two_stacks or "decoder_input_ids" not in takes:
            return towers
        # What such a decoder reads are ids, whatever it calls them: SpeechT5's "input_values".
        decoder = find_stack(self.running, "decoder")
        written = set(decoder.modules())
        return [one for one in towers if one[0] not in written and decoder not in one[1]]
