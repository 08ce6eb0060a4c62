"""The forward passes of the logit lens.

the prompt, edited      the hidden states that leave edited layers, and the output
the prompt, bare        the output
hidden states           through what follows the last layer, as the output of that layer

In the last pass, each hidden state is a row of one token. So the final norm and the head are found
by running them, in any architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyreft.adapters.model import EditedModel
from pyreft.base_model.outputs import hidden_of, with_hidden
from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import find_layers
from pyreft.editing.pass_plan import Placed
from pyreft.pictures.edited import for_base
from pyreft.pictures.prompt import Prompt
from pyreft.pictures.recording import watching


class LensPasses:
    """The forward passes for one token of a prompt.

    Args:
        model: The model, in evaluation mode.
        placed: Where it edits.
        prompt: The prompt.
        column: The column of the token.

    Raises:
        ValueError: If the model does not predict tokens.
    """

    def __init__(
        self, model: EditedModel, placed: Sequence[Placed], prompt: Prompt, column: int
    ) -> None:
        base = running_model(model.model)
        if base.get_output_embeddings() is None:
            raise ValueError(
                "a logit lens is for models that predict tokens; "
                f"{type(base).__name__} has no output embedding."
            )
        self._model, self._placed, self._column = model, placed, column
        self._layers = find_layers(base)
        numbered = enumerate(self._layers)
        self._layer_of = {module: n for n, layer in numbered for module in layer.modules()}
        self._inputs = for_base(prompt)
        self._kept = column
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            # One column of a large vocabulary, not all.
            self._inputs["logits_to_keep"] = torch.tensor([column])
            self._kept = 0
        ids = prompt.inputs["input_ids"]
        self._token: Tensor = ids[:, column]

    def run(self) -> tuple[list[int], Tensor, Tensor]:
        """The L edited layers, and probabilities (L + 1, V) before and after the edit of each.

        The last row is the output of the model, bare and edited.
        """
        layers = self._edited_layers()
        states: dict[tuple[int, bool], Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:
                self._record(stack, states, layer, unedited=self._is_direct(layer))
            edited = self._output(self._placed)
        for layer in layers:
            if (layer, False) not in states:
                others = [self._without(one, layer) for one in self._placed]
                with ExitStack() as stack:
                    self._record(stack, states, layer, as_unedited=True)
                    self._output(others)
        bare = self._output([])
        if not layers:
            return [], bare[None], edited[None]
        order = [states[layer, after] for after in (False, True) for layer in layers]
        before, after = self._finish(torch.stack(order)).chunk(2)
        return layers, torch.cat([before, bare[None]]), torch.cat([after, edited[None]])

    def _record(
        self,
        stack: ExitStack,
        states: dict[tuple[int, bool], Tensor],
        layer: int,
        unedited: bool = False,
        as_unedited: bool = False,
    ) -> None:
        """Store what leaves a layer, after its edits; and before them, if `unedited`."""

        def see(hidden: Tensor, after: bool) -> None:
            states[layer, after] = hidden[0, self._column].clone().cpu()

        before = (lambda hidden: see(hidden, False)) if unedited else None
        watch = watching(
            self._layers[layer], "output", before, lambda hidden: see(hidden, not as_unedited)
        )
        stack.enter_context(watch)

    def _edited_layers(self) -> list[int]:
        found = {
            self._layer_of.get(one.targets[index].component.module)
            for one in self._placed
            for index, mask in one.placement.masks.items()
            if bool(mask.any())
        }
        return sorted(layer for layer in found if layer is not None)

    def _is_direct(self, layer: int) -> bool:
        """Whether the only edits of a layer are those of its output, which one pass shows."""
        targets = [target for one in self._placed for target in one.targets]
        inside = [t.component for t in targets if self._layer_of.get(t.component.module) == layer]
        return all(c.module is self._layers[layer] and c.side == "output" for c in inside)

    def _without(self, one: Placed, layer: int) -> Placed:
        """The same edits without those of a layer."""
        masks = {
            index: torch.zeros_like(mask)
            if self._layer_of.get(one.targets[index].component.module) == layer
            else mask
            for index, mask in one.placement.masks.items()
        }
        return replace(one, placement=replace(one.placement, masks=masks))

    def _output(self, placed: Sequence[Placed]) -> Tensor:
        """The probabilities that the model gives the next token, (V,) float64."""
        kept = self._inputs.get("logits_to_keep")
        placed = [one.keep_logits(kept) for one in placed] if isinstance(kept, Tensor) else placed
        with self._model.edited_calls.placed(list(placed)):
            logits: Tensor = self._model(**self._inputs).logits
        return logits[0, self._kept].double().softmax(-1).cpu()

    def _finish(self, states: Tensor) -> Tensor:
        """What follows the last layer, as probabilities: (N, D) -> (N, V) float64."""

        def replace_output(module: nn.Module, args: object, output: object) -> object:
            like = hidden_of(output)
            assert like is not None
            return with_hidden(output, states[:, None].to(like.device, like.dtype))

        inputs = {"input_ids": self._token.expand(len(states), 1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        handle = self._layers[-1].register_forward_hook(replace_output)
        try:
            with self._model.edited_calls.placed([]):
                logits: Tensor = self._model(**inputs).logits
        finally:
            handle.remove()
        return logits[:, 0].double().softmax(-1).cpu()
