"""Interventions that come and go, in the slots of one table of stacked weights.

Writing one slot costs as much as one intervention, whatever the number of the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyreft.interventions.bases import FreeBasis, OrthonormalBasis
from pyreft.interventions.stacked import StackedInterventions, StackedWeights, edit_stacked
from pyreft.memory import require_memory


class InterventionTable:
    """Interventions with equal `stacks_with`, as one function of many rows.

    The table grows if all slots are taken, and if an intervention has a larger rank R than all
    before it. Free slots are used again.

    Args:
        device: Where the weights are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._weights: StackedWeights | None = None
        self._first: OrthonormalBasis | FreeBasis | None = None
        self._free: list[int] = []

    # A table made inside an engine's inference mode must be written to outside it as well.
    @torch.inference_mode(False)
    @torch.no_grad()
    def put(self, intervention: nn.Module) -> int:
        """Copy the weights of an intervention into a slot, and return its number.

        Raises:
            torch.OutOfMemoryError: If there is no memory for it; the table is as it was.
        """
        if self._first is None:
            assert isinstance(intervention, (OrthonormalBasis, FreeBasis))
            self._first = intervention
        one = StackedInterventions([intervention], keep=True).weights
        found = self._with_room(one)
        slot = self._free.pop()
        for mine, theirs in zip(found, one, strict=True):
            if mine is not None and theirs is not None:
                mine[slot] = 0
                mine[slot, : theirs.shape[1]] = theirs[0]
        return slot

    def free(self, slot: int) -> None:
        """Let a slot be used again."""
        self._free.append(slot)

    def __call__(self, hidden: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
        """Edit hidden states.

        Args:
            hidden: (G, P, D), in any float type.
            index: (G,), the slot of each row.
            weights: (G,), the factor of the edits of each row; 1 by default.

        Returns:
            (G, P, D), edited, in the same type.
        """
        assert self._weights is not None and self._first is not None
        wide = hidden.to(torch.promote_types(hidden.dtype, self._weights.basis.dtype))
        # Nothing is dropped: this is for adapters that are used and not trained.
        edited = edit_stacked(self._weights, wide, index, self._first.act_fn, nn.Identity())
        if weights is not None:
            edited = wide + weights[:, None, None] * (edited - wide)
        return edited.to(hidden.dtype)

    def _with_room(self, one: StackedWeights) -> StackedWeights:
        """The weights, with a free slot and the rank of one more intervention."""
        if self._weights is None:
            self._weights = _each(one, lambda w: w.new_zeros(w.shape, device=self._device))
            self._free.append(0)
        slots, rank = self._weights.bias.shape
        wider = max(0, one.bias.shape[1] - rank)
        more = 0 if self._free else slots
        if wider or more:
            size = sum(w.nbytes for w in self._weights if w is not None)
            larger = (slots + more) * (rank + wider) / (slots * rank)
            require_memory(self._device, int(size * larger))
            self._weights = _each(self._weights, lambda w: _grow(w, more, wider))
        self._free.extend(range(slots, slots + more))
        return self._weights


def _each(weights: StackedWeights, change: Callable[[Tensor], Tensor]) -> StackedWeights:
    return StackedWeights(*(w if w is None else change(w) for w in weights))  # type: ignore[arg-type]


def _grow(weights: Tensor, slots: int, rank: int) -> Tensor:
    """(I, R, ...) -> (I + slots, R + rank, ...), filled up with zeros."""
    beyond = (0, 0) * (weights.dim() - 2)
    return functional.pad(weights, (*beyond, 0, rank, 0, slots))
