"""Examples -> their known states, computed without gradient.

all tokens (M, T)       --layers below S-->    hidden (M, T, D), their output
the first P of them     --layers from S on-->  keys and values (M, heads, P, width) of each

Only examples of one length are computed together. Others would need padding, which would change
the last bits of their values: a resumed run, which computes an example with different others,
would then differ from an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor, nn

from pyreft.installed.caches import cache_argument
from pyreft.reuse.plan import NotReusableError, Plan
from pyreft.reuse.prefix import FrozenPrefix, KeysValues, Recorded, RecordingCache
from pyreft.reuse.skipped_layers import Forward, LayerOutput, Output, replaced
from pyreft.reuse.store import State


@torch.no_grad()
def compute_states(plan: Plan, output: LayerOutput, ids: Tensor, start: int) -> list[State]:
    """Compute the known states of examples.

    Args:
        plan: The layers and tokens that are reused.
        output: The form of layers' outputs.
        ids: (M, T) token ids, from the first to the last that is computed.
        start: P, the index of the first token that is computed in every step.

    Raises:
        NotReusableError: If the layers do not return hidden states, or keys and values.
    """
    hidden = _hidden(plan, output, ids) if plan.skipped else None
    known: list[Tensor] = []
    if start and plan.skipped < len(plan.layers):
        first = None if hidden is None else hidden[:, :start]
        known = _known(plan, output, ids[:, :start], first)
    states = []
    for row in range(len(ids)):
        # No views, which would keep the whole tensors in memory.
        own = None if hidden is None else hidden[row, start:].clone()
        copies = [tensor[row].clone(memory_format=torch.contiguous_format) for tensor in known]
        states.append(State(own, tuple(copies)))
    return states


def _hidden(plan: Plan, output: LayerOutput, ids: Tensor) -> Tensor:
    """(M, T, D), the output of the layers that are skipped later."""
    last, found = plan.layers[plan.skipped - 1], []
    original = last.forward

    def watch(*args: object, **kwargs: object) -> Output:
        returned: Output = original(*args, **kwargs)
        found.append(output.hidden(returned))
        return returned

    above = dict.fromkeys(plan.layers[plan.skipped :], output.passing_through())
    with replaced({last: watch, **above}):
        _run(plan, ids)
    if not found or found[0].dim() != 3 or found[0].shape[:2] != ids.shape:
        raise NotReusableError("its layers do not return a hidden state (batch, tokens, width)")
    return found[0]


def _known(plan: Plan, output: LayerOutput, ids: Tensor, hidden: Tensor | None) -> list[Tensor]:
    """(M, heads, P, width) keys and values of the tokens, for all layers that run."""
    count = len(plan.layers)
    cache = RecordingCache(count, last=count - 1)
    with skipping(plan, output, hidden), suppress(Recorded):
        _run(plan, ids, **{str(cache_argument(plan.base.base_model)): cache})
    running = range(plan.skipped, count)
    known = [tensor for layer in running for tensor in cache.known.get(layer, ())]
    shapes = {(t.shape[0], t.shape[2]) for t in known}
    if len(known) != 2 * len(running) or shapes != {tuple(ids.shape)}:
        raise NotReusableError("its layers store no keys and values (batch, heads, tokens, width)")
    return known


def _run(plan: Plan, ids: Tensor, **kwargs: object) -> None:
    plan.base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), **kwargs)


def skipping(
    plan: Plan, output: LayerOutput, hidden: Tensor | None
) -> AbstractContextManager[None]:
    """Skip layers inside the block: the last of them returns this hidden state."""
    forwards: dict[nn.Module, Forward] = {}
    if hidden is not None:
        below = plan.layers[: plan.skipped]
        forwards = dict.fromkeys(below[:-1], output.passing_through())
        forwards[below[-1]] = output.returning(hidden)
    return replaced(forwards)


def collate_hidden(states: Sequence[State], width: int, device: torch.device) -> Tensor | None:
    """(B, W, D), the hidden states of examples, padded on the right."""
    rows = [state.hidden for state in states]
    if rows[0] is None:
        return None
    batch = torch.zeros(len(rows), width, rows[0].shape[-1], dtype=rows[0].dtype, device=device)
    for index, row in enumerate(rows):
        assert row is not None
        batch[index, : len(row)].copy_(row, non_blocking=True)
    return batch


def collate_prefix(
    plan: Plan, states: Sequence[State], length: int, device: torch.device
) -> FrozenPrefix | None:
    """The keys and values of examples, padded on the left to P columns; None if P is 0."""
    if not length:
        return None
    of_all = zip(*_of_all(states), strict=True)
    made = [_pad_left(tensors, length, device) for tensors in of_all]
    layers: list[KeysValues | None] = [None] * plan.skipped
    layers += zip(made[::2], made[1::2], strict=True)
    return FrozenPrefix(layers, length)


def _of_all(states: Sequence[State]) -> list[tuple[Tensor, ...]]:
    """The tensors of each example; empty ones for an example without earlier tokens."""
    some = next((state.known for state in states if state.known), ())
    none = tuple(tensor[:, :0] for tensor in some)
    return [state.known or none for state in states]


def _pad_left(tensors: Sequence[Tensor], length: int, device: torch.device) -> Tensor:
    """(heads, P of each, width) -> (B, heads, P, width)."""
    if all(tensor.shape[1] == length for tensor in tensors) and tensors[0].device == device:
        return torch.stack(list(tensors))
    heads, _, width = tensors[0].shape
    batch = torch.zeros((len(tensors), heads, length, width), dtype=tensors[0].dtype, device=device)
    for index, tensor in enumerate(tensors):
        batch[index, :, length - tensor.shape[1] :].copy_(tensor, non_blocking=True)
    return batch
