"""The edits of a call that is compiled as a whole, in one graph.

labels, masks, ids   --one operator-->   one mask (B, T) for each intervention

Which tokens are edited depends on the numbers of a batch, on which a graph cannot branch, and a
wrong batch is an error. So an operator does what every other call does, each time that the graph
runs. The shapes of its masks are known before: an edit runs on all tokens, and is kept where its
mask is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyreft.adapters.active import (
    ActiveAdapter,
    find_active,
    place_in_batch,
    say_nothing_is_edited,
)
from pyreft.adapters.stand_in import numbered
from pyreft.annotations import Arguments, Inputs
from pyreft.base_model.towers import TOWER
from pyreft.editing.pass_plan import Placed
from pyreft.interventions.forms import has_form
from pyreft.placement.arguments import EditArguments
from pyreft.placement.batch import read_batch
from pyreft.placement.placement import Placement

if TYPE_CHECKING:
    from pyreft.adapters.model import EditedModel

# The arguments of a call that its masks depend on.
_TOKENS = ("input_ids", "inputs_embeds")
_READ = (
    *(*_TOKENS, "attention_mask", "labels", "completion_mask", "intervention_locations"),
    *("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"),
)


def place_in_graph(model: EditedModel, inputs: Arguments) -> list[Placed] | None:
    """Place the active adapters in a call that is being compiled.

    Args:
        model: The model.
        inputs: The arguments of the call.

    Returns:
        The edits; None if one graph cannot hold such a call.
    """
    if model.adapter_set.disabled:
        return []
    active = find_active(model.adapter_set, EditArguments())
    if not _fits_one_graph(model, active, inputs):
        return None
    read = {name: one.detach() for name, one in inputs.items() if _is_read(name)}
    training = model.training and torch.is_grad_enabled()
    masks = iter(_place(model.number, ",".join(read), list(read.values()), training))
    explicit, shared = "intervention_locations" in read, len(active) > 1
    placed = []
    for one in active:
        here = {i: next(masks) for i, _ in _places(one, explicit)}
        modules = list(one.adapter.interventions.values())
        placement = Placement(here, in_graph=True)
        placed.append(Placed(modules, one.targets, placement, one.weight, shared))
    kept = inputs.get("logits_to_keep")
    return placed if kept is None else [one.keep_logits(kept) for one in placed]


def _is_read(name: str) -> bool:
    return name.removeprefix("decoder_") in _READ


def _fits_one_graph(model: EditedModel, active: Sequence[ActiveAdapter], inputs: Arguments) -> bool:
    """Whether the masks of a call, and their shapes, are known before it runs."""
    targets = [target for one in active for target in one.targets]
    modules = [module for one in active for module in one.adapter.interventions.values()]
    return (
        # A cache, names of adapters, directions and the like are read by the call itself.
        all(isinstance(one, (Tensor, bool, int, float)) for one in inputs.values())
        and all(isinstance(one, Tensor) for name, one in inputs.items() if _is_read(name))
        and "subspaces" not in inputs
        and "leading_pad" not in inputs
        and any(name in inputs for name in _TOKENS)
        # What is computed again in backward would look for its edits outside of the graph.
        and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        and all(target.component.stack != TOWER for target in targets)
        and all(target.component.ids_rows == 1 for target in targets)
        # A module of a user's own may mix the tokens that it is given.
        and all(has_form(module) for module in modules)
    )


def _places(one: ActiveAdapter, explicit: bool) -> Iterator[tuple[int, str | None]]:
    """The interventions that have a mask: their indices, and the stack that each is in."""
    for index, target in enumerate(one.targets):
        if explicit or target.positions is not None:
            yield index, target.component.stack


@torch.library.custom_op("pyreft::place", mutates_args=())
def _place(model: int, names: str, tensors: Sequence[Tensor], training: bool) -> list[Tensor]:
    """The masks of all interventions, found in the arguments of a call; raises as a call does."""
    inputs, known = dict(zip(names.split(","), tensors, strict=True)), _known(model)
    base, given = known.model, EditArguments.take(cast("Inputs", inputs))
    active = find_active(known.adapter_set, given)
    targets = [target for one in active for target in one.targets]
    with torch.set_grad_enabled(training):
        batch = read_batch(base, targets, inputs, given)
        placed = place_in_batch(active, batch, given)
        masks = [mask.clone() for one in placed for _, mask in sorted(one.placement.masks.items())]
        if not given.choose_rows and not any(bool(mask.any()) for mask in masks):
            say_nothing_is_edited(base, inputs)
    return masks


@_place.register_fake
def _(model: int, names: str, tensors: Sequence[Tensor], training: bool) -> list[Tensor]:
    """Their shapes."""
    inputs, known = dict(zip(names.split(","), tensors, strict=True)), _known(model)
    first = next(inputs[name] for name in _TOKENS if name in inputs)
    of_decoder = (*(f"decoder_{name}" for name in _TOKENS), "labels")
    decoder = next((inputs[name] for name in of_decoder if name in inputs), first)
    explicit = "intervention_locations" in inputs
    stacks = [
        stack
        for one in find_active(known.adapter_set, EditArguments())
        for _, stack in _places(one, explicit)
    ]
    seen = [decoder if stack == "decoder" else first for stack in stacks]
    return [one.new_empty(one.shape[:2], dtype=torch.bool) for one in seen]


def _known(number: int) -> EditedModel:
    return cast("EditedModel", numbered(number))
